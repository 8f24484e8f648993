"""What attached facts do to ordinary text: perplexity, apart where a subject is named and where none is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.research.evaluation.statistics import CONFIDENCE
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "database": "",  # one that is there already; else the facts are built
    "texts": "",  # ordinary text: JSON lines with a field `text`
    "tokens": 60_000,  # of it
    "guards": ["subject", "none"],
}
WINDOW = 512


def run(lab: Lab) -> Result:
    if not lab.config["texts"]:
        raise EvaluationError("the experiment perplexity needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    rows: list[Row] = []
    with lab.open_database() as db:
        pieces = list(false_fires.windows(lab.tokenizer, read_texts(lab.config["texts"]), size=WINDOW,
                                     tokens=lab.config["tokens"]))  # fmt: skip
        ids = [lab.tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        named = _named(lab, db, pieces)
        base = _losses(lab, "base", nullcontext(), ids)
        for guard in lab.config["guards"]:
            edited = _losses(lab, f"guard {guard}", db.attach(lab.model, lab.tokenizer, guard=guard), ids)
            tokens = np.array([len(own) - 1 for own in ids])
            for where, some in (("no subject", ~named), ("a subject", named), ("all", named | True)):
                if some.any():
                    figures = ratio(base[some], edited[some], tokens[some])
                    rows.append({"guard": guard, "named": where, "facts": len(db), "windows": int(some.sum()),
                                 "tokens": int(tokens[some].sum()), **figures})  # fmt: skip
    return Result(rows, _table(rows), {})


def _named(lab: Lab, db: Any, pieces: Sequence[str]) -> np.ndarray[Any, Any]:
    """bool [windows]: whether an edited subject, or an alias of one, stands in it."""
    truth, found = false_fires.Truth(db.snapshot), []
    gate = db.gate(lab.model, lab.tokenizer, gamma=0.0, guard="subject")
    for seen in false_fires.see(lab.model, lab.tokenizer, lab.site(db), pieces, special=False):
        winners, _ = false_fires.scores(gate, seen)
        found.append(any(truth(seen, int(at), int(winners[at])) for at in np.flatnonzero(winners >= 0)))
    return np.array(found)


@torch.no_grad()
def _losses(lab: Lab, name: str, place: Any, ids: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """float64 [windows]: summed negative log-likelihood in nats of every token but the first."""
    device, found = input_device(lab.model), []
    with place, lab.stage(f"perplexity, {name}", "window") as report:
        for own in ids:
            row = torch.tensor([list(own)], device=device)
            logits = lab.model(input_ids=row, use_cache=False).logits[0, :-1].float()
            target = row[0, 1:].to(logits.device)
            found.append(float(torch.nn.functional.cross_entropy(logits, target, reduction="sum")))
            report(Progress(len(found), len(ids), 0, None))
    return np.array(found)


def ratio(base: np.ndarray[Any, Any], edited: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> dict[str, float]:
    """Both perplexities, and edited / base with a bootstrap interval over windows.

    Args:
        base, edited: float64 [windows], summed losses in nats. tokens: int [windows].
    """
    draws = np.random.default_rng(0).integers(0, len(base), (2000, len(base)))
    quotients = np.exp((edited - base)[draws].sum(1) / tokens[draws].sum(1))
    low, high = np.quantile(quotients, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    total = tokens.sum()
    return {
        "base": float(np.exp(base.sum() / total)), "edited": float(np.exp(edited.sum() / total)),
        "ratio": float(np.exp((edited - base).sum() / total)), "low": float(low), "high": float(high),
    }  # fmt: skip


def _table(rows: Sequence[Row]) -> str:
    def lines() -> Iterator[str]:
        yield "| guard | windows that name | windows | tokens | base | with the facts | change, % |"
        yield "|---|---|--:|--:|--:|--:|--:|"
        for row in rows:
            change = ", ".join(f"{100 * (row[name] - 1):+.3f}" for name in ("low", "high"))
            yield (
                f"| {row['guard']} | {row['named']} | {row['windows']} | {row['tokens']:,} | {row['base']:.3f} |"
                f" {row['edited']:.3f} | {100 * (row['ratio'] - 1):+.3f} [{change}] |"
            )

    return "\n".join(lines()) + "\n"
