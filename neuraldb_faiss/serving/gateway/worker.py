"""The thread that makes changes where there is no model: facts are stored to be stated."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque

from neuraldb_faiss.errors import LockedError, NeuralDBError
from neuraldb_faiss.serving.errors import busy, stopping
from neuraldb_faiss.serving.jobs import LOCK_WAIT, Interrupted, Job
from neuraldb_faiss.serving.settings import Limits

logger = logging.getLogger(__name__)

_RETRY = 0.5  # seconds until a change tries again to become the writer
_KEPT = 1000  # changes that are remembered


class ChangeWorker:
    """Makes the changes that any thread queues, one after the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: deque[Job] = deque()
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._deadline: float | None = None  # set: stop, and break changes off then
        self._thread = threading.Thread(target=self._run, name="neuraldb-changes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether new work is taken."""
        return self._thread.is_alive() and self._deadline is None

    def change(self, job: Job) -> None:
        """Queue a change. Raises ApiError where too many of this database wait, or the server stops."""
        with self._changed:
            if not self.alive:
                raise stopping()
            waiting = sum(one.tenant is job.tenant for one in self._jobs)
            if waiting >= self._limits.jobs:
                raise busy(f"{waiting} changes of {job.tenant.name} wait already")
            self._jobs.append(job)
            self._known[job.id] = job
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            self._changed.notify()

    def job(self, name: str) -> Job | None:
        return self._known.get(name)

    def close(self, grace: float) -> None:
        """Take nothing new; changes that are not done in `grace` seconds are not made."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + grace
            self._changed.notify()

    def join(self) -> None:
        """Wait until all is finished."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._deadline is not None)
                if not self._jobs:
                    return
                job = self._jobs[0]
                self._changed.wait_for(lambda: self._is_late(), timeout=max(0.0, job.due - time.monotonic()))
            if self._make(job):
                with self._changed:
                    self._jobs.popleft()

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _make(self, job: Job) -> bool:
        """Make a change; False where another process writes, and it is to be tried again."""
        job.state = "running"
        try:
            self._pause()
            job.run(None, None, self._pause)
            job.state = "succeeded"
        except LockedError as error:
            if time.time() - job.created < LOCK_WAIT and self._deadline is None:
                job.state, job.due = "queued", time.monotonic() + _RETRY
                return False
            self._fail(job, str(error))
        except NeuralDBError as error:
            self._fail(job, str(error))
        except Exception as error:
            logger.exception("%s of %s failed", job.id, job.tenant.name)
            self._fail(job, f"the change failed ({type(error).__name__}); the server's log says more")
        return True

    def _fail(self, job: Job, reason: str) -> None:
        job.error, job.state, job.facts = reason, "failed", ()

    def _pause(self) -> None:
        if self._is_late():
            raise Interrupted("the server was stopped before this change was done: nothing was changed, send it again")
