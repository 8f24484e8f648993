"""Queue of changes, made one after the other by the thread that takes them."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection

from neuraldb_faiss.errors import LockedError, NeuralDBError
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import busy
from neuraldb_faiss.serving.jobs import LOCK_WAIT, Interrupted, Job
from neuraldb_faiss.serving.settings import Limits

logger = logging.getLogger(__name__)

_RETRY = 0.5  # seconds until a change tries again to become the writer
_KEPT = 1000  # changes that are remembered


class ChangeQueue:
    """Changes that any thread adds and one thread makes; those of one database in the order in which they came."""

    def __init__(self, limits: Limits, changed: threading.Condition) -> None:
        """changed: guards the queue, and is notified of what is added and of the end; the thread that makes the changes
        waits for it."""
        self._limits = limits
        self._changed = changed
        self._jobs: deque[Job] = deque()
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._deadline: float | None = None  # set: stop, and break changes off then

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Queue a change. Raises ApiError where too many of its database wait."""
        with self._changed:
            waiting = sum(one.tenant is job.tenant for one in self._jobs)
            if waiting >= self._limits.jobs:
                raise busy(f"{waiting} changes of {job.tenant.name} wait already")
            self._jobs.append(job)
            self._known[job.id] = job
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            self._changed.notify()

    def job(self, name: str) -> Job | None:
        """A change by its id, also one that was made, as long as it is remembered."""
        return self._known.get(name)

    def close(self, grace: float) -> None:
        """What is not done in `grace` seconds is not made."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + grace
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._deadline is not None

    def patience(self) -> float | None:
        """Seconds until the next change may be tried, 0 where one may now; None where none waits."""
        first: dict[Database, float] = {}
        for job in self._jobs:
            first.setdefault(job.tenant, job.due)
        return max(0.0, min(first.values()) - time.monotonic()) if first else None

    def due(self, held: Collection[Database] = ()) -> Job | None:
        """The first change that may be tried: of one database, none before those that came earlier. held: databases
        whose changes must wait."""
        seen = set(held)
        for job in self._jobs:
            if job.tenant not in seen and job.due <= time.monotonic():
                return job
            seen.add(job.tenant)
        return None

    def take(self, held: Collection[Database] = ()) -> Job | None:
        """`due`, which waits no longer."""
        with self._changed:
            job = self.due(held)
            if job is not None:
                self._jobs.remove(job)
            return job

    def make(self, job: Job, run: Callable[[], None]) -> None:
        """Make a change that was taken, and note what became of it; where another process writes, it waits again.

        Args:
            run: makes it.
        """
        job.state = "running"
        try:
            self.check_time()
            run()
            job.state = "succeeded"
        except LockedError as error:
            if time.time() - job.created < LOCK_WAIT and not self.closed:
                job.state, job.due = "queued", time.monotonic() + _RETRY
                with self._changed:
                    self._jobs.appendleft(job)
            else:
                _fail(job, str(error))
        except NeuralDBError as error:
            _fail(job, str(error))
        except Exception as error:
            logger.exception("%s of %s failed", job.id, job.tenant.name)
            _fail(job, f"the change failed ({type(error).__name__}); the server's log says more")

    def check_time(self) -> None:
        """Raises Interrupted where the time is over that `close` left."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Interrupted("the server was stopped before this change was done: nothing was changed, send it again")


def _fail(job: Job, reason: str) -> None:
    job.error, job.state, job.facts = reason, "failed", ()
