"""Vector files from strangers, and damaged ones: refused with an error of ours that names the file; nothing changes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.commands import digest
from helpers.exchanged import EDITOR, edit, rows
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import CorruptError, FormatError, NeuralDBError, StoreError
from neuraldb_faiss.exchange import export, read_file
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, verify

Header = dict[str, Any]
Tensors = dict[str, bytes]
Change = Callable[[Header, Tensors], None]


@pytest.fixture
def file(rich: Store, quick_path: Path) -> Path:
    export(rich, quick_path / "facts.safetensors", "safetensors")
    return quick_path / "facts.safetensors"


@pytest.fixture
def into(quick_path: Path) -> Path:
    changes.build([Fact("Bern", "In {} is", "Peru")], EDITOR, quick_path / "into").close()
    return quick_path / "into"


def assert_refused(file: Path, into: Path, error: type[NeuralDBError], match: str) -> None:
    """Neither a new database nor a part of one, and every file is as it was."""
    before = digest(into)
    out = into.parent / "out"
    for where in ({"out": out}, {"into": into}):
        with pytest.raises(error, match=match) as caught:
            import_file(file, **where)
        assert type(caught.value) is error and file.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not out.exists() and digest(into) == before
    store = Store(into)
    assert verify(store, deep=True) == []
    store.close()


# ---- no file of ours


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (b"", FormatError, "no safetensors file"),
        (b"\0" * 8, FormatError, "no safetensors file"),
        (b'{"subject": "Oslo"}\n', FormatError, "facts without vectors: `neuraldb build .* --model M"),
        (b'[{"subject": "Oslo"}]', FormatError, "neuraldb add"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0", FormatError, "facts without vectors"),
        (b"SQLite format 3\0" + b"\0" * 99, FormatError, "no safetensors file"),
        (b"\x80\x04\x95\0\0\0\0\0\0\0\0.", FormatError, "no safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", CorruptError, "its header is said to take 9,223,372"),
        (struct.pack("<Q", 17 << 20) + b"{" + b" " * (17 << 20), CorruptError, "its header is said to take 17,825,792"),
        (struct.pack("<Q", 400) + b"{}", CorruptError, "no whole safetensors file"),
        (struct.pack("<Q", 8) + b"{" * 8, CorruptError, "no whole safetensors file"),
        (struct.pack("<Q", 8) + b"{}      ", FormatError, "no export of this program"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{"format":"pt"}}        ', FormatError, "no export of this program"),
    ],
    ids=lambda value: None if isinstance(value, (type, str)) else "",
)  # fmt: skip
def test_other_files_are_refused(into: Path, data: bytes, error: type[NeuralDBError], match: str) -> None:
    path = into.parent / "strange.bin"
    path.write_bytes(data)
    assert_refused(path, into, error, match)


def test_no_file_and_a_folder_are_refused(into: Path) -> None:
    assert_refused(into.parent / "missing", into, StoreError, "No such file")
    (into.parent / "folder").mkdir()
    assert_refused(into.parent / "folder", into, StoreError, "Is a directory")


def test_a_newer_version_is_refused(file: Path, into: Path) -> None:
    edit(file, lambda header, _: header["__metadata__"].update(version="2"))
    assert_refused(file, into, FormatError, "version '2', this program reads 1: install a newer")


# ---- the container


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_file_cut_short_or_too_long_is_refused(file: Path, into: Path, where: str) -> None:
    data = file.read_bytes()
    file.write_bytes({"first": data[:100], "middle": data[: len(data) // 2], "last": data + b"\0"}[where])
    assert_refused(file, into, CorruptError, "no whole safetensors file")


def settings_of(header: Header, **changed: Any) -> None:
    found = {**json.loads(header["__metadata__"]["settings"]), **changed}
    header["__metadata__"]["settings"] = json.dumps(found)


def metadata(**changed: str | None) -> Change:
    def change(header: Header, _: Tensors) -> None:
        for name, value in changed.items():
            header["__metadata__"].pop(name)
            if value is not None:
                header["__metadata__"][name] = value

    return change


def setting(**changed: Any) -> Change:
    return lambda header, _: settings_of(header, **changed)


def array(name: str, dtype: str, function: Callable[[np.ndarray], Any]) -> Change:
    """Change a tensor's values in place."""

    def change(header: Header, tensors: Tensors) -> None:
        values = np.frombuffer(tensors[name], dtype).reshape(header[name]["shape"]).copy()
        function(values)
        tensors[name] = values.tobytes()

    return change


def put(name: str, dtype: str, at: Any, value: Any) -> Change:
    return array(name, dtype, lambda values: values.__setitem__(at, value))


def shape(name: str, size: list[int]) -> Change:
    def change(header: Header, tensors: Tensors) -> None:
        width = len(tensors[name]) // int(np.prod(header[name]["shape"]))
        header[name]["shape"] = size
        tensors[name] = (tensors[name] * 9)[: width * int(np.prod(size))]

    return change


def dtype(name: str, letters: str, of: str) -> Change:
    def change(header: Header, tensors: Tensors) -> None:
        known = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "|u1"}
        values = np.frombuffer(tensors[name], known[header[name]["dtype"]]).astype(of)
        header[name]["dtype"] = letters
        tensors[name] = values.tobytes()

    return change


def drop(name: str) -> Change:
    def change(header: Header, tensors: Tensors) -> None:
        del header[name], tensors[name]

    return change


def extra(header: Header, tensors: Tensors) -> None:
    header["pickle"] = {"dtype": "U8", "shape": [1]}
    tensors["pickle"] = b"."


CONTAINERS = {
    "no keys": (drop("keys"), r"look at 'keys'"),
    "no facts": (drop("facts"), "look at 'facts'"),
    "another tensor": (extra, "look at 'pickle'"),
    "keys of float32": (dtype("keys", "F32", "<f4"), r"keys is F32 \[10, 12\], should be F16 \[10, 12\]"),
    "entries of int32": (dtype("entries", "I32", "<i4"), "entries is I32"),
    "narrow keys": (shape("keys", [10, 11]), r"keys is F16 \[10, 11\], should be"),
    "few keys": (shape("keys", [9, 12]), "tensor keys is"),
    "flat keys": (shape("keys", [120]), "tensor keys is"),
    "few residuals": (shape("residuals", [5, 8]), "tensor residuals is"),
    "many entries": (shape("entries", [7]), "should be"),
    "entries without dimensions": (shape("entries", []), "tensor entries is"),
    "few scales": (shape("residual_scales", [3]), "residual_scales is"),
    "no metadata but ours": (metadata(settings=None), "metadata cannot be read"),
    "settings that are no JSON": (metadata(settings="{"), "metadata cannot be read"),
    "settings too deep": (metadata(settings="[" * 100_000), "metadata cannot be read"),
    "settings that are a list": (metadata(settings="[]"), "its metadata cannot be read .*no JSON object"),
    "prefixes that are no pairs": (metadata(prefixes="[1]"), "metadata cannot be read"),
    "prefixes that are numbers": (metadata(prefixes="[[6,[1]]]"), "counts of entries"),
    "no entries behind prefixes": (metadata(prefixes='[[0,["x"]],[6,["x"]]]'), "counts of entries"),
    "prefixes of fewer entries": (metadata(prefixes='[[5,["x"]]]'), "counts other entries"),
    "no fingerprint": (setting(fingerprint=None), "setting fingerprint"),
    "a fingerprint of nothing": (setting(fingerprint="{}"), "fingerprint cannot be read"),
    "another width": (setting(d1=13), r"should be F16 \[10, 13\]"),
    "a huge width": (setting(d2=2**40), "setting d2"),
    "a width of text": (setting(d1="12"), "setting d1"),
    "a gate of 2": (setting(gamma=2.0), "the setting gamma is 2.0"),
    "a gate of text": (setting(gamma="0"), "setting gamma"),
    "an unknown residual": (setting(residual="evil"), "setting residual"),
    "an unknown kind of keys": (setting(keys=["two"]), "setting keys"),
    "an index of text": (setting(index="flat"), "setting index"),
    "an infinite setting": (setting(other=float("inf")), "Infinity is no number of JSON"),
    "half of a surrogate": (setting(other="\ud800"), "half of a surrogate pair"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_is_not_as_described_is_refused(file: Path, into: Path, name: str) -> None:
    change, match = CONTAINERS[name]
    edit(file, change)
    assert_refused(file, into, CorruptError, match)


@pytest.mark.parametrize(
    "text",
    ['{"keys":{"dtype":"F16","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,8]}}',
     '{"keys":{"dtype":"O","shape":[1],"data_offsets":[0,8]}}',
     '{"keys":{"dtype":"U8","shape":[8],"data_offsets":[8,0]}}',
     '{"keys":{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}}', "{" * 200_000],
)  # fmt: skip
def test_headers_that_lie_are_refused(into: Path, text: str) -> None:
    path = into.parent / "lying.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + b"\0" * 8)
    assert_refused(path, into, CorruptError, "no whole safetensors file")


# ---- values


VALUES = {
    "a NaN in a key": (put("keys", "<f2", (3, 5), np.nan), "tensor keys holds values"),
    "an infinity in a key": (put("keys", "<f2", (9, 11), np.inf), "tensor keys holds values"),
    "a long key": (array("keys", "<f2", lambda keys: keys.__imul__(np.float16(1.5))), "tensor keys holds values"),
    "a NaN in a residual": (put("residuals", "<f2", (0, 0), np.nan), "tensor residuals holds values"),
    "an infinite residual": (put("residuals", "<f2", (5, 7), -np.inf), "tensor residuals holds values"),
    "a residual that overflows": (put("residual_scales", "<f4", 1, 3e38), "tensor residuals holds values"),
    "a NaN in a scale": (put("residual_scales", "<f4", 2, np.nan), "tensor residual"),
    "a negative scale": (put("residual_scales", "<f4", 2, -1), "tensor residual_scales holds values"),
    "a NaN in a norm": (put("key_norms", "<f4", 2, np.nan), "tensor key_norms holds values"),
    "an infinite norm": (put("key_norms", "<f4", 2, np.inf), "tensor key_norms holds values"),
    "a token below -1": (put("key_tokens", "<i4", 2, -2), "tensor key_tokens holds values"),
    "entries out of order": (array("entries", "<i8", lambda ids: ids[::-1].sort()), "ascending"),
    "an entry twice": (put("entries", "<i8", 1, 0), "ascending"),
    "a negative entry": (put("entries", "<i8", 0, -1), "ascending"),
    "an entry that JSON cannot say": (put("entries", "<i8", -1, 2**62), "ascending"),
    "key rows out of order": (put("key_rows", "<i4", 0, 3), "key_rows"),
    "a key row beyond": (put("key_rows", "<i4", -1, 6), "key_rows"),
    "a negative key row": (put("key_rows", "<i4", 0, -1), "key_rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_numbers_that_would_do_harm_are_refused(file: Path, into: Path, name: str) -> None:
    change, match = VALUES[name]
    edit(file, change)
    assert_refused(file, into, CorruptError, match)


# ---- facts


def lines(function: Callable[[list[dict[str, Any]]], Any]) -> Change:
    """Change the facts' records."""

    def change(header: Header, tensors: Tensors) -> None:
        records = [json.loads(line) for line in tensors["facts"].splitlines()]
        function(records)
        raw(b"".join(json.dumps(record).encode() + b"\n" for record in records))(header, tensors)

    return change


def oslo(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of Oslo's two rows, one for each of its entries (0 and 1)."""
    return next(record for record in records if record["subject"] == "Oslo")


def first(**changed: Any) -> Change:
    return lines(lambda records: oslo(records).update(changed))


def raw(data: bytes) -> Change:
    def change(header: Header, tensors: Tensors) -> None:
        tensors["facts"] = data
        header["facts"]["shape"] = [len(data)]

    return change


FACTS = {
    "no JSON": (raw(b"{}{}\n"), "fact 1: Extra data"),
    "no object": (raw(b"[]\n"), "fact 1: it is no JSON object"),
    "too deep": (raw(b"[" * 100_000 + b"\n"), "fact 1: nested too deep"),
    "no text": (raw(b"\xff\xfe\n"), "fact .: "),
    "an open end": (raw(b"{}"), "does not end with a line's end"),
    "no facts": (raw(b""), "entry 0 serves no fact"),
    "an unknown field": (first(made=1), "fact .: it has an unknown field 'made'"),
    "no subject": (lines(lambda records: oslo(records).pop("subject")), "fact .: it has no subject"),
    "an empty target": (first(target=" "), "fact .: the target is empty"),
    "a subject that is not there": (first(subject="Bergen", prompt="Oslo is"), "is not in the prompt"),
    "a number for a text": (first(time=7), "time must be a string"),
    "a text for a number": (first(loss="0"), "loss must be a number"),
    "an infinite loss": (first(loss=float("inf")), "Infinity is no number of JSON"),
    "a loss beyond": (raw(b'{"loss": 1e999}\n'), "fact .: a number too large"),
    "a NaN in metadata": (first(metadata={"x": float("nan")}), "NaN is no number of JSON"),
    "metadata that is a list": (first(metadata=[1]), "metadata"),
    "took that is a number": (first(took=1), "took must be true or false"),
    "an unknown state": (first(state="dead"), "state must be one of live, suspended, contested"),
    "two states of an entry": (first(entry=5, state="suspended"), "its entry 5 is both contested and suspended"),
    "sources that are a text": (first(sources="a"), "sources must be a list"),
    "half of a surrogate": (first(key_id="\ud800"), "fact .: .*half of a surrogate pair"),
    "another residual": (first(residual="none"), "of the kind 'none'"),
    "an entry of text": (first(entry="0"), "entry must be the id"),
    "a negative entry": (first(entry=-1), "entry must be the id"),
    "an entry that is true": (first(entry=True), "entry must be the id"),
    "an entry without vectors": (first(entry=99), "its entry 99 has no vectors"),
    "an entry without facts": (lines(lambda records: records.remove(oslo(records))), "entry 0 serves no fact"),
    "two targets": (first(target="Chile"), "'Oslo is in' has two targets"),
    "one id for two facts": (lines(lambda records: [record.update(id="tower") for record in records]), "shares its id"),
    "a row twice": (lines(lambda records: records.append(oslo(records))), "'Oslo is in' has two rows for one entry"),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_break_a_rule_are_refused(file: Path, into: Path, name: str) -> None:
    change, match = FACTS[name]
    edit(file, change)
    assert_refused(file, into, CorruptError, match)


def test_a_line_that_would_fill_the_memory_is_refused(file: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_file, "_MAX_LINE", 1000)
    monkeypatch.setattr(read_file, "_BLOCK", 100)
    edit(file, raw(b'{"subject": "' + b"x" * 5000 + b'"}\n'))
    assert_refused(file, into, CorruptError, "a fact takes more than 1,000 bytes")


def test_sql_and_paths_in_texts_are_texts(file: Path, quick_path: Path) -> None:
    harm = "'); DROP TABLE facts; -- ../../../etc/passwd\0\n\u202e{}{}"
    edit(file, lines(lambda records: [record.update(time=harm, sources=[harm]) for record in records]))
    made = import_file(file, out=quick_path / "made")
    assert {row["time"] for row in rows(made)} == {harm} and rows(made)[0]["sources"] == (harm,)
    assert verify(made, deep=True) == []


@settings(max_examples=60, deadline=None)
@given(data=some.data())
def test_a_flipped_byte_never_ends_in_a_traceback(
    data: some.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = FLIPPED.read_bytes()
    at = data.draw(some.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(some.integers(1, 255))
    folder = tmp_path_factory.mktemp("flip")
    (folder / "file").write_bytes(changed)
    try:
        made = import_file(folder / "file", out=folder / "out")
    except NeuralDBError as error:
        assert "file" in str(error) and not (folder / "out").exists()
    else:  # the format has no checksums: a changed letter or digit is another letter or digit
        assert verify(made, deep=True) == []


FLIPPED = Path(__file__).resolve().parent.parent / "data" / "exchange-1" / "facts.safetensors"
