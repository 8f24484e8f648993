"""The one thread that owns the model: texts, a token at a time, and between them changes, a fact at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.serving.batch import ClosedBatch
from neuraldb_faiss.serving.change_queue import ChangeQueue
from neuraldb_faiss.serving.continuous import ContinuousBatch
from neuraldb_faiss.serving.errors import ApiError, busy, model_failed, stopping, unreadable
from neuraldb_faiss.serving.forward import can_join
from neuraldb_faiss.serving.generation import Ask, Failed
from neuraldb_faiss.serving.jobs import Job
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.rows import Row
from neuraldb_faiss.serving.settings import Limits
from neuraldb_faiss.serving.tenants import Tenant, Tenants
from neuraldb_faiss.serving.waiting import Waiting

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Takes requests and changes from any thread.

    A text begins with the newest generation of its database and keeps it to its end: where there is a newer one, the
    requests of that database wait until its running texts have ended. A change is solved on the same model, one entry
    at a time; after each, texts go on for as long as the entry took. Databases answer nothing but the rows of the
    forward that runs, so the solver meets the plain model.
    """

    def __init__(self, model: Any, tokenizer: Any, tenants: Tenants, limits: Limits, metrics: Metrics) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._limits = limits
        self._metrics = metrics
        self._ends = end_ids(model, tokenizer)
        self._device = input_device(unwrap(model))
        self._batch: ClosedBatch | ContinuousBatch = _kind_of_batch(model)(model, tokenizer, metrics)
        self._waiting = Waiting(limits)
        self._calls: deque[tuple[Future[Any], Callable[[Any, Any], Any]]] = deque()
        self._changed = threading.Condition()
        self._changes = ChangeQueue(limits, self._changed)
        self._resumed = 0.0  # when the change that runs began with its present entry
        self._held: set[Tenant] = set()  # databases whose requests wait for texts of an older generation to end
        self._thread = threading.Thread(target=self._run, name="neuraldb-model", daemon=True)
        metrics.watch(requests=lambda: len(self._waiting), running=lambda: len(self._batch.rows))
        for tenant in tenants:
            metrics.show(tenant)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether new work is taken."""
        return self._thread.is_alive() and not self._changes.closed

    def ask(self, asks: Sequence[Ask]) -> None:
        """Queue the prompts of one request; they begin together. Raises ApiError where too many wait, or the server
        stops."""
        with self._changed:
            self._check_open()
            if len(self._waiting) >= self._limits.queue:
                raise busy(f"{len(self._waiting)} requests wait already")
            self._waiting.add(asks)
            self._changed.notify()

    def call(self, what: Callable[[Any, Any], T]) -> Future[T]:
        """Queue something to be done with the model and its tokenizer between two forwards, while no database answers;
        what it gives, or raises. Raises ApiError as `ask`."""
        future: Future[T] = Future()
        with self._changed:
            self._check_open()
            if len(self._calls) >= self._limits.queue:
                raise busy(f"{len(self._calls)} requests wait already")
            self._calls.append((future, what))
            self._changed.notify()
        return future

    def change(self, job: Job) -> None:
        """Queue a change. Raises ApiError where too many of this database wait, or the server stops."""
        with self._changed:
            self._check_open()
            self._changes.add(job)

    def job(self, name: str) -> Job | None:
        return self._changes.job(name)

    def close(self, grace: float) -> None:
        """Take nothing new, finish what was taken; changes that are not done in `grace` seconds are not made."""
        self._changes.close(grace)

    def join(self) -> None:
        """Wait until all is finished."""
        self._thread.join()

    def _check_open(self) -> None:
        if not self.alive:
            raise stopping()

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=self._changes.patience())
                if self._changes.closed and not (self._is_asked() or self._changes):
                    return
            self._go_on()
            self._work()

    def _has_work(self) -> bool:
        waiting = self._is_asked() or self._changes.due(self._held) is not None
        return waiting or (self._changes.closed and not self._changes)

    def _is_asked(self) -> bool:
        return bool(self._waiting or self._calls or self._batch.rows)

    def _go_on(self) -> None:
        """Answer one call, let those join whose turn it is, and make a token of each text."""
        self._answer_call()
        asks: list[Ask] = []
        try:
            asks = self._fresh(self._take())
            if asks:
                self._batch.join([Row(ask, self._tokenizer, self._ends, self._device) for ask in asks])
            if self._batch.rows:
                self._batch.step()
        except Exception as error:  # not one of the model's: those are kept to the request that they come of
            asks = [*asks, *(row.ask for row in self._batch.rows)]
            logger.exception("a batch of %d texts failed", len(asks))
            self._batch = type(self._batch)(self._model, self._tokenizer, self._metrics)
            for ask in asks:
                ask.send(Failed(model_failed(error)))

    def _answer_call(self) -> None:
        with self._changed:
            if not self._calls:
                return
            future, what = self._calls.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(what(self._model, self._tokenizer))
            except Exception as error:
                future.set_exception(error)

    def _take(self) -> list[Ask]:
        """The texts that join now."""
        running = [row.ask for row in self._batch.rows]
        with self._changed:
            asked = self._waiting.tenants
        self._held = {tenant for tenant in asked & _tenants(running) if not tenant.is_current()}
        with self._changed:
            limit = self._limits.prefill_tokens if self._batch.joins else self._limits.batch_tokens
            return self._waiting.take(running, self._held, prompt_tokens=limit)

    def _fresh(self, asks: list[Ask]) -> list[Ask]:
        """Those whose databases show their newest generation; the others are told that theirs cannot be read."""
        broken: dict[Tenant, ApiError] = {}
        for tenant in _tenants(asks) - _tenants(row.ask for row in self._batch.rows):
            if (error := self._refresh(tenant)) is not None:
                broken[tenant] = error
        for ask in asks:
            if ask.tenant in broken:
                ask.send(Failed(broken[ask.tenant]))
        return [ask for ask in asks if ask.tenant not in broken]

    def _refresh(self, tenant: Tenant) -> ApiError | None:
        """Move to the newest generation; what to tell who asks, where it cannot be read."""
        try:
            tenant.refresh()
        except NeuralDBError as error:
            logger.error("the database %s cannot be read: %s", tenant.name, error)
            return unreadable(tenant.name, error)
        self._metrics.show(tenant)
        return None

    def _work(self) -> None:
        """Make one change, if one is due; none before the requests that wait to see the last one of its database."""
        job = self._changes.take(self._held)
        if job is not None:
            self._resumed = time.monotonic()
            self._changes.make(job, partial(self._make, job))

    def _make(self, job: Job) -> None:
        job.run(self._model, self._tokenizer, self._pause)
        if job.tenant not in _tenants(row.ask for row in self._batch.rows):
            self._refresh(job.tenant)

    def _pause(self) -> None:
        """Between two facts of a change: texts go on for as long as the last fact took."""
        self._changes.check_time()
        now = time.monotonic()
        until = 2 * now - self._resumed
        while self._is_asked():
            self._go_on()
            if time.monotonic() >= until:
                break
        self._resumed = time.monotonic()


def _kind_of_batch(model: Any) -> type[ClosedBatch] | type[ContinuousBatch]:
    if can_join(model):
        return ContinuousBatch
    logger.warning("texts of this model cannot join others that run: they are answered in closed batches")
    return ClosedBatch


def _tenants(asks: Iterable[Ask]) -> set[Tenant]:
    return {ask.tenant for ask in asks if ask.tenant is not None}
