"""What the server counts, for Prometheus. Names of databases are told, texts never are."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.settings import UNEDITED

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = one = CollectorRegistry()
        self._requests = Counter("neuraldb_requests", "Requests.", ["endpoint", "status"], registry=one)
        self._seconds = Histogram(
            "neuraldb_request_seconds", "From a request to the end of its answer.", ["endpoint"], registry=one,
            buckets=_BUCKETS,
        )  # fmt: skip
        self._prompt = Counter("neuraldb_prompt_tokens", "Tokens of prompts.", ["database"], registry=one)
        self._made = Counter("neuraldb_generated_tokens", "Tokens of answers.", ["database"], registry=one)
        self._fires = Counter("neuraldb_fires", "Tokens at which a fact fired.", ["database"], registry=one)
        self._grounded = Counter(
            "neuraldb_grounded_facts", "Facts stated in prompts, each time.", ["database"], registry=one
        )  # fmt: skip
        self._facts = Gauge("neuraldb_facts", "Facts served.", ["database"], registry=one)
        self._generation = Gauge("neuraldb_generation", "Generation served.", ["database"], registry=one)
        self._queue = Gauge("neuraldb_queue_length", "Requests that wait.", registry=one)
        self._running = Gauge("neuraldb_running_texts", "Texts that are being generated.", registry=one)
        self.ready = Gauge(
            "neuraldb_ready", "1 while requests are answered, 0 while the server loads or stops.", registry=one
        )

    def watch(self, *, requests: Callable[[], int], running: Callable[[], int]) -> None:
        """What tells how many requests wait, and how many texts are being generated."""
        self._queue.set_function(requests)
        self._running.set_function(running)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def answered(self, tenant: Database | None, prompt_tokens: int, made_tokens: int) -> None:
        name = UNEDITED if tenant is None else tenant.name
        self._prompt.labels(name).inc(prompt_tokens)
        self._made.labels(name).inc(made_tokens)

    def fired(self, tenant: Database, tokens: int) -> None:
        self._fires.labels(tenant.name).inc(tokens)

    def grounded(self, tenant: Database, facts: int) -> None:
        self._grounded.labels(tenant.name).inc(facts)

    def show(self, tenant: Database) -> None:
        self._facts.labels(tenant.name).set(tenant.facts)
        self._generation.labels(tenant.name).set(tenant.generation)

    def text(self) -> bytes:
        """All of them, in Prometheus' text form."""
        return generate_latest(self._registry)
