"""A new database solved in this process or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.build_report import Listener
from neuraldb_faiss.cli.loading import load_model
from neuraldb_faiss.cli.output import count, progress, say, warn

if TYPE_CHECKING:
    from neuraldb_faiss import NeuralDB
    from neuraldb_faiss.facts import Fact

_Made = tuple["NeuralDB", "tuple[Fact, ...]"]  # the database, and the facts that were left out


def build_database(
    facts: Sequence[Fact],
    out: Path,
    model: str,
    command: str,
    settings: dict[str, Any],
    cluster: tuple[str, int] | None = None,
) -> dict[str, Any]:
    """Build, here or on a Ray cluster (address, workers), and say what came of it, as JSON values."""
    started = time.monotonic()
    make = _build_here if cluster is None else partial(_build_on_ray, cluster)
    db, unheard = make(facts, out, model, command, settings)
    with db:
        if settings["index"]["kind"] != "flat":
            db.matcher()  # the index is made now, not when the first question is asked
        info = db.info()
    shown = {name: info[name] for name in ("facts", "entries", "failed", "generation")}
    told = [fact.id for fact in unheard]
    return {"path": str(out), **shown, "unheard": told, "seconds": round(time.monotonic() - started, 1)}


def _build_here(facts: Sequence[Fact], out: Path, model: str, command: str, settings: dict[str, Any]) -> _Made:
    from neuraldb_faiss.making import build as make
    from neuraldb_faiss.making import guessed_layer

    loaded, tokenizer = load_model(model, settings.pop("device", None), settings.pop("dtype", None))
    if "layer" not in settings and (guess := guessed_layer(loaded, settings.get("ffn_module"))):
        warn(guess)
    with progress("building") as report:
        listener = Listener(report)
        db = make(facts, loaded, tokenizer, out, report=listener, command=command, **settings)
    return db, listener.unheard


def _build_on_ray(
    cluster: tuple[str, int], facts: Sequence[Fact], out: Path, model: str, command: str, settings: dict[str, Any]
) -> _Made:
    from neuraldb_faiss.integrations.ray import build_on_ray

    address, workers = cluster
    say(f"{count(workers, 'worker')} on Ray at {address}: loading {model}")
    with progress("building") as report:
        listener = Listener(report)
        db = build_on_ray(
            facts, model, out, address=address, workers=workers, report=listener, command=command, **settings
        )
    return db, listener.unheard
