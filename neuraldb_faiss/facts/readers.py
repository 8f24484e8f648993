"""Facts from files, stdin and Hugging Face datasets, one at a time, and the place of every bad record."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.fact import Fact
from neuraldb_faiss.facts.formats import FORMATS, convert, detect
from neuraldb_faiss.facts.metadata import clip
from neuraldb_faiss.facts.relations import Relations
from neuraldb_faiss.facts.tables import delimiter_of, read_table

_DATASETS = "datasets:"
_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that gave no fact: its file, its line (from 1; of a dataset, the row), the rule it breaks."""

    file: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.file}, {'row' if self.file.startswith(_DATASETS) else 'line'} {self.line}: {self.rule}"


OnBad = Callable[[BadRecord], None]
# a line number and what stands there: a JSON value, or the error that kept it from being one
_Item = tuple[int, Any]


def read_facts(
    source: str | Path, format: str = "auto", *, limit: int | None = None, on_bad: OnBad | None = None,
    relations: Relations | None = None,
) -> Iterator[Fact]:  # fmt: skip
    """Facts of a source, lazily and in its order; nothing is folded (see ``fold``).

    source: a file of JSON lines, one JSON array or a table (CSV or TSV with a header that names the column
    ``subject``), plain or gzipped (told by its bytes, not its name);
    "-" for stdin; "datasets:NAME[:SPLIT]" for a Hugging Face dataset by name or by a saved one's folder.
    format: "jsonl" (Fact's own JSON form, or triples: subject, relation and object), "counterfact" (its nested form, or
    flat as EasyEdit's, KnowEdit's and MEMIT's lists of requests), "zsre" (src, subject, answers or alt),
    "questions" (question, subject, answers), or "auto": told by the first record that has one.
    limit: stop after so many good facts.
    on_bad: called with every bad record, which is then left out.
    relations: the words of triples, as ``read_relations`` reads them; the package's own (None).

    Raises FactError: at once for a missing source, an unknown format, a limit below 0; while reading for the
    first bad record, unless on_bad is given, and always for damaged gzip data or a damaged JSON array, after
    which nothing can be read.
    """
    return (fact for _, fact in _numbered(source, format, limit, on_bad, relations))


def read_numbered(source: str | Path, format: str = "auto") -> Iterator[tuple[int, Fact]]:
    """``read_facts`` with every fact's line (from 1; of a dataset, its row) before it; a bad record is an error."""
    return _numbered(source, format, None, None)


def _numbered(
    source: str | Path, format: str, limit: int | None, on_bad: OnBad | None, relations: Relations | None = None
) -> Iterator[tuple[int, Fact]]:  # fmt: skip
    if format not in FORMATS:
        raise FactError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    if limit is not None and limit < 0:
        raise FactError(f"limit is {limit}; it must be 0 or more")
    place = str(source)
    if place.startswith(_DATASETS):
        name, colon, split = place.removeprefix(_DATASETS).partition(":")
        rows = enumerate(_dataset(place, name, split), 1)
        name = Path(name).name if Path(name).is_dir() else name
        return _facts(rows, place, name + colon + split, format, limit, on_bad, relations)
    if place != "-":
        _check_file(Path(source))
    name = "stdin" if place == "-" else Path(source).name
    return _facts(_items(place), name if place == "-" else place, name, format, limit, on_bad, relations)


def read_records(source: str) -> Iterator[tuple[int, Any]]:
    """(line, or row of a dataset, from 1; JSON value) of a source as ``read_facts`` takes it, whatever it holds.

    Raises FactError for the first line that is no JSON, and for a source that cannot be read.
    """
    if source.startswith(_DATASETS):
        name, _, split = source.removeprefix(_DATASETS).partition(":")
        yield from enumerate(_dataset(source, name, split), 1)
        return
    for line, item in _items(source):
        if isinstance(item, FactError):
            raise FactError(f"{source}, line {line}: {item}")
        yield line, item


def check_texts(source: str | Path) -> None:
    """Raises FactError where `read_texts` would find no file; for callers that load a model first."""
    if not str(source).startswith(_DATASETS) and not Path(source).is_file():
        raise FactError(f"there is no text file {source}: name a file of JSON lines with a `text` field")


def read_texts(source: str | Path) -> Iterator[str]:
    """The field ``text`` of every record of a source as ``read_facts`` takes it.

    Raises FactError where there is no such file, and for the first record without a text.
    """
    source = str(source)
    check_texts(source)
    for line, record in read_records(source):
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise FactError(f'{source}, record {line}: a text is an object with the field "text"')
        yield text


def _facts(
    items: Iterable[_Item],
    file: str,
    source: str,
    format: str,
    limit: int | None,
    on_bad: OnBad | None,
    relations: Relations | None,
) -> Iterator[tuple[int, Fact]]:
    good = 0
    if limit == 0:
        return
    for line, item in items:
        try:
            if isinstance(item, FactError):
                raise item
            if format == "auto":
                format = detect(item)
            fact = convert(item, format, source, relations)
        except FactError as error:
            bad = BadRecord(file, line, str(error))
            if on_bad is None:
                raise FactError(str(bad)) from None
            on_bad(bad)
            continue
        yield line, fact
        good += 1
        if good == limit:
            return


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise FactError(f"facts file {path} is a folder; name a file, or datasets:{path} for a saved dataset")
    if not path.exists():
        raise FactError(f"facts file {path} does not exist; check the path")


@contextmanager
def _opened(place: str) -> Iterator[BinaryIO]:
    """The bytes of a file or of stdin, unpacked if they are gzip's."""
    raw = sys.stdin.buffer if place == "-" else open(place, "rb")  # noqa: SIM115
    try:
        # a BufferedReader in both cases: peek works where a pipe cannot seek
        packed = cast(Any, raw).peek(2)[:2] == b"\x1f\x8b"
        yield cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
    finally:
        if place != "-":
            raw.close()


def _items(place: str) -> Iterator[_Item]:
    file, line = "stdin" if place == "-" else place, 0
    try:
        with _opened(place) as stream:
            first = True
            for line, data in enumerate(stream, 1):
                data = data.removeprefix(b"\xef\xbb\xbf").strip() if first else data.strip()
                if not data:
                    continue
                if first and data.startswith(b"["):
                    # a record is an object, so a bracket up front can only open an array of records
                    yield from _array(data + b"\n" + stream.read(), file, line)
                    return
                if first and (delimiter := _delimiter(data)) is not None:
                    yield from _table(data, stream, delimiter, file, line)
                    return
                item = _parse(data)
                if first and isinstance(item, FactError) and not data.startswith(b"{"):
                    item = FactError(
                        "neither JSON nor the header of a table: a table's first line names its columns, among them"
                        " subject, prompt and target"
                    )
                first = False
                yield line, item
    except (OSError, EOFError, zlib.error) as error:
        raise FactError(f"{file} cannot be read after line {line}: {_one_line(error)}") from None


def _parse(data: bytes) -> Any:
    """The JSON value of a line, or the FactError that says why there is none."""
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        return FactError(f"byte {error.start + 1} is not UTF-8; convert the file to UTF-8")
    except json.JSONDecodeError as error:
        return FactError(f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return FactError(f"JSON that cannot be read: {_one_line(error)}")


def _array(data: bytes, file: str, start: int) -> Iterator[_Item]:
    """The items of one JSON array, each with the line it starts on; the array starts on line `start`."""
    line, seen = start, 0
    try:
        text = data.decode()
        at = _skip(text, 1)
        if text[at : at + 1] != "]":
            while True:
                line, seen = line + text.count("\n", seen, at), at
                item, at = _DECODER.raw_decode(text, at)
                yield line, item
                at = _skip(text, at)
                if text[at : at + 1] != ",":
                    break
                at = _skip(text, at + 1)
        if text[at : at + 1] != "]" or text[at + 1 :].strip():
            raise json.JSONDecodeError("the array neither goes on nor ends", text, at)
    except json.JSONDecodeError as error:
        line = start + error.lineno - 1
        raise FactError(f"{file}, line {line}: not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise FactError(f"{file}, line {line}: JSON that cannot be read: {_one_line(error)}") from None


def _delimiter(data: bytes) -> str | None:
    """The delimiter of the table whose header this is; None for a line of JSON, and for anything else."""
    return None if data.startswith(b"{") else delimiter_of(data.decode("utf-8", "replace"))


def _table(header: bytes, stream: BinaryIO, delimiter: str, file: str, start: int) -> Iterator[_Item]:
    """The rows of a table, each with the line it ends on; the header is line `start`."""
    line = start

    def text() -> Iterator[str]:
        nonlocal line
        yield header.decode() + "\n"
        for data in stream:
            line += 1
            yield data.decode()

    try:
        for at, record in read_table(text(), delimiter):
            yield start + at - 1, record
    except UnicodeDecodeError as error:
        told = f"byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
        raise FactError(f"{file}, line {line}: {told}") from None
    except FactError as error:
        raise FactError(f"{file}, line {line}: {error}") from None


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _BLANK:
        at += 1
    return at


def _dataset(place: str, name: str, split: str) -> Iterable[Any]:
    """The rows of "datasets:NAME[:SPLIT]"; NAME may be a folder written by save_to_disk."""
    if not name:
        raise FactError(f"{place} names no dataset; write datasets:NAME or datasets:NAME:SPLIT")
    import datasets

    try:
        data = _load(datasets, name, split)
    except Exception as error:  # loading runs many libraries, and each has errors of its own
        raise FactError(f"{place} cannot be loaded: {_one_line(error)}") from None
    if isinstance(data, dict):
        splits = list(data)
        split = split or ("train" if "train" in data else splits[0] if len(splits) == 1 else "")
        if split not in data:
            raise FactError(f"{place} has the splits {', '.join(splits)}; write datasets:{name}:SPLIT")
        data = data[split]
    return cast(Iterable[Any], data)


def _load(datasets: Any, name: str, split: str) -> Any:
    saved = [Path(name, file).is_file() for file in ("dataset_dict.json", "state.json")]
    if any(saved):
        data = datasets.load_from_disk(name)
        if saved[0] or not split:
            return data
        raise ValueError("the saved dataset has no splits; leave the split out")
    return datasets.load_dataset(name, split=split or None)


def _one_line(error: BaseException) -> str:
    return clip(" ".join(str(error).split()) or type(error).__name__, 300)[1:-1]
