"""A log that clients cannot fill: of messages that are alike, a few a minute are kept."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("asyncio", "uvicorn.error")
_OURS = "neuraldb_faiss.serving"


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
def sparing_logs() -> Iterator[None]:
    """While this lasts, the server's loggers and those of what it runs on are sparing."""
    ours = [name for name in logging.root.manager.loggerDict if name.startswith(_OURS)]
    sparing = Sparing()
    loggers = [logging.getLogger(name) for name in (*_LOGGERS, *ours)]
    for logger in loggers:
        logger.addFilter(sparing)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(sparing)
