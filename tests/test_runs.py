"""A run's file: gone on with after a kill, refused for another run, unharmed by errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.runs import RunWriter, read_run, surroundings

IDENTITY = {"method": "neuraldb", "seed": 0, "layers": (3, 4)}
ABOUT = {"versions": {"torch": "2"}, "command": "neuraldb eval"}


def rows(*names: str) -> list[dict[str, object]]:
    return [{"case": name, "efficacy": 1.0} for name in names]


def test_a_run_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        assert not path.exists() and not run.rows  # nothing is made before there is something to say
        run.add(rows("a"))
        run.add(rows("b"))
    with RunWriter(path, IDENTITY, {"command": "again"}) as run:
        assert list(run.rows) == ["a", "b"]
        run.add(rows("c"))
    found = read_run(path)
    assert list(found.rows) == ["a", "b", "c"] and found.method == "neuraldb"
    assert found.header["command"] == "neuraldb eval" and found.identity["layers"] == [3, 4]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("note") for line in lines] == [None, None, None, "resumed", None]
    assert lines[3]["command"] == "again"


@pytest.mark.parametrize("cut", range(1, 30))
def test_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("a", "b"))
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert list(read_run(path).rows) == ["a"]
    with RunWriter(path, IDENTITY, ABOUT) as run:
        assert list(run.rows) == ["a"]
        run.add(rows("b", "c"))
    assert list(read_run(path).rows) == ["a", "b", "c"]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("")
    (tmp_path / "x.jsonl").symlink_to("victim")
    with RunWriter(tmp_path / "x.jsonl", IDENTITY, ABOUT) as run, pytest.raises(EvaluationError, match="is a link"):
        run.add(rows("a"))
    assert (tmp_path / "victim").read_text() == ""


def test_torn_header(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("a"))
    path.write_bytes(path.read_bytes()[:20])
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("b"))
    assert list(read_run(path).rows) == ["b"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("a"))
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match='another run: method is "neuraldb" there and "memit" here; seed is 0'):
        RunWriter(path, {**IDENTITY, "method": "memit", "seed": 1}, ABOUT)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["notes\n", "notes", '{"case": "a"}\n', "[1]\n"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError):
        RunWriter(path, IDENTITY, ABOUT)
    assert path.read_text() == content


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("a", "b"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", lines[2]]) + "\n")
    with pytest.raises(EvaluationError, match="line 2: not valid JSON"):
        read_run(path)
    path.write_text("\n".join([lines[0], "7"]) + "\n")
    with pytest.raises(EvaluationError, match="line 2: neither"):
        read_run(path)
    path.write_text(lines[0].replace('"neuraldb_run": 1', '"neuraldb_run": 9') + "\n")
    with pytest.raises(EvaluationError, match="run format 9"):
        read_run(path)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_run(tmp_path / "none")
    with pytest.raises(EvaluationError, match="is a folder"):
        RunWriter(tmp_path, IDENTITY, ABOUT)


def test_a_second_process_cannot_add_to_a_run(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with RunWriter(path, IDENTITY, ABOUT) as run:
        run.add(rows("a"))
        with RunWriter(path, IDENTITY, ABOUT) as other, pytest.raises(EvaluationError, match="another process"):
            other.add(rows("b"))
    assert list(read_run(path).rows) == ["a"]


def test_a_run_records_versions_hardware_and_command() -> None:
    about = surroundings()
    assert {"versions", "hardware", "command", "started"} <= set(about)
    assert about["versions"]["torch"] and about["hardware"]["cpus"]
    json.dumps(about)
