"""A new database solved in this process or on a Ray cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.build_report import UnheardRecorder
from neuraldb_faiss.cli.loading import NO_MODEL, ModelChoice
from neuraldb_faiss.cli.output import count, progress, say, warn
from neuraldb_faiss.errors import BuildError

if TYPE_CHECKING:
    from neuraldb_faiss import NeuralDB
    from neuraldb_faiss.facts import Fact

_Made = tuple["NeuralDB", "tuple[Fact, ...]"]  # the database, and the facts that were left out


@dataclass(frozen=True)
class Build:
    """A new database to build.

    Attributes:
        out: its folder.
        model: named, not the database's.
        command: as the history records it.
        settings: of `solver_options.solver_settings`.
        cluster: (address, number of workers) on Ray, or None for this process.
    """

    out: Path
    model: ModelChoice
    command: str
    settings: dict[str, Any]
    cluster: tuple[str, int] | None = None

    def run(self, facts: Sequence[Fact]) -> dict[str, Any]:
        """Build it of these facts, and return what came of it, as JSON values."""
        from neuraldb_faiss.store import check_new

        started = time.monotonic()
        check_new(self.out)  # before a model is loaded
        db, unheard = self._here(facts) if self.cluster is None else self._on_ray(facts, *self.cluster)
        with db:
            if self.settings["index"]["kind"] != "flat":
                db.matcher()  # the index is made now, not when the first question is asked
            info = db.info()
        shown = {name: info[name] for name in ("facts", "entries", "failed", "generation")}
        left_out = [fact.id for fact in unheard]
        return {"path": str(self.out), **shown, "unheard": left_out, "seconds": round(time.monotonic() - started, 1)}

    def _here(self, facts: Sequence[Fact]) -> _Made:
        # Before torch is imported: a wrong name is told at once.
        model, tokenizer = (None, None) if self.model.model == NO_MODEL else self.model.load()
        from neuraldb_faiss.create import build

        if model is not None and "layer" not in self.settings:
            from neuraldb_faiss.solver.objectives.registry import DEFAULT, REGISTRY

            objective = REGISTRY[self.settings.get("residual") or DEFAULT].load()
            if hint := objective.layer_hint(model, self.settings.get("ffn_module")):
                warn(hint)
        with progress("building") as report:
            recorder = UnheardRecorder(report)
            db = build(facts, model, tokenizer, self.out, report=recorder, command=self.command, **self.settings)
        return db, recorder.unheard

    def _on_ray(self, facts: Sequence[Fact], address: str, workers: int) -> _Made:
        from neuraldb_faiss.integrations.ray import build_on_ray

        say(f"{count(workers, 'worker')} on Ray at {address}: loading {self.model.model}")
        assert self.model.model is not None  # the option is required
        if self.model.model == NO_MODEL:
            raise BuildError("--model none solves nothing, so there is no work for Ray: leave --ray and --workers out")
        # Ray writes to stdout, the command's answer, that a node died.
        with redirect_stdout(sys.stderr), progress("building") as report:
            recorder = UnheardRecorder(report)
            db = build_on_ray(
                facts, self.model.model, self.out, address=address, workers=workers, device=self.model.device,
                dtype=self.model.dtype, report=recorder, command=self.command, **self.settings,
            )  # fmt: skip
        return db, recorder.unheard
