"""`build` on a Ray cluster: workers with a model each solve the pieces, this process registers them in their order.

Plain actors and a queue, not Ray Data's `map_batches`: by default that gives a batch whose worker died to the next one
without end (a batch that needs too much memory kills them all, one after the other), memory alone bounds how far it
runs ahead of a slow batch (what is not staged is lost where this process is killed), and what a worker raises arrives
wrapped. Workers send rows, and the holder of the writer lock writes them: the cluster needs no common file system, and
a worker that was thought dead writes into no database.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.facts.metadata import clip
from neuraldb_faiss.index.registry import checked
from neuraldb_faiss.options import BuildConfig, RayOptions

if TYPE_CHECKING:  # torch, transformers and faiss load only when they are used
    from neuraldb_faiss.edits.pipeline import Group, Solved
    from neuraldb_faiss.solver.editor import Editor
    from neuraldb_faiss.solver.first_guess import Solutions

logger = logging.getLogger(__name__)

TRIES = 3  # workers that may die of one piece, or one after the other while they load the model
AHEAD = 4  # pieces a worker that are solved before the oldest one is: they wait here, and a kill here loses them
PATIENCE = 60.0  # seconds without any worker before a word is said


def build_on_ray(
    facts: Iterable[Fact],
    model: str | Path,
    path: str | Path,
    *,
    address: str,
    workers: int,
    config: BuildConfig | None = None,
    **options: Unpack[RayOptions],
) -> NeuralDB:
    """`build` by several processes; the facts, entries and ids are those of `build`, its residuals up to rounding.

    A worker that dies costs the piece it was at, which another one solves anew. Killed, the same call resumes, and so
    does `build` with the same facts and settings.

    Args:
        model: a folder that every machine has, or a hub's name; each worker loads it for itself.
        address: "local" for a cluster of this machine alone, "auto" for the one that runs here, or its host:port.
            Within a process that is joined to a cluster already, that one is used.
        workers: processes with a model; those the cluster has no room for wait, while the others work.
        config: as for `build`.
        options: those of `build`, and device (None for one GPU a worker where the cluster has any; cpu, or cuda) and
            dtype (of the weights, see `load_model`).

    Raises:
        BuildError: Ray is missing or cannot be joined, the cluster has no GPU where one is asked for, or one piece (or
            the model) ended `TRIES` workers.
        NeuralDBError: as `build` raises it.
    """
    rest = options.copy()
    device, dtype = rest.pop("device", None), rest.pop("dtype", None)
    drop_failed, folded = rest.pop("drop_failed", False), fold(facts, rest.pop("on_conflict", "error"))
    report, command = rest.pop("report", None), rest.pop("command", "build")
    wanted = BuildConfig.of(config, rest)
    index = checked(wanted.search())
    with Workers(address, workers, model, device, dtype) as crew:
        from neuraldb_faiss.edits import changes

        (plan,) = crew.run("plan", [(folded.facts, wanted)], lambda _: "planning the build")
        if plan.guess:
            logger.warning(plan.guess)

        def solve(pieces: Sequence[list[Group]], known: Solutions | None) -> Iterator[Solved]:
            shared = crew.share(known)
            calls = [(plan.config, piece, drop_failed, shared) for piece in pieces]
            return crew.run("solve", calls, lambda n: f"solving {clip(pieces[n][0].facts[0].text)} and what follows it")

        store = changes.build_by(
            folded.facts, plan, solve, path, drop_failed=drop_failed, index=index, report=report, command=command
        )
    return NeuralDB(store)


@dataclass(frozen=True)
class Plan:
    """What the first worker tells of the editor that all of them have: `Planner`, for the facts it was told."""

    config: DatabaseConfig
    ids: list[str]
    silent: list[int]
    guess: str | None

    @property
    def residual(self) -> str:
        return self.config.residual

    def settings(self) -> DatabaseConfig:
        return self.config

    def digest(self) -> str:
        from neuraldb_faiss.solver.editor import digest_of

        return digest_of(self.config)

    def unheard(self, facts: Sequence[Fact]) -> list[int]:
        """Of the facts that the plan was made for."""
        return self.silent

    def key_ids(self, facts: Sequence[Fact]) -> list[str]:
        """Of the facts that the plan was made for, without those that are unheard."""
        return self.ids


class Worker:
    """In a process of its own: a model, and an editor as soon as its settings are told."""

    _editor: Editor | None = None
    _knowing: Editor | None = None  # with the first guesses of the last piece

    def load(self, model: str, device: str, dtype: str | None) -> str:
        """Load the model; who this is. (Not in `__init__`: what that raises arrives as text alone.)"""
        from transformers.utils import logging as their_logging

        from neuraldb_faiss.models import load_model

        their_logging.disable_progress_bar()
        their_logging.set_verbosity_error()
        self._model, self._tokenizer = load_model(model, device=device, dtype=dtype)
        return f"process {os.getpid()} on {socket.gethostname()}"

    def plan(self, facts: list[Fact], wanted: BuildConfig) -> Plan:
        from neuraldb_faiss.solver.editor import Editor
        from neuraldb_faiss.solver.objectives.registry import REGISTRY

        editor = Editor.new(self._model, self._tokenizer, wanted)
        objective = REGISTRY[wanted.residual].load()
        guess = None if wanted.layer is not None else objective.layer_hint(self._model, wanted.ffn_module)
        silent = editor.unheard(facts)
        gone = set(silent)
        heard = [fact for number, fact in enumerate(facts) if number not in gone]
        return Plan(editor.settings(), editor.key_ids(heard), silent, guess)

    def solve(
        self, config: DatabaseConfig, piece: list[Group], drop_failed: bool, known: Solutions | None = None
    ) -> Solved:
        """One piece, from first guesses where `known` is given. Raises FingerprintError where this machine has another
        model."""
        from neuraldb_faiss.edits.pipeline import solve_piece
        from neuraldb_faiss.solver.editor import Editor

        if self._editor is None:
            self._editor = Editor.of(config, self._model, self._tokenizer)
        if known is None:
            return solve_piece(self._editor, piece, drop_failed)
        self._knowing = (self._knowing or self._editor).knowing(known)
        return solve_piece(self._knowing, piece, drop_failed)


@dataclass(frozen=True)
class _Job:
    """What a worker is at: the call with this number, or loading the model (None)."""

    worker: Any
    number: int | None


class Workers:
    """`count` workers on the cluster at `address`, for use in a `with`; each has the model, or is loading it."""

    def __init__(self, address: str, count: int, model: str | Path, device: str | None, dtype: str | None) -> None:
        if count < 1:
            raise BuildError(f"workers is {count}: at least one must work")
        folder = Path(model).expanduser()
        self._model = str(folder.resolve()) if folder.is_dir() else os.fspath(model)
        self._count, self._device, self._dtype = count, device, dtype
        self._jobs: dict[Any, _Job] = {}  # by the reference to their answers
        self._idle: list[Any] = []
        self._died: Counter[int | None] = Counter()  # workers, by the number of the call they died of
        self._patient = True
        self._joined = _join(address)

    def __enter__(self) -> Workers:
        try:
            self._place, self._share = _place(self._device, self._count)
            for _ in range(self._count):
                self._hire()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go, and leave the cluster (a local one ends) where it was joined for them."""
        import ray

        if self._joined:
            ray.shutdown()
        else:
            for worker in (*self._idle, *(job.worker for job in self._jobs.values())):
                ray.kill(worker)

    def share(self, known: Solutions | None) -> Any:
        """What stands for it in calls, so that each machine gets it once."""
        import ray

        return None if known is None else ray.put(known)

    def run(self, method: str, calls: Sequence[tuple[Any, ...]], doing: Callable[[int], str]) -> Iterator[Any]:
        """The answers of `method` to these calls, in their order, whichever workers give them.

        Raises: what `method` raises, and BuildError where a call (`doing` names it) has ended `TRIES` workers.
        """
        self._died.clear()
        waiting = deque(range(len(calls)))
        answers: dict[int, Any] = {}
        for number in range(len(calls)):
            while True:
                while self._idle and waiting and waiting[0] < number + AHEAD * self._count:
                    self._give(self._idle.pop(), waiting[0], method, calls[waiting.popleft()])
                if number in answers:
                    break
                self._await(answers, waiting, doing)
            yield answers.pop(number)

    def _await(self, answers: dict[int, Any], waiting: deque[int], doing: Callable[[int], str]) -> None:
        """Take in what is finished; calls whose worker died go back to the front of those waiting."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        finished, _ = ray.wait(list(self._jobs), timeout=PATIENCE)
        if not finished and self._patient:
            logger.warning("no worker after %.0f s: each is loading the model, or the cluster has no room", PATIENCE)
            self._patient = False
        for reference in finished:
            job = self._jobs.pop(reference)
            try:
                answer = ray.get(reference)
            except RayTaskError as error:  # the worker lives; this is what its method raised
                self._idle.append(job.worker)
                raise error.cause from error
            except RayError as error:  # it died, or its machine, or the way there
                ray.kill(job.worker)
                self._bury(job, f"loading {self._model}" if job.number is None else doing(job.number), error)
                if job.number is not None:
                    waiting.appendleft(job.number)
                self._hire()
                continue
            self._idle.append(job.worker)
            if job.number is None:
                self._patient = False
                del self._died[None]
                logger.debug("%s has the model", answer)
            else:
                answers[job.number] = answer

    def _hire(self) -> None:
        import ray

        worker: Any = ray.remote(Worker).options(**self._share).remote()
        self._jobs[worker.load.remote(self._model, self._place, self._dtype)] = _Job(worker, None)

    def _give(self, worker: Any, number: int, method: str, call: tuple[Any, ...]) -> None:
        self._jobs[getattr(worker, method).remote(*call)] = _Job(worker, number)

    def _bury(self, job: _Job, doing: str, error: Exception) -> None:
        self._died[job.number] += 1
        logger.warning("a worker died %s: another one takes over", doing)
        if self._died[job.number] >= TRIES:
            raise BuildError(
                f"{TRIES} workers died {doing}: give them more memory, or put fewer on a machine; the same command then"
                f" goes on from there. Ray says: {' '.join(str(error).split())[:200]}"
            )


def _join(address: str) -> bool:
    """Join the cluster; False where this process has joined one before."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise BuildError("Ray is not installed: pip install 'neuraldb-faiss[ray]'") from None
    if ray.is_initialized():
        return False
    cannot = f"cannot join the Ray cluster at {address} (does it run? does it ask for a token: RAY_AUTH_MODE=token?)"
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in host:
        try:  # Ray itself would knock for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise BuildError(f"{cannot}: {error}") from error
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster begun here reports to Ray's makers
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise BuildError(f"{cannot}: {why}") from error
    return True


def _place(device: str | None, workers: int) -> tuple[str, dict[str, int]]:
    """Where a worker has its model, and its share of the cluster: one GPU, or its part of the CPUs."""
    import ray

    if device not in (None, "cpu", "cuda"):
        raise BuildError(f"device is {device}: with Ray it is cpu or cuda, as a worker sees only the GPU it is given")
    total = ray.cluster_resources()
    if device != "cpu" and total.get("GPU", 0) >= 1:
        return "cuda", {"num_cpus": 1, "num_gpus": 1}
    if device == "cuda":
        raise BuildError("device is cuda, but the Ray cluster has no GPU: use cpu")
    sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    widest = min((size for size in sizes if size), default=1)  # a share must fit into every machine that has any
    return "cpu", {"num_cpus": max(1, min(int(total.get("CPU", 1)) // workers, widest))}
