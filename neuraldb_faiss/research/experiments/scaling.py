"""What grows with the number of entries, and what does not: false fires, lookups, opening, memory, merging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from neuraldb_faiss.edits.merge import merge
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.research.benchmarks.grown import grow
from neuraldb_faiss.research.benchmarks.lookup import bench_lookup
from neuraldb_faiss.research.benchmarks.memory import memory_of
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.statistics import Estimate, proportion
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row
from neuraldb_faiss.store import atomic, files

DEFAULTS = {
    "database": "",  # whose entries are taken; beyond them they are made up
    "texts": "",  # ordinary text: JSON lines with a field `text`
    "tokens": 20_000,  # of it
    "sizes": [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000],
    "merged": 1_000,  # entries of the database that each is merged with
    "guards": ["subject"],
    "repeats": 5,  # turns of each timing
}
WINDOW = 512


def run(lab: Lab) -> Result:
    """A size that was measured is not measured again: its row lies in sizes/. Its database is deleted behind it."""
    if not lab.config["texts"]:
        raise EvaluationError("the experiment scaling needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    rows: list[Row] = []
    with lab.open_database() as source:
        for size in sorted(lab.config["sizes"]):
            kept = lab.out / "sizes" / f"{size}.json"
            if not kept.exists():
                files.ensure_folder(kept.parent)
                row = _measure(lab, source, size)
                atomic.write_file(kept, json.dumps(row).encode())
            rows.append(json.loads(kept.read_text(encoding="utf-8")))
    return Result(rows, _table(rows), draw(rows))


def _measure(lab: Lab, source: Any, size: int) -> Row:
    from neuraldb_faiss.database import NeuralDB

    path, other = lab.out / "grown" / str(size), lab.out / "grown" / "other"
    for left in (path, other):
        shutil.rmtree(left, ignore_errors=True)
    with lab.stage(f"making {size:,} entries", "entry"):
        grow(source, path, size).close()
        grow(source, other, lab.config["merged"], seed=1).close()
    with NeuralDB.open(path) as db:  # the first opening ever makes the index of names
        started = perf_counter()
        db.gate(lab.model, lab.tokenizer, guard="subject")
        first = perf_counter() - started
        opened = [_opened(lab, path) for _ in range(lab.config["repeats"])]
        row: Row = {
            "entries": size, "real": min(size, len({fact.entry for fact in source.facts()})), "facts": len(db),
            "bytes": _bytes(path), "first_open_seconds": first, "open_seconds": float(np.median(opened)),
            **{f"memory_{kind}": value for kind, value in memory_of(path).items()}, **_false_fires(lab, db),
        }  # fmt: skip
        with lab.stage(f"lookups, {size:,} entries", "turn"):
            made = bench_lookup(db, lab.model, lab.tokenizer, guards=lab.config["guards"],
                                repeats=lab.config["repeats"])  # fmt: skip
        row |= {name: value for name, value in made.items() if name.endswith(("ratio", "ratio_range"))}
    with lab.stage(f"merging {size:,} entries", "turn"):
        row |= _merging(lab, [path, other], lab.out / "grown" / "merged")
    shutil.rmtree(lab.out / "grown")
    return row


def _opened(lab: Lab, path: Path) -> float:
    from neuraldb_faiss.database import NeuralDB

    started = perf_counter()
    with NeuralDB.open(path) as db:
        db.gate(lab.model, lab.tokenizer, guard="subject")
    return perf_counter() - started


def _false_fires(lab: Lab, db: Any) -> Row:
    """Under the guard at the database's gamma."""
    gate, truth, site = db.gate(lab.model, lab.tokenizer, guard="subject"), false_fires.Truth(db.snapshot), lab.site(db)
    pieces = false_fires.windows(
        lab.tokenizer, read_texts(lab.config["texts"]), size=WINDOW, tokens=lab.config["tokens"]
    )
    false = true = tokens = 0
    with lab.stage(f"ordinary text, {len(db):,} facts", "token"):
        for seen in false_fires.see(lab.model, lab.tokenizer, site, pieces, special=False):
            entries, _ = false_fires.scores(gate, seen)
            for token in np.flatnonzero(entries >= 0):
                if truth(seen, int(token), int(entries[token])):
                    true += 1
                else:
                    false += 1
            tokens += len(seen.ids)
    rate = proportion(false, tokens)
    return {"tokens": tokens, "fired_true": true, "fired_false": false, "false_rate": rate.value,
            "false_low": rate.low, "false_high": rate.high}  # fmt: skip


def _merging(lab: Lab, paths: Sequence[Path], out: Path) -> Row:
    """Seconds of a merge into a new database, copied and linked, and of `cp -r` of the same; medians of three turns."""
    from neuraldb_faiss.store import Store

    times: dict[str, list[float]] = {"cp": [], "merge": [], "merge_link": []}
    for _ in range(3):
        for way, seconds in times.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            started = perf_counter()
            if way == "cp":
                out.mkdir()
                subprocess.run(["cp", "-r", *map(str, paths), str(out)], check=True)
                os.sync()
            else:
                stores = [Store(path) for path in paths]
                merge(stores, out=out, link=way == "merge_link")[0].close()
                for store in stores:
                    store.close()
            seconds.append(perf_counter() - started)
    return {f"{way}_seconds": float(np.median(seconds)) for way, seconds in times.items()}


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# ---- what is shown


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "| entries | of them real | on disk, GB | open, s | first open, s | own memory, MB | mapped, MB |"
        " false fires in 10,000 | merge ÷ cp | linked ÷ cp |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        rate = f"{1e4 * row['false_rate']:.1f} [{1e4 * row['false_low']:.1f}, {1e4 * row['false_high']:.1f}]"
        lines.append(
            f"| {row['entries']:,} | {row['real']:,} | {row['bytes'] / 1e9:.2f} | {row['open_seconds']:.2f} |"
            f" {row['first_open_seconds']:.1f} | {row['memory_anonymous'] / 1e6:.0f} |"
            f" {row['memory_mapped'] / 1e6:.0f} | {rate} | {row['merge_seconds'] / row['cp_seconds']:.1f} |"
            f" {row['merge_link_seconds'] / row['cp_seconds']:.1f} |"
        )
    works = sorted(name[: -len("_ratio")] for name in rows[0] if name.endswith("_ratio"))
    lines += ["", "| entries | " + " | ".join(work.replace("_", " ") for work in works) + " |",
              "|--:|" + "--:|" * len(works)]  # fmt: skip
    for row in rows:
        cells = (f"{row[f'{work}_ratio']:.3f} ({row[f'{work}_ratio_range'][0]:.2f}-{row[f'{work}_ratio_range'][1]:.2f})"
                 for work in works)  # fmt: skip
        lines.append(f"| {row['entries']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row]) -> dict[str, str]:
    """Plots of rows, by name."""
    works = [name for name in rows[0] if name.endswith("_ratio")]
    lookups = {
        work[: -len("_ratio")].replace("_", " "): [
            (row["entries"], Estimate(row[work], row[f"{work}_range"][0], row[f"{work}_range"][1], len(rows)))
            for row in rows
        ]
        for work in works
    }
    return {"lookups": plots.lines(lookups, x="entries", y="time with ÷ without", percent=False, log=True)}
