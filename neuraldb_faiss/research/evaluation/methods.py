"""What is measured: a model with a database attached, with its weights edited, or as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.baselines.settings import METHODS as EDITORS
from neuraldb_faiss.research.baselines.settings import with_changes

if TYPE_CHECKING:
    import numpy as np

    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.edits.pipeline import Report

    # Given what is done and what is counted ("case"), a context that takes progress.
    Stage = Callable[[str, str], AbstractContextManager[Report]]

METHODS = ("neuraldb", "base", *EDITORS)
# What a weight editor is told beside its hyperparameters; `cache` and `statistics` say where files are.
_HOW = ("batch", "solve_on", "layers")
_WHERE = ("statistics", "cache")


@dataclass(frozen=True)
class Method:
    """name: one of METHODS. identity: JSON values that say what it does to the model. inside: given what takes
    progress, a context in which all facts are in place; it gives what tells about the edit (an attached handle, a
    `baselines.Edit`, or None)."""

    name: str
    identity: Mapping[str, Any]
    inside: Callable[[Report], AbstractContextManager[Any]]


@contextmanager
def applied(method: Method, stage: Stage) -> Iterator[Any]:
    """The method in place; its own progress is over when this yields."""
    with ExitStack() as stack:
        with stage(f"{method.name}: putting facts in place", "fact") as report:
            edit = stack.enter_context(method.inside(report))
        yield edit


@contextmanager
def silent(doing: str, noun: str) -> Iterator[Report]:
    """The Stage that shows nothing."""
    yield lambda _: None


def base() -> Method:
    """The model as it is."""
    return Method("base", {}, lambda _: nullcontext())


def make_method(
    name: str, db: NeuralDB, model: Any, tokenizer: Any, settings: Mapping[str, Any],
    facts: Sequence[Fact] | None = None,
) -> Method:  # fmt: skip
    """A method over all facts of a database.

    Args:
        facts: the database's facts in the order that weight editors write them; as they came by default.
        settings: neuraldb: `gamma`, `guard`, `search`. Weight editors: `batch`, `statistics`, `cache`, `layers`,
            `solve_on` and hyperparameters (`neuraldb_faiss.research.baselines.edited`); with `solve_on` "database" the
            database's residuals are written, and none is solved. None leaves a default as it is.

    Raises:
        EvaluationError: an unknown method, a setting it does not have, or a database whose residuals it cannot write.
        BuildError: a value out of range.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if name not in METHODS:
        raise EvaluationError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    if name == "base":
        _only(name, given, ())
        return base()
    if name == "neuraldb":
        _only(name, given, ("gamma", "guard", "search"))
        return _neuraldb(db, model, tokenizer, given)
    return _editor(name, db, list(db.facts() if facts is None else facts), model, tokenizer, given)


def facts_identity(facts: Sequence[Fact]) -> dict[str, Any]:
    """How many facts are in place, and a hash over which they are."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(f"{fact.identity}\x1f{fact.target}\x1e".encode())
    return {"facts": len(facts), "facts_sha256": digest.hexdigest()}


def _neuraldb(db: NeuralDB, model: Any, tokenizer: Any, given: Mapping[str, Any]) -> Method:
    from neuraldb_faiss.config import default_gamma

    kept = ("layer", "keys", "residual", "config", "prefixes")
    settings = db.config.to_json()
    identity = {key: settings[key] for key in kept}
    guard = given.get("guard", db.guard)
    gamma = db.gamma if guard == db.guard else default_gamma(guard)
    identity |= {"guard": guard, "gamma": given.get("gamma", gamma), "generation": db.generation}
    identity["index"] = given.get("search", settings["index"])
    return Method("neuraldb", identity, lambda _: db.attach(model, tokenizer, **given))


def _editor(
    name: str, db: NeuralDB, facts: Sequence[Fact], model: Any, tokenizer: Any, given: Mapping[str, Any]
) -> Method:
    from neuraldb_faiss.research import baselines

    hyper = {key: value for key, value in given.items() if key not in (*_HOW, *_WHERE)}
    layers = {"layers": given["layers"]} if "layers" in given else {}
    resolved = asdict(with_changes(name, baselines.default_settings(name, model), {**hyper, **layers}))
    identity = {**resolved, "batch": given.get("batch"), "solve_on": given.get("solve_on", "edited")}
    if "statistics" in given and name != "ft":
        identity["statistics"] = Path(given["statistics"]).name
    how = dict(given)
    if how.get("solve_on") == "database":
        del how["solve_on"]
        how["given"] = _residuals_of(db, facts, name, resolved["layers"])

    def inside(report: Report) -> AbstractContextManager[Any]:
        return baselines.edited(name, model, tokenizer, facts, report=report, **how)

    return Method(name, identity, inside)


def _residuals_of(db: NeuralDB, facts: Sequence[Fact], name: str, layers: Sequence[int]) -> np.ndarray:
    """float32 [len(facts), d2]: each fact's residual in the database; facts of one entry have the same."""
    if db.config.layer != layers[-1] or db.config.residual != "memit":
        raise EvaluationError(
            f"{db.path} has residuals of layer {db.config.layer} by {db.config.residual!r}, and {name} wants those of "
            f"layer {layers[-1]}, its last, by 'memit': give --set layers, or leave --set solve_on=database out"
        )
    import numpy as np

    entries = {fact.identity: fact.entry for fact in db.facts()}
    return db.snapshot.residuals(np.array([entries[fact.identity] for fact in facts], np.int64))


def _only(name: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise EvaluationError(f"the method {name} has no setting {key!r}: {has}")


def is_built(path: Path) -> bool:
    """Whether there is a database whose first build was finished."""
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.errors import StoreError

    try:
        with NeuralDB.open(path) as db:
            return len(db) > 0
    except StoreError:
        return False
