"""What a search for layer and γ found, as tables, plots and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.tuning import Tuning
from neuraldb_faiss.store import atomic

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def layer_table(done: Tuning) -> Table:
    """(header, rows): the unedited model, and a row a layer; the recommended one has a star."""
    asked = ("own prompts", "paraphrases", "neighbours same")
    header = ("layer", "γ", *asked, "left alone", "P(new)", "loss", "score", "s")

    def cells(row: Mapping[str, Any]) -> list[str]:
        counts = [_count(row.get(name), size) for name, size in done.sample.sizes.items()]
        return [*counts, _share(row.get("spared")), f"{row['target_probability']:.3f}", f"{row['target_nll']:.2f}"]

    rows = [["none", "", *cells(done.base), "", ""]]
    for row in done.rows:
        star = "*" if row["layer"] == done.layer else ""
        rows.append(
            [f"{star}{row['layer']}", f"{row['gamma']:g}", *cells(row), f"{row['score']:.3f}", f"{row['seconds']:.0f}"]
        )
    return header, rows


def gamma_table(done: Tuning) -> Table:
    """(header, rows): the recommended layer, a row a γ."""
    header = ("γ", "own prompts fire", "paraphrases fire", "false fires", "of tokens", "left alone")
    rows = []
    for gate in done.best["gates"]:
        star = "*" if gate["gamma"] == done.gamma else ""
        fired = [_count(gate["own"], len(done.sample.own)), _count(gate["paraphrases"], len(done.sample.named))]
        false = [str(gate["fired_false"]), f"{gate['tokens']:,}"]
        rows.append([f"{star}{gate['gamma']:g}", *fired, *false, _share(gate["spared"])])
    return header, rows


def notes(done: Tuning) -> list[str]:
    """What a reader must know beside the tables, a sentence each."""
    found = ["Left alone: pieces of ordinary text, and neighbours, in which nothing fires falsely."]
    if done.close:
        named = ", ".join(map(str, done.close))
        found.append(f"Within two prompts of it: layer {named}. So small a difference is chance; more facts tell more.")
    if not done.sample.paraphrases or not done.sample.neighbours:
        found.append("Facts with paraphrase_prompts and neighborhood_prompts in their metadata would tell more.")
    return found


def markdown(done: Tuning) -> str:
    """Both tables, the reason and the notes."""
    tables = "\n\n".join(_markdown(table) for table in (layer_table(done), gamma_table(done)))
    told = "\n".join((f"{done.reason}.", *notes(done)))
    return f"{tables}\n\n{told}\n"


def to_json(done: Tuning) -> dict[str, Any]:
    """Every figure; JSON values."""
    sample = done.sample
    return {
        "layer": done.layer, "gamma": done.gamma, "guard": done.guard, "reason": done.reason, "close": list(done.close),
        "facts": len(sample.facts), "paraphrases": len(sample.paraphrases), "neighbours": len(sample.neighbours),
        "base": {name: value for name, value in done.base.items() if name not in ("case", "said")},
        "layers": [{name: value for name, value in row.items() if name != "case"} for row in done.rows],
    }  # fmt: skip


def write(done: Tuning, out: Path) -> list[Path]:
    """table.md, layers.svg and gammas.svg in `out`, each put in place when it is whole; their paths.

    Raises:
        EvaluationError: matplotlib is not installed; table.md is written then.
    """
    paths = []
    for name, made in (("table.md", markdown), ("layers.svg", _layers), ("gammas.svg", _gammas)):
        path = out / name
        atomic.write_file(path, made(done).encode())
        paths.append(path)
    return paths


def _layers(done: Tuning) -> str:
    named = {"own prompts": "efficacy_acc", "paraphrases": "generalization_acc", "neighbours same": "unchanged",
             "score": "score"}  # fmt: skip
    return plots.curves(_series(done.rows, "layer", named), x="layer", y="share")


def _gammas(done: Tuning) -> str:
    named = {"own prompts fire": "own", "paraphrases fire": "paraphrases", "other text left alone": "spared"}
    return plots.curves(_series(done.best["gates"], "gamma", named), x=f"γ (layer {done.layer})", y="share")


def _series(
    rows: Sequence[Mapping[str, Any]], x: str, named: Mapping[str, str]
) -> dict[str, list[tuple[float, float]]]:
    found = {label: [(row[x], row[name]) for row in rows if row[name] is not None] for label, name in named.items()}
    return {label: points for label, points in found.items() if points}


def _count(share: float | None, of: int) -> str:
    return "" if share is None else f"{round(share * of)}/{of}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"


def _markdown(table: Table) -> str:
    header, rows = table
    lines = [header, ["--:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
