"""Commands that solve facts into a database: build, add."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import Input, load_facts, load_model, model_of
from neuraldb_faiss.cli.output import count, duration, emit_json, key_values, progress, say, warn


@click.command()
@opt.fact_files
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DB", help="Folder of the new database."
)
@opt.model_required
@opt.reading
@click.option("--shard", type=opt.Shard(), metavar="I/N", help="Only slice I of N, by a hash of the subject.")
@opt.layer
@click.option(
    "--residual",
    type=click.Choice(["memit", "none"]),
    default="memit",
    show_default=True,
    help="How residuals are solved; none makes keys only, to measure gates and lookups.",
)
@opt.keys
@opt.preset
@opt.gamma
@click.option(
    "--ffn-module",
    metavar="PATTERN",
    help='The FFN\'s down-projection, as in "model.layers.{}.mlp.down_proj", where it is not found.',
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the context prefixes.")
@click.option("--steps", type=click.IntRange(1), help="Steps of the optimiser a fact. [default: the model's]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate. [default: the model's]")
@click.option("--weight-decay", type=click.FloatRange(0), help="Factor on the residual's length.")
@click.option(
    "--clamp", type=click.FloatRange(0, min_open=True), help="Longest residual, in lengths of the output."
)
@click.option("--kl-factor", type=click.FloatRange(0), help="Factor on the change of what the subject is.")
@click.option("--stop-loss", type=click.FloatRange(0), help="Loss at which a fact is done.")
@opt.drop_failed
@opt.index
@opt.lists
@opt.where
@opt.as_json
def build(
    sources: tuple[str, ...],
    out: Path,
    model: str,
    format_: str,
    limit: int | None,
    on_conflict: str,
    skip_bad: bool,
    shard: tuple[int, int] | None,
    layer: int | None,
    residual: str,
    keys: str | None,
    preset: str | None,
    gamma: float | None,
    ffn_module: str | None,
    seed: int,
    drop_failed: bool,
    index: str,
    nlist: int | None,
    nprobe: int | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    **config: Any,
) -> None:
    """Build a database of the facts in FACTS: JSON lines, CounterFact, zsRE or questions.

    FACTS are files (plain or gzipped), - for stdin, or datasets:NAME[:SPLIT]. Killed, the same command goes
    on where it was.
    """
    keys, gamma = opt.with_preset(preset, keys, gamma)
    search = opt.index_settings(index, nlist, nprobe)
    from neuraldb_faiss.database import build as make
    from neuraldb_faiss.editing.editor import check_gamma

    if gamma is not None:
        check_gamma(gamma)  # before anything slow
    given = load_facts(sources, format_, limit=limit, on_conflict=on_conflict, skip_bad=skip_bad, shard=shard)
    started = time.monotonic()
    loaded, tokenizer = load_model(model, device, dtype)
    if layer is None:
        _tell_guess(loaded, ffn_module)
    with progress("building") as report:
        db = make(
            given.folded.facts,
            loaded,
            tokenizer,
            out,
            layer=layer,
            residual=residual,
            keys=keys,
            gamma=gamma,
            ffn_module=ffn_module,
            seed=seed,
            drop_failed=drop_failed,
            report=report,
            index=search,
            command=_command("build", sources, limit, shard),
            **config,
        )
    with db:
        if search["kind"] != "flat":
            db.matcher()  # the index is made now, not when the first question is asked
        info = db.info()
    seconds = time.monotonic() - started
    failed = info["failed"]
    if as_json:
        emit_json(
            {
                "path": str(out),
                "facts": info["facts"],
                "entries": info["entries"],
                **_counts(given),
                "failed": failed,
                "generation": info["generation"],
                "seconds": round(seconds, 1),
            }
        )
        return
    key_values(
        {
            "database": out,
            "facts": f"{info['facts']:,}",
            "entries": f"{info['entries']:,}",
            "folded duplicates": given.folded.duplicates,
            "conflicts": _conflicts(given, on_conflict),
            "skipped bad records": given.skipped,
            "failed facts": _failed(failed, out),
            "dropped facts": len(given.folded.facts) - info["facts"],
        }
    )
    say(f"done in {duration(seconds)}")


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
            done = database.add(
                given.folded.facts,
                loaded,
                tokenizer,
                drop_failed=drop_failed,
                report=report,
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
        }
    )


def _tell_guess(model: Any, ffn_module: str | None) -> None:
    from neuraldb_faiss.models import edit_defaults, layer_count

    defaults, known = edit_defaults(model, ffn_module)
    if not known:
        last = layer_count(model, ffn_module) - 1
        warn(
            f"no known settings for this model: layer {defaults.layer} of 0 to {last} is edited."
            " Another may do better: build a few facts with several --layer, and compare what"
            " `neuraldb facts --failed` lists"
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
