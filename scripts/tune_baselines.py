"""Choose the weight editors' settings for a model on CounterFact facts that no test uses, and record the search.

    neuraldb statistics WIKIPEDIA.jsonl --model models/SmolLM2-135M-Instruct --layers 1-5 --tokens 150000
    python scripts/tune_baselines.py FACTS --test TEST --model models/SmolLM2-135M-Instruct --out tuning.json

FACTS and TEST are CounterFact files; facts of FACTS whose subject is in TEST are left out. Each method is searched
in stages: a stage tries its candidates on top of the best so far, which stays where none is better; the harmonic
score decides. Killed, the same command goes on: what was tried is in --out, solved residuals in --cache. Put what it
chooses into neuraldb_faiss/research/baselines/defaults.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.models import load_model
from neuraldb_faiss.research.baselines import METHODS, edited
from neuraldb_faiss.research.datasets.cases import Case, read_cases
from neuraldb_faiss.research.evaluation import metrics
from neuraldb_faiss.research.evaluation.scoring import score_pairs, separators_of

SPANS: list[dict[str, Any]] = [{"layers": [1, 2, 3, 4, 5]}, {"layers": [3, 4, 5]}, {"layers": [3]}]
WEIGHTS: list[dict[str, Any]] = [{"c0_weight": value} for value in (150.0, 500.0, 5000.0)]
STAGES: dict[str, list[list[dict[str, Any]]]] = {
    "memit": [SPANS, WEIGHTS],
    "alphaedit": [
        SPANS[:2],
        [{"null_threshold": cut, "l2": l2} for cut, l2 in ((0.02, 1.0), (0.01, 1.0), (0.01, 10.0))],
    ],
    "rect": [SPANS[:1], WEIGHTS[:2]],
    "pmet": [SPANS[:2], [{"c0_weight": value} for value in (500.0, 5000.0)]],
    "rome": [[{"layers": [layer]} for layer in (3, 5)]],
    "ft": [[{"lr": bound, "bound": bound} for bound in (2e-3, 5e-3, 2e-2)]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", help="CounterFact file to choose on")
    parser.add_argument("--test", required=True, help="CounterFact file whose subjects must not be used")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path, help="JSON record of the search")
    parser.add_argument("--count", type=int, default=100, help="facts written at once [100]")
    parser.add_argument("--rome-count", type=int, default=25, help="facts for ROME, which is slow [25]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--statistics", default="statistics")
    parser.add_argument("--cache", default="runs/tuning-residuals")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--device")
    args = parser.parse_args()
    try:
        cases = choose_cases(args.facts, args.test, args.count, args.seed)
        tune(args, cases)
    except NeuralDBError as error:
        sys.exit(f"error: {error}")


def choose_cases(facts: str, test: str, count: int, seed: int) -> list[Case]:
    """`count` random cases, no subject of theirs in the test."""
    taken = {case.fact.subject for case in read_cases(test, "counterfact")}
    free = [case for case in read_cases(facts, "counterfact") if case.fact.subject not in taken]
    return random.Random(seed).sample(free, min(count, len(free)))


def tune(args: argparse.Namespace, cases: list[Case]) -> None:
    model, tokenizer = load_model(args.model, device=args.device)
    asked = {"model": args.model, "facts": Path(args.facts).name, "test": Path(args.test).name, "seed": args.seed}
    asked |= {"count": len(cases), "rome_count": args.rome_count, "subjects": [case.fact.subject for case in cases]}
    record: dict[str, Any] = {**asked, "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}"}
    record |= {"base": measure(model, tokenizer, cases), "tried": [], "chosen": {}}
    if args.out.exists():
        before = json.loads(args.out.read_text(encoding="utf-8"))
        if any(before.get(key) != value for key, value in asked.items()):
            sys.exit(f"error: {args.out} is the record of another search: name another file")
        record = before
    for name in args.methods:
        some = cases[: args.rome_count] if name == "rome" else cases
        best: dict[str, Any] | None = None
        for stage in STAGES[name]:
            so_far = best["settings"] if best else {}
            tried = [attempt(args, record, name, {**so_far, **one}, model, tokenizer, some) for one in stage]
            best = max([best, *tried] if best else tried, key=lambda one: one["score"])
        assert best is not None
        record["chosen"][name] = best["settings"]
        write(args.out, record)
        print(f"{name}: {best['settings']}", file=sys.stderr)


def attempt(
    args: argparse.Namespace,
    record: dict[str, Any],
    name: str,
    settings: dict[str, Any],
    model: Any,
    tokenizer: Any,
    cases: list[Case],
) -> dict[str, Any]:
    for known in record["tried"]:
        if known["method"] == name and known["settings"] == settings:
            return dict(known)
    started = time.monotonic()
    facts = [case.fact for case in cases]
    try:
        with edited(name, model, tokenizer, facts, statistics=args.statistics, cache=args.cache, **settings) as edit:
            found = measure(model, tokenizer, cases)
            norms = {str(layer): round(float(edit.delta(layer).norm()), 3) for layer in edit.layers}
    except NeuralDBError as error:
        found, norms = {"score": 0.0, "error": str(error)}, {}
    seconds = round(time.monotonic() - started, 1)
    result = {"method": name, "settings": settings, **found, "delta_norms": norms, "seconds": seconds}
    record["tried"].append(result)
    write(args.out, record)
    print(f"{name} {settings}: score {found['score']:.4f}", file=sys.stderr)
    return result


def measure(model: Any, tokenizer: Any, cases: list[Case]) -> dict[str, Any]:
    """Efficacy, generalization, specificity (means over the cases) and their harmonic mean."""
    wanted = metrics.probes(metrics.PARTS)
    separators = separators_of([case.fact for case in cases])
    scores = score_pairs(model, tokenizer, [p for c in cases for p in metrics.pairs(c, wanted)], separators=separators)
    rows = [metrics.teacher_forced(case, wanted, scores) for case in cases]
    means = {part: sum(float(row[part] or 0.0) for row in rows) / len(rows) for part in metrics.PARTS}
    means["score"] = harmonic_mean(means.values())
    return {name: round(value, 4) for name, value in means.items()}


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
