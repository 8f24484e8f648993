"""Commands that solve facts into a database: build, rebuild, add."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import Input, load_facts, load_model, model_of
from neuraldb_faiss.cli.output import count, duration, emit_json, key_values, progress, say, warn
from neuraldb_faiss.errors import FactError

if TYPE_CHECKING:
    from neuraldb_faiss import NeuralDB
    from neuraldb_faiss.edits.pipeline import Progress, Report
    from neuraldb_faiss.facts import Fact


_making = opt.both(
    opt.layer,
    click.option(
        "--residual",
        type=click.Choice(["memit", "pmet", "none"]),
        help="Whose objective solves residuals; none makes keys only, to measure gates and lookups. [default: memit]",
    ),
    opt.keys,
    opt.preset,
    opt.guard,
    opt.gamma,
    click.option(
        "--ffn-module",
        metavar="PATTERN",
        help='The FFN\'s down-projection, as in "model.layers.{}.mlp.down_proj", where it is not found.',
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the context prefixes."),
    click.option("--steps", type=click.IntRange(1), help="Steps of the optimiser a fact. [default: the model's]"),
    click.option(
        "--max-steps",
        type=click.IntRange(0),
        help="Steps at most, for facts that the model does not say before. [default: three times as many]",
    ),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate. [default: the model's]"),
    click.option("--weight-decay", type=click.FloatRange(0), help="Factor on the residual's length."),
    click.option(
        "--clamp", type=click.FloatRange(0, min_open=True), help="Longest residual, in lengths of the output."
    ),
    click.option("--kl-factor", type=click.FloatRange(0), help="Factor on the change of what the subject is."),
    click.option(
        "--kl-prompt",
        "kl_prompts",
        multiple=True,
        metavar="TEMPLATE",
        help='Keep also what follows this prompt about another relation, as in "{} was born in". Repeatable.',
    ),
    click.option("--chat", is_flag=True, default=None, help="Solve also for the prompt asked in the chat template."),
    click.option("--stop-loss", type=click.FloatRange(0), help="Loss at which a fact is done."),
    opt.drop_failed,
    opt.index,
    opt.lists,
    opt.where,
    opt.as_json,
)
_new_database = click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DB", help="Folder of the new database."
)


@click.command()
@opt.fact_files
@_new_database
@opt.model_required
@opt.reading
@click.option("--shard", type=opt.Shard(), metavar="I/N", help="Only slice I of N, by a hash of the subject.")
@click.option("--ray", metavar="ADDRESS", help="Build on the Ray cluster there: local, auto, or host:port.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes on the Ray cluster, each with a model.")
@_making
def build(
    sources: tuple[str, ...],
    out: Path,
    model: str,
    format_: str,
    limit: int | None,
    on_conflict: str,
    skip_bad: bool,
    shard: tuple[int, int] | None,
    ray: str | None,
    workers: int | None,
    as_json: bool,
    **making: Any,
) -> None:
    """Build a database of the facts in FACTS: JSON lines, CounterFact, zsRE or questions.

    FACTS are files (plain or gzipped), - for stdin, or datasets:NAME[:SPLIT]. Killed, the same command goes
    on where it was.
    """
    if (ray is None) != (workers is None):
        raise click.UsageError("--ray and --workers go together: where the cluster is, and how many work there")
    cluster = (ray, workers) if ray is not None and workers is not None else None
    settings = _checked(making)
    given = load_facts(sources, format_, limit=limit, on_conflict=on_conflict, skip_bad=skip_bad, shard=shard)
    made = _make(given.folded.facts, out, model, _command("build", sources, limit, shard), settings, cluster)
    if as_json:
        emit_json({**made, **_counts(given)})
        return
    key_values(
        {
            **_about(made),
            "folded duplicates": given.folded.duplicates,
            "conflicts": _conflicts(given, on_conflict),
            "skipped bad records": given.skipped,
            "failed facts": _failed(made["failed"], out),
            **_silent(made["unheard"]),
            "dropped facts": len(given.folded.facts) - made["facts"] - len(made["unheard"]),
        }
    )
    say(f"done in {duration(made['seconds'])}")


@click.command()
@opt.db
@_new_database
@opt.model_required
@_making
def rebuild(db: Path, out: Path, model: str, as_json: bool, **making: Any) -> None:
    """Build the facts of DB anew for another model or layer, from its catalog alone.

    Residual, keys and guard are of DB's kind unless named. Killed, the same command goes on where it was.
    """
    settings = _checked(making)
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        facts, old = database.facts(), database.settings
    if not facts:
        raise FactError(f"{db} holds no facts to build anew")
    kept = {"residual": old["residual"], "keys": old["keys"], "guard": old.get("guard") or "none"}
    settings = {**kept, **settings}
    made = _make(facts, out, model, f"rebuild {db.name}", settings)
    if as_json:
        emit_json(made)
        return
    key_values({**_about(made), "failed facts": _failed(made["failed"], out), **_silent(made["unheard"])})
    say(f"done in {duration(made['seconds'])}")


def _checked(making: dict[str, Any]) -> dict[str, Any]:
    """The options as `making.build` takes them, without those left to their defaults.

    Wrong ones are refused here, before anything slow.
    """
    from neuraldb_faiss.solver.editor import check_gamma

    making.update(opt.with_preset(making.pop("preset"), making))
    making["index"] = opt.index_settings(making["index"], making.pop("nlist"), making.pop("nprobe"))
    given = {name: value for name, value in making.items() if value is not None}
    if "gamma" in given:
        check_gamma(given["gamma"])
    return given


def _make(
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


class _Listener:
    """A report that passes on what it is told, and remembers which facts were left out because they cannot fire."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.unheard: tuple[Fact, ...] = ()

    def __call__(self, now: Progress) -> None:
        self.unheard = now.unheard
        self._report(now)


_Made = tuple["NeuralDB", "tuple[Fact, ...]"]  # the database, and the facts that were left out


def _build_here(facts: Sequence[Fact], out: Path, model: str, command: str, settings: dict[str, Any]) -> _Made:
    from neuraldb_faiss.making import build as make
    from neuraldb_faiss.making import guessed_layer

    loaded, tokenizer = load_model(model, settings.pop("device", None), settings.pop("dtype", None))
    if "layer" not in settings and (guess := guessed_layer(loaded, settings.get("ffn_module"))):
        warn(guess)
    with progress("building") as report:
        listener = _Listener(report)
        db = make(facts, loaded, tokenizer, out, report=listener, command=command, **settings)
    return db, listener.unheard


def _build_on_ray(
    cluster: tuple[str, int], facts: Sequence[Fact], out: Path, model: str, command: str, settings: dict[str, Any]
) -> _Made:
    from neuraldb_faiss.integrations.ray import build_on_ray

    address, workers = cluster
    say(f"{count(workers, 'worker')} on Ray at {address}: loading {model}")
    with progress("building") as report:
        listener = _Listener(report)
        db = build_on_ray(
            facts, model, out, address=address, workers=workers, report=listener, command=command, **settings
        )
    return db, listener.unheard


def _about(made: dict[str, Any]) -> dict[str, Any]:
    return {"database": made["path"], "facts": f"{made['facts']:,}", "entries": f"{made['entries']:,}"}


@click.command()
@opt.db
@opt.fact_files
@opt.model
@opt.reading
@opt.drop_failed
@opt.where
@opt.wait
@opt.as_json
def add(
    db: Path,
    sources: tuple[str, ...],
    model: str | None,
    format_: str,
    limit: int | None,
    on_conflict: str,
    skip_bad: bool,
    drop_failed: bool,
    device: str | None,
    dtype: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Add facts to a database; one with the subject and prompt of a fact in it updates that fact."""
    from neuraldb_faiss.database import NeuralDB

    given = load_facts(sources, format_, limit=limit, on_conflict=on_conflict, skip_bad=skip_bad)
    with NeuralDB.open(db, "rw") as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        with progress("adding") as report:
            listener = _Listener(report)
            done = database.add(
                given.folded.facts,
                loaded,
                tokenizer,
                drop_failed=drop_failed,
                report=listener,
                wait=wait,
                command=_command("add", sources, limit, None),
            )
        failed = database.info()["failed"]
        facts, generation = len(database), database.generation
    added, updated = (done.added, done.updated) if done else (0, 0)
    if as_json:
        emit_json(
            {
                "generation": generation,
                "added": added,
                "updated": updated,
                "facts": facts,
                **_counts(given),
                "failed": failed,
                "unheard": [fact.id for fact in listener.unheard],
            }
        )
        return
    key_values(
        {
            "generation": generation if done else f"{generation} (nothing was new)",
            "added": added,
            "updated": updated,
            "facts": f"{facts:,}",
            "folded duplicates": given.folded.duplicates,
            "conflicts": _conflicts(given, on_conflict),
            "skipped bad records": given.skipped,
            "failed facts": _failed(failed, db),
            **_silent(listener.unheard),
        }
    )


def _command(name: str, sources: tuple[str, ...], limit: int | None, shard: tuple[int, int] | None) -> str:
    """What the history calls this: the file names, not where they lay."""
    words = [name, *(source if ":" in source else Path(source).name for source in sources)]
    if limit is not None:
        words.append(f"--limit {limit}")
    if shard is not None:
        words.append(f"--shard {shard[0]}/{shard[1]}")
    return " ".join(words)


def _counts(given: Input) -> dict[str, int]:
    return {
        "duplicates": given.folded.duplicates,
        "conflicts": given.folded.conflicts,
        "skipped": given.skipped,
    }


def _conflicts(given: Input, on_conflict: str) -> str:
    conflicts = given.folded.conflicts
    return f"{conflicts} (the {on_conflict} target was taken)" if conflicts else "0"


def _failed(failed: int, db: Path) -> str:
    return f"{count(failed, 'fact')}; list with `neuraldb facts {db} --failed`" if failed else "0"


def _silent(unheard: Sequence[Any]) -> dict[str, str]:
    """A line about facts that were left out, where there are any; a warning has named them."""
    return {"cannot fire": f"{count(len(unheard), 'fact')}, left out (see the warning)"} if unheard else {}
