"""read_facts: where facts are read from, and what happens to bad records."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import BadRecord, Fact, read_facts

FACTS = [Fact(f"subject {i}", "{} is", f"target {i}", source="here", metadata={"n": i}) for i in range(20)]


def lines(facts: list[Fact]) -> list[str]:
    return [json.dumps(fact.to_dict(), ensure_ascii=False) for fact in facts]


def write(path: Path, text: str | list[str]) -> Path:
    text = text if isinstance(text, str) else "\n".join(text) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.jsonl.gz"])
@pytest.mark.parametrize("format", ["auto", "jsonl"])
def test_json_lines(tmp_path: Path, name: str, format: str) -> None:
    path = write(tmp_path / name, lines(FACTS))
    assert list(read_facts(path, format)) == FACTS
    assert list(read_facts(str(path), limit=3)) == FACTS[:3]
    assert list(read_facts(path, limit=0)) == []


def test_gzip_is_told_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(gzip.compress("\n".join(lines(FACTS)).encode()))
    assert list(read_facts(path)) == FACTS


def test_bom_blank_lines_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(lines(FACTS)).encode())
    assert list(read_facts(path)) == FACTS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["facts.json", "facts.json.gz"])
def test_json_array(tmp_path: Path, indent: int | None, name: str) -> None:
    path = write(tmp_path / name, "\n" + json.dumps([fact.to_dict() for fact in FACTS], indent=indent))
    assert list(read_facts(path)) == FACTS
    assert list(read_facts(write(path, " [ ] "))) == []


def test_array_items_know_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.json", ["[", lines(FACTS)[0] + ",", '{"subject": "a"}, 7,', "{}]"])
    bad: list[BadRecord] = []
    assert list(read_facts(path, on_bad=bad.append)) == FACTS[:1]
    assert [record.line for record in bad] == [3, 3, 4]


@pytest.mark.parametrize("end", ["", ",", ", {]", "] []", " {}]"])
def test_broken_array(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "facts.json", "[\n" + lines(FACTS)[0] + "\n" + end)
    with pytest.raises(FactError, match=r"facts.json, line \d: not valid JSON"):
        list(read_facts(path, on_bad=lambda record: None))


@pytest.mark.parametrize("packed", [False, True])
def test_stdin(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    data = "\n".join([json.dumps({"subject": "a", "prompt": "{} is", "target": "x"}), "{"]).encode()
    data = gzip.compress(data) if packed else data
    stdin = SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdin", stdin)
    facts = read_facts("-")
    assert next(facts) == Fact("a", "{} is", "x", source="stdin")
    with pytest.raises(FactError, match="^stdin, line 2: not valid JSON"):
        next(facts)
    assert not stdin.buffer.closed


def test_source_defaults_to_the_files_name(tmp_path: Path) -> None:
    record = {"subject": "a", "prompt": "{} is", "target": "x", "source": None}
    path = write(tmp_path / "mine.jsonl", json.dumps(record))
    assert [fact.source for fact in read_facts(path)] == ["mine.jsonl"]


MALFORMED = [
    ('{"subject": "a", ', "not valid JSON: "),
    ("7", "the record is of type int; it must be a JSON object"),
    ('{"subject": "a", "prompt": "{} is"}', "field 'target' is missing"),
    ('{"subject": "X", "prompt": "Y is", "target": "x"}', "subject 'X' is not in the prompt 'Y is'"),
    ('{"subject": "X", "prompt": "{} is", "target": " "}', "the target is empty"),
    ('{"subject": "X", "prompt": "{} is", "target": "x", "metadata": 1}', "metadata is of type int"),
    ("[" * 100_000, "JSON that cannot be read"),
    ('{"subject": ' + "9" * 5000 + "}", "JSON that cannot be read"),
]


@pytest.mark.parametrize(("text", "rule"), MALFORMED)
def test_malformed_line_17(tmp_path: Path, text: str, rule: str) -> None:
    path = write(tmp_path / "facts.jsonl", [*lines(FACTS)[:16], text, *lines(FACTS)[16:]])
    facts = read_facts(path)
    assert [next(facts) for _ in range(16)] == FACTS[:16]
    with pytest.raises(FactError) as caught:
        next(facts)
    assert str(caught.value).startswith(f"{path}, line 17: {rule}")
    assert "\n" not in str(caught.value)

    bad: list[BadRecord] = []
    assert list(read_facts(path, on_bad=bad.append)) == FACTS
    assert [(record.file, record.line) for record in bad] == [(str(path), 17)]
    assert bad[0].rule.startswith(rule) and str(bad[0]) == str(caught.value)
    assert len(list(read_facts(path, limit=18, on_bad=bad.append))) == 18  # bad records do not count


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b'{"subject": "caf\xe9"}')
    with pytest.raises(FactError, match="line 1: byte 17 is not UTF-8"):
        list(read_facts(path))


def test_first_record_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl", ['{"name": "a"}', *lines(FACTS)])
    with pytest.raises(FactError, match=r"line 1: no known format has the fields \['name'\]"):
        list(read_facts(path))
    assert list(read_facts(path, on_bad=lambda record: None)) == FACTS


def test_cut_gzip_is_fatal(tmp_path: Path) -> None:
    path = write(tmp_path / "facts.jsonl.gz", lines(FACTS))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FactError, match="facts.jsonl.gz cannot be read after line"):
        list(read_facts(path, on_bad=lambda record: None))


def test_asked_for_wrongly_is_told_at_once(tmp_path: Path) -> None:
    for arguments, message in (
        ({"source": tmp_path / "none.jsonl"}, "none.jsonl does not exist"),
        ({"source": tmp_path}, "is a folder"),
        ({"source": "-", "format": "csv"}, "unknown format 'csv'; choose one of auto, jsonl"),
        ({"source": "-", "limit": -1}, "limit is -1"),
        ({"source": "datasets:"}, "names no dataset"),
    ):
        with pytest.raises(FactError, match=message):
            read_facts(**arguments)


class TestDatasets:
    """A real dataset, saved to disk: nothing is fetched."""

    ROWS = [
        {"subject": "a", "prompt": "{} is", "target": "x", "relation": None, "metadata": {"n": 1}},
        {"subject": "b", "prompt": "is", "target": "x", "relation": "P1", "metadata": None},
        {"subject": "c", "prompt": "{} is", "target": "y", "relation": "P1", "metadata": {"n": 2}},
    ]
    GOOD = [
        Fact("a", "{} is", "x", source="saved", metadata={"n": 1}),
        Fact("c", "{} is", "y", relation="P1", source="saved", metadata={"n": 2}),
    ]

    @pytest.fixture
    def saved(self, tmp_path: Path) -> str:
        import datasets

        datasets.Dataset.from_list(self.ROWS).save_to_disk(tmp_path / "saved")
        return f"datasets:{tmp_path / 'saved'}"

    @pytest.fixture
    def splits(self, tmp_path: Path) -> str:
        import datasets

        rows = {name: datasets.Dataset.from_list(self.ROWS[i:]) for name, i in (("early", 0), ("late", 2))}
        datasets.DatasetDict(rows).save_to_disk(tmp_path / "splits")
        return f"datasets:{tmp_path / 'splits'}"

    def test_rows(self, saved: str) -> None:
        bad: list[BadRecord] = []
        assert list(read_facts(saved, on_bad=bad.append)) == self.GOOD
        assert [record.line for record in bad] == [2]
        assert list(read_facts(saved, limit=1)) == self.GOOD[:1]
        with pytest.raises(FactError, match="saved, row 2: subject 'b' is not in the prompt"):
            list(read_facts(saved))

    def test_splits(self, splits: str) -> None:
        assert [fact.subject for fact in read_facts(f"{splits}:late")] == ["c"]
        for source in (splits, f"{splits}:never"):
            with pytest.raises(FactError, match="has the splits early, late; write datasets:.*:SPLIT"):
                read_facts(source)

    def test_saved_without_splits(self, saved: str) -> None:
        with pytest.raises(FactError, match="has no splits; leave the split out"):
            read_facts(f"{saved}:train")

    def test_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked: list[Any] = []

        def load(name: str, split: str | None) -> Any:
            asked.append((name, split))
            data = datasets.Dataset.from_list(self.ROWS[2:])
            return data if split else datasets.DatasetDict(train=data, test=data)

        monkeypatch.setattr(datasets, "load_dataset", load)
        for name in ("owner/facts", "owner/facts:test[:1]"):
            assert [fact.source for fact in read_facts(f"datasets:{name}")] == [name]
        assert asked == [("owner/facts", None), ("owner/facts", "test[:1]")]

    def test_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FactError, match="nowhere cannot be loaded: ") as caught:
            read_facts(f"datasets:{tmp_path}/nowhere")
        assert "\n" not in str(caught.value)
