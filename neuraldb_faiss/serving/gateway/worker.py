"""The thread that makes changes where there is no model: facts are stored to be stated."""

from __future__ import annotations

import threading
from functools import partial

from neuraldb_faiss.serving.change_queue import ChangeQueue
from neuraldb_faiss.serving.errors import stopping
from neuraldb_faiss.serving.jobs import Job
from neuraldb_faiss.serving.settings import Limits


class ChangeWorker:
    """Makes the changes that any thread queues, one after the other."""

    def __init__(self, limits: Limits) -> None:
        self._changed = threading.Condition()
        self._changes = ChangeQueue(limits, self._changed)
        self._thread = threading.Thread(target=self._run, name="neuraldb-changes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether new work is taken."""
        return self._thread.is_alive() and not self._changes.closed

    def change(self, job: Job) -> None:
        """Queue a change. Raises ApiError where too many of this database wait, or the server stops."""
        with self._changed:
            if not self.alive:
                raise stopping()
            self._changes.add(job)

    def job(self, name: str) -> Job | None:
        return self._changes.job(name)

    def close(self, grace: float) -> None:
        """Take nothing new; changes that are not done in `grace` seconds are not made."""
        self._changes.close(grace)

    def join(self) -> None:
        """Wait until all is finished."""
        self._thread.join()

    def _run(self) -> None:
        changes = self._changes
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=changes.patience())
                if changes.closed and not changes:
                    return
                job = changes.take()
            if job is not None:
                changes.make(job, partial(job.run, None, None, changes.check_time))

    def _has_work(self) -> bool:
        return self._changes.due() is not None or (self._changes.closed and not self._changes)
