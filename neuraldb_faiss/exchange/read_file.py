"""Validating reader of vector files; it keeps one number per entry and per key in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.errors import CorruptError, FactError, FormatError, NeuralDBError, StoreError
from neuraldb_faiss.exchange.layout import LOCAL, MARK, STATES, TENSORS, TYPES, VERSION, Sizes, read_line
from neuraldb_faiss.solver.objectives.registry import check_stored
from neuraldb_faiss.store import Piece, StoredFact
from neuraldb_faiss.store.transaction import SEGMENT_ENTRIES
from neuraldb_faiss.strict_json import INTEGERS, MAX_TEXT, is_count, is_strings, parse, parse_object

_MAX_HEADER = 16 << 20  # bytes; ours take some kilobytes, and safetensors itself would parse 100 MB
_MAX_LINE = MAX_TEXT
_BLOCK = 1 << 24  # bytes that are read at once
_UNSEEN = -1
_UNIT = 0.01  # how far float16 may leave a key's length from 1
_TEXT_STARTS = (b"{", b"[", b"\x1f\x8b", b"\xef\xbb\xbf")  # JSON, gzip; no length of a header ends so


class Numbering:
    """The entry ids that a file's entries get: its own in an empty database, those from `first` on in any other."""

    def __init__(self, entries: np.ndarray, first: int) -> None:
        self.ids = entries if first == 0 else np.arange(first, first + len(entries), dtype=np.int64)
        self._old = entries
        self._keep = first == 0
        self._lost: dict[int, int] = {}
        self._next = first + len(entries)

    def row(self, entry: int) -> int | None:
        """The row of an entry's vectors; None where the file has none."""
        at = int(np.searchsorted(self._old, entry))
        return at if at < len(self._old) and self._old[at] == entry else None

    def lost(self, entry: int) -> int:
        """The new id of an entry without vectors."""
        if self._keep:
            return entry
        if entry not in self._lost:
            self._lost[entry] = self._next
            self._next += 1
        return self._lost[entry]


class VectorFile:
    """A file that `export` wrote with format="safetensors", open for reading.

    Attributes:
        config: the settings of the database, without those of its history.
        entries: int64 [m], ascending.

    Raises:
        StoreError: the file cannot be read.
        FormatError: it is no such file, or one of a newer format.
        CorruptError: it is damaged, or was made to look like one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._look()
        try:
            self._file = safe_open(str(path), framework="numpy")
        except SafetensorError as error:
            raise CorruptError(f"{path} is no whole safetensors file ({error}): export it again") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
        self.config, self._runs = self._metadata()
        self.sizes = self._sizes()
        self.entries = self._whole("entries")
        self._key_rows = self._whole("key_rows")
        self._check_rows()

    def numbering(self, first: int) -> Numbering:
        return Numbering(self.entries, first)

    def pieces(self, numbering: Numbering) -> Iterator[Piece]:
        """Segments of at most SEGMENT_ENTRIES; their blocks are checked as they are read."""
        start = 0
        for number, prefixes in self._runs:
            for first in range(start, start + number, SEGMENT_ENTRIES):
                yield self._piece(first, min(first + SEGMENT_ENTRIES, start + number), prefixes, numbering)
            start += number

    def _piece(self, start: int, stop: int, prefixes: tuple[str, ...], numbering: Numbering) -> Piece:
        keys = slice(*(int(at) for at in np.searchsorted(self._key_rows, (start, stop))))

        def column(name: str) -> Iterator[np.ndarray]:
            if name == "entries":
                yield numbering.ids[start:stop]
            elif name == "key_rows":
                yield self._key_rows[keys] - np.int32(start)
            elif TENSORS[name][1] == "key":
                yield from self._blocks(name, keys.start, keys.stop)
            else:
                yield from self._blocks(name, start, stop)

        return Piece(stop - start, keys.stop - keys.start, prefixes, column)

    def facts(self, numbering: Numbering) -> Iterator[StoredFact]:
        """The rows of the facts, in order, their entries numbered anew."""
        states = np.full(len(self.entries), _UNSEEN, np.int8)  # of the entries that had a fact so far
        for number, line in enumerate(self._lines(), start=1):
            try:
                record = read_line(line)
                record["entry"] = self._entry(record, numbering, states)
                fact = StoredFact(**record)
            except (ValueError, FactError) as error:
                raise self._corrupt(f"fact {number}: {error}") from None
            yield fact
        if (idle := states == _UNSEEN).any():
            raise self._corrupt(f"entry {self.entries[int(idle.argmax())]} serves no fact")

    def _entry(self, record: dict[str, Any], numbering: Numbering, states: np.ndarray) -> int:
        """The new id of a fact's entry, whose state is noted in `states`. Raises ValueError where they do not fit."""
        entry, state = record["entry"], record.get("state", "live")
        if record["residual"] != self.config.residual:
            raise ValueError(f"its residual is of the kind {record['residual']!r}, the file's is not")
        row = numbering.row(entry)
        if row is None:
            if state != "suspended":
                raise ValueError(f"its entry {entry} has no vectors")
            return numbering.lost(entry)
        if states[row] not in (_UNSEEN, STATES.index(state)):
            raise ValueError(f"its entry {entry} is both {STATES[states[row]]} and {state}")
        states[row] = STATES.index(state)
        return int(numbering.ids[row])

    # ---- what the file must look like

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"{self.path}: {what}; nothing was imported")

    def _look(self) -> None:
        """Refuse what is no safetensors file before a library reads it."""
        try:
            with open(self.path, "rb") as file:
                start = file.read(9)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        if start.startswith(_TEXT_STARTS):
            raise FormatError(
                f"{self.path} holds facts without vectors: `neuraldb build {self.path} --model M --out DB` makes a"
                " database of them, `neuraldb add DB` takes them into one"
            )
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or start[8:] != b"{":
            raise FormatError(f"{self.path} is no safetensors file; `neuraldb export --format safetensors` makes one")
        if length > _MAX_HEADER:
            raise CorruptError(f"{self.path}: its header is said to take {length:,} bytes, ours are far shorter")

    def _metadata(self) -> tuple[DatabaseConfig, list[tuple[int, tuple[str, ...]]]]:
        metadata = self._file.metadata() or {}
        if metadata.get("format") != MARK:
            raise FormatError(f"{self.path} is a safetensors file, but no export of this program")
        if metadata.get("version") != VERSION:
            raise FormatError(
                f"{self.path} has version {metadata.get('version')!r}, this program reads {VERSION}:"
                " install a newer neuraldb-faiss"
            )
        try:
            settings = parse_object(metadata["settings"])
            runs = [(number, tuple(prefixes)) for number, prefixes in parse(metadata["prefixes"])]
        except (KeyError, TypeError, ValueError) as error:
            raise self._corrupt(f"its metadata cannot be read ({type(error).__name__}: {error})") from None
        for number, prefixes in runs:
            if not is_count(number) or number < 1 or not is_strings(list(prefixes)):
                raise self._corrupt("its metadata says no counts of entries and their prefixes")
        return self._config(settings), runs

    def _config(self, settings: dict[str, Any]) -> DatabaseConfig:
        try:
            config = DatabaseConfig.from_json({name: value for name, value in settings.items() if name not in LOCAL})
            config.check_known()
            check_stored(config.residual)
            _ = config.model
        except (NeuralDBError, ValueError) as error:
            raise self._corrupt(str(error)) from None
        return config

    def _sizes(self) -> Sizes:
        names = set(self._file.keys())
        if odd := sorted(names ^ set(TENSORS)):
            raise self._corrupt(f"it must hold the tensors of an export and no others (look at {odd[0][:40]!r})")
        shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in TENSORS}
        entry, key, byte = ((*shapes[name], 0)[0] for name in ("entries", "key_norms", "facts"))
        sizes = Sizes(entry, key, byte, d1=self.config.d1, d2=self.config.d2)
        for name, (dtype, _, _) in TENSORS.items():
            found = self._file.get_slice(name).get_dtype()
            if (found, shapes[name]) != (TYPES[dtype], sizes.shape(name)):
                raise self._corrupt(
                    f"tensor {name} is {found} {list(shapes[name])}, should be {TYPES[dtype]} {list(sizes.shape(name))}"
                )
        if sum(number for number, _ in self._runs) != sizes.entry:
            raise self._corrupt("its metadata counts other entries than its tensors hold")
        return sizes

    def _check_rows(self) -> None:
        entries, rows = self.entries, self._key_rows
        if len(entries) and (entries[0] < 0 or entries[-1] >= INTEGERS or (np.diff(entries) <= 0).any()):
            raise self._corrupt("the ids in tensor entries are not ascending from 0 on")
        if len(rows) and (rows[0] < 0 or rows[-1] >= len(entries) or (np.diff(rows) < 0).any()):
            raise self._corrupt("tensor key_rows does not name rows of entries in ascending order")

    # ---- reading

    def _whole(self, name: str) -> np.ndarray:
        return np.asarray(self._file.get_tensor(name))

    def _slices(self, name: str, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) in blocks of some 16 MiB."""
        dtype, shape = TENSORS[name][0], self.sizes.shape(name)
        step = max(1, _BLOCK // (np.dtype(dtype).itemsize * max(1, *shape[1:], 1)))
        tensor = self._file.get_slice(name) if start < stop else None
        for first in range(start, stop, step):
            assert tensor is not None
            yield first, np.asarray(tensor[first : min(first + step, stop)])

    def _blocks(self, name: str, start: int, stop: int) -> Iterator[np.ndarray]:
        for first, block in self._slices(name, start, stop):
            if not self._is_sound(name, block, first):
                raise self._corrupt(f"tensor {name} holds values that it cannot have, near row {first}")
            yield block

    def _is_sound(self, name: str, block: np.ndarray, first: int) -> bool:
        """False for NaN, infinities, and numbers that would make a search or a sum go wrong."""
        if name == "keys":
            lengths = np.linalg.norm(block.astype(np.float32), axis=1)
            return bool(((np.abs(lengths - 1) < _UNIT) | (lengths == 0)).all())
        if name == "key_tokens":
            return bool((block >= -1).all())
        if name == "residuals":
            scales = next(self._slices("residual_scales", first, first + len(block)))[1]
            with np.errstate(over="ignore", invalid="ignore"):
                return bool(np.isfinite(block.astype(np.float32) * scales[:, None]).all())
        return bool((np.isfinite(block) & (block >= 0)).all())  # key_norms, residual_scales

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        for _, block in self._slices("facts", 0, self.sizes.byte):
            *lines, rest = (rest + block.tobytes()).split(b"\n")
            yield from lines
            if len(rest) > _MAX_LINE:
                raise self._corrupt(f"a fact takes more than {_MAX_LINE:,} bytes")
        if rest:
            raise self._corrupt("tensor facts does not end with a line's end")
