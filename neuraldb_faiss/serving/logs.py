"""The server's log: a line for each request and each change, as text or JSON; and messages that clients cannot fill it
with, for of those that are alike a few a minute are kept."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

REQUESTS = logging.getLogger("neuraldb_faiss.requests")
AUDIT = logging.getLogger("neuraldb_faiss.audit")
_COMMAND = logging.getLogger("neuraldb_faiss.serve")
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_LOGGERS = ("asyncio", "uvicorn.error")
_OURS = "neuraldb_faiss.serving"


def note(logger: logging.Logger, message: str, fields: dict[str, Any], level: int = logging.INFO) -> None:
    """Log a message with fields, each by its name."""
    logger.log(level, message, extra={"fields": fields})


def message(level: str, text: str) -> None:
    """Log what the command says of itself. level: one of `LEVELS`."""
    _COMMAND.log(logging.getLevelNamesMapping()[level.upper()], text)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and the fields of `note`."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=True, default=str)


class TextLines(logging.Formatter):
    """Time (UTC), level, message, and the fields of `note` as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_word(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{time}Z {record.levelname.lower()} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _word(value: Any) -> str:
    """A value as one word: plain where it can be read so, else as JSON, so that no client ends a line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if text.isascii() and text.isprintable() and not set(text) & set(' "=') else json.dumps(value)


@contextmanager
def logging_to(stream: TextIO, level: str = "info", form: str = "text") -> Iterator[None]:
    """While this lasts, log to `stream`: ours from `level` on, changes always, and warnings of whatever else runs.

    Args:
        level: one of `LEVELS`. form: one of `FORMATS`.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    ours = logging.getLogger("neuraldb_faiss")
    levels = {ours: level.upper(), AUDIT: "INFO"}
    # The command line has a handler of its own on ours, beyond which nothing goes: ours takes its place.
    was_propagated, handlers = ours.propagate, ours.handlers[:]
    ours.propagate, ours.handlers[:] = True, []
    before = {logger: logger.level for logger in levels}
    logging.root.addHandler(handler)
    for logger, wanted in levels.items():
        logger.setLevel(wanted)
    try:
        yield
    finally:
        for logger, was in before.items():
            logger.setLevel(was)
        logging.root.removeHandler(handler)
        ours.propagate, ours.handlers[:] = was_propagated, handlers


class Sparing(logging.Filter):
    """Lets a message through `most` times in `seconds`; the first one after that says how many were left out.

    Alike are messages of one level, one template's first line and one kind of exception.
    """

    def __init__(self, most: int = 10, seconds: float = 60.0) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        kind = type(record.exc_info[1]) if record.exc_info else None
        key = (record.name, record.levelno, str(record.msg).partition("\n")[0], kind)
        with self._lock:
            if time.monotonic() - self._begun > self._seconds:
                self._begun = time.monotonic()
                self._seen.clear()
                if self._left_out:
                    record.msg = f"{record.msg} ({self._left_out} such messages before it were left out)"
                    self._left_out = 0
            self._seen[key] += 1
            if self._seen[key] > self._most:
                self._left_out += 1
                return False
            return True


@contextmanager
def sparing_logs() -> Iterator[Callable[[], None]]:
    """While this lasts, the server's loggers and those of what it runs on are sparing.

    Gives a function to be called when further modules of the server were imported, for their loggers."""
    sparing = Sparing()
    loggers: list[logging.Logger] = []

    def cover() -> None:
        ours = [name for name in list(logging.root.manager.loggerDict) if name.startswith(_OURS)]
        for logger in map(logging.getLogger, (*_LOGGERS, *ours)):
            if logger not in loggers:
                logger.addFilter(sparing)
                loggers.append(logger)

    cover()
    try:
        yield cover
    finally:
        for logger in loggers:
            logger.removeFilter(sparing)
