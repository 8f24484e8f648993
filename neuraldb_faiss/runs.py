"""A run: a file of JSON lines, a header and then one row a case, that a killed evaluation goes on with.

The header says what was measured and how. `identity` decides whether a file may be gone on with; what surrounds
it (versions, hardware, command, time) is told for people, and told again where a run was resumed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.store import files

FORMAT = 1
_HEADER = b'{"neuraldb_run"'
_PACKAGES = ("neuraldb-faiss", "torch", "transformers", "faiss-cpu", "faiss-gpu", "scipy", "scikit-learn", "lm-eval")

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as it was read: header and rows by case, in the order of the file."""

    path: Path
    header: Mapping[str, Any]
    rows: Mapping[str, Row]

    @property
    def identity(self) -> Mapping[str, Any]:
        identity: Mapping[str, Any] = self.header["identity"]
        return identity

    @property
    def method(self) -> str:
        return str(self.identity.get("method", "?"))


class RunWriter:
    """Appends rows to a run's file; what is there already is in `rows`. One process at a time.

    Nothing is made or changed before the first `add`.

    Raises:
        EvaluationError: the file is another run's, or no run's, or another process writes it. It stays as it was.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.identity: Mapping[str, Any] = json.loads(json.dumps(identity))
        self.rows: dict[str, Row] = {}
        self._about = about
        self._file: IO[bytes] | None = None
        if self.path.is_dir():
            raise EvaluationError(f"{self.path} is a folder: name a file for the rows")
        if self.path.exists():
            self._read()

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows, each with its "case"; on disk when this returns."""
        file = self._file or self._open()
        for row in rows:
            self.rows[row["case"]] = row
            _write(file, row)
        file.flush()
        os.fsync(file.fileno())

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Append something that is told to people and compared with nothing."""
        _write(self._file or self._open(), {"note": name, **value})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> int:
        """Take over the rows that are there; the number of bytes that end in a whole line."""
        whole, torn = _whole(self.path)
        if not whole:
            if torn and not _HEADER.startswith(torn[: len(_HEADER)]):
                raise EvaluationError(f"{self.path} is there already and is no run: name another file")
            return 0
        run = _parse(self.path, whole)
        if different := _differences(run.identity, self.identity):
            raise EvaluationError(
                f"{self.path} is another run: {'; '.join(different)}. Name another file, or delete it"
            )
        self.rows = dict(run.rows)
        return len(whole)

    def _open(self) -> IO[bytes]:
        try:
            files.ensure_folder(self.path.parent)
            file = files.open_append(self.path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise EvaluationError(f"{self.path} is a link, which is not written through: name a file") from None
            raise EvaluationError(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise EvaluationError(f"{self.path} is being written by another process: wait for it") from None
            whole = self._read()  # again, under the lock
            file.truncate(whole)  # a torn last line
            if whole:
                _write(file, {"note": "resumed", **self._about})
            else:
                _write(file, {"neuraldb_run": FORMAT, "identity": self.identity, **self._about})
        except BaseException:
            file.close()
            raise
        self._file = file
        return file


def _write(file: IO[bytes], value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    file.flush()


def _whole(path: Path) -> tuple[bytes, bytes]:
    """A file's whole lines, and what stands behind the last of them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def read_run(path: str | Path) -> Run:
    """A run's file; a torn last line is left out.

    Raises:
        EvaluationError: there is none, or it is no run (named with its line).
    """
    return _parse(Path(path), _whole(Path(path))[0])


def _parse(path: Path, data: bytes) -> Run:
    header: Mapping[str, Any] | None = None
    rows: dict[str, Row] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{path}, line {number}: not valid JSON ({error})") from None
        if header is None:
            if not isinstance(value, dict) or "neuraldb_run" not in value or "identity" not in value:
                raise EvaluationError(f"{path} is no run: its first line is no header of `neuraldb eval` or lm-eval")
            if value["neuraldb_run"] != FORMAT:
                raise EvaluationError(f"{path} has run format {value['neuraldb_run']}; this version reads {FORMAT}")
            header = value
        elif isinstance(value, dict) and "case" in value:
            rows[str(value["case"])] = value
        elif not (isinstance(value, dict) and "note" in value):
            raise EvaluationError(f"{path}, line {number}: neither a case's row nor a note")
    if header is None:
        raise EvaluationError(f"{path} is empty: no run was written to it")
    return Run(path, header, rows)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {_short(old.get(name))} there and {_short(new.get(name))} here"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"


def base_path(out: str | Path, identity: Mapping[str, Any]) -> Path:
    """Where the base model's run with this identity lies: beside `out`, so that all methods there share it."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path(out).parent / f"base-{digest[:12]}.jsonl"


def surroundings(model: Any = None) -> dict[str, Any]:
    """Versions, hardware, command and time: what a header says beside its identity."""
    import torch

    hardware: dict[str, Any] = {
        "machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count(), "cpu": _cpu(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name(0)
    if model is not None:
        weight = model.get_input_embeddings().weight
        hardware |= {"device": str(weight.device), "dtype": str(weight.dtype).removeprefix("torch.")}
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "hardware": hardware,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
