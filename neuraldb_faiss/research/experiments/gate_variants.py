"""Other keys for the plain gate: which layer, which keys of a fact, cosines of centred or whitened keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models import edit_defaults, find_site
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "facts": 4_000,
    "texts": "",  # ordinary text: JSON lines with a field `text`
    "tokens": 20_000,  # of it, for false fires; as many again for the moments
    "asked": 800,  # facts whose rephrased prompts are asked
    "layers": [],  # none: the default one, and 4 above it
    "rates": [1e-2, 1e-3, 1e-4],  # false fires a token
}
WINDOW = 512
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Layer:
    """What one layer sees. rows: keys of facts by kind, float32 [n, d1], with the facts they belong to, int64 [n].
    text, moments: float32 [T, d1]. asked: float32 [prompts, d1]."""

    rows: Mapping[str, tuple[_Array, _Array]]
    seen: Sequence[false_fires.Seen]
    text: _Array
    moments: _Array
    asked: _Array


def run(lab: Lab) -> Result:
    if not lab.config["texts"]:
        raise EvaluationError("the experiment needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    facts = lab.facts()
    prompts = [(text, number) for number, fact in enumerate(facts[: lab.config["asked"]])
               for text in fact.metadata.get("paraphrase_prompts", ()) if fact.subject in text]  # fmt: skip
    if not prompts:
        raise EvaluationError(f"no fact of {lab.config['cases']} has a paraphrase that names its subject")
    rows: list[Row] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    usual = edit_defaults(lab.model)[0].layer
    for layer in lab.config["layers"] or [usual, usual + 4]:
        with lab.stage(f"layer {layer}", "variant"):
            found = _see(lab, layer, facts, prompts)
            for keys, transform, false, right in _variants(found, facts, [number for _, number in prompts]):
                label = f"layer {layer}, {keys}, {transform}"
                curves[label] = _curve(false, right)
                for rate in lab.config["rates"]:
                    gamma, recall = at_rate(false, right, rate)
                    rows.append({"layer": layer, "keys": keys, "cosine": transform, "facts": len(facts),
                                 "tokens": len(false), "prompts": len(right), "false_rate": rate, "gamma": gamma,
                                 "recall": recall})  # fmt: skip
    drawn = plots.curves(curves, x="false fires per token", y="recall, rephrased prompts", log_x=True)
    return Result(rows, _table(rows, lab.config["rates"]), {"recall-false-fires": drawn})


def _see(lab: Lab, layer: int, facts: Sequence[Fact], prompts: Sequence[tuple[str, int]]) -> _Layer:
    from neuraldb_faiss.solver.keys import compute_keys
    from neuraldb_faiss.solver.prefixes import generate_prefixes

    site, tokens = find_site(lab.model, layer), lab.config["tokens"]
    made = compute_keys(lab.model, lab.tokenizer, site, facts, generate_prefixes(lab.model, lab.tokenizer), "two")
    body = made.token < 0  # a text's first token is told by its id alone, whatever the gate
    raw = np.zeros(len(made.fact), bool)
    raw[np.unique(made.fact, return_index=True)[1]] = True
    kinds = {"raw": raw & body, "mean of prefixed": ~raw, "nearest of both": body}
    own = {kind: (made.keys[which], made.fact[which]) for kind, which in kinds.items()}
    both = np.flatnonzero(raw & body)
    own["half of each"] = (0.5 * made.keys[both] + 0.5 * made.keys[both + 1], made.fact[both])
    pieces = list(false_fires.windows(lab.tokenizer, read_texts(lab.config["texts"]), size=WINDOW, tokens=2 * tokens))
    seen = list(false_fires.see(lab.model, lab.tokenizer, site, pieces, special=False))
    half = len(seen) // 2
    asked = [
        one.keys[false_fires.subject_end(one, facts[number].subject)]
        for one, (_, number) in zip(
            false_fires.see(lab.model, lab.tokenizer, site, [text for text, _ in prompts]), prompts, strict=True
        )
    ]
    return _Layer(own, seen[:half], np.concatenate([one.keys[1:] for one in seen[:half]]),
                  np.concatenate([one.keys[1:] for one in seen[half:]]), np.stack(asked))  # fmt: skip


def _variants(found: _Layer, facts: Sequence[Fact], asked: Sequence[int]) -> Iterator[tuple[str, str, _Array, _Array]]:
    """(keys, cosine, best false cosine of every token of text or NOWHERE, right cosine of every prompt or NOWHERE)."""
    truth = false_fires.Truth(_Names(facts))
    subjects = [facts[number].subject for number in asked]
    for transform, apply in _transforms(found.moments).items():
        text, prompts = _unit(apply(found.text)), _unit(apply(found.asked))
        for kind, (keys, owner) in found.rows.items():
            unit = _unit(apply(keys))
            at, cosines = _nearest(text, unit)
            false = np.full(len(text), false_fires.NOWHERE)
            places = ((seen, token) for seen in found.seen for token in range(1, len(seen.ids)))
            for number, (seen, token) in enumerate(places):
                if cosines[number] > 0 and not truth(seen, token, int(owner[at[number]])):
                    false[number] = cosines[number]
            at, cosines = _nearest(prompts, unit)
            hits = [facts[owner[key]].subject == subject for key, subject in zip(at, subjects, strict=True)]
            yield kind, transform, false, np.where(hits, cosines, false_fires.NOWHERE)


@dataclass(frozen=True)
class _Names:
    """Names of facts, by number, where `Truth` asks a snapshot for those of entries."""

    facts: Sequence[Fact]

    def names(self, number: int) -> list[str]:
        return [self.facts[number].subject]


def _transforms(moments: _Array) -> dict[str, Any]:
    """What is done to keys before the cosine, from keys of ordinary text, float32 [T, d1]."""
    mean = moments.mean(0)
    values, vectors = np.linalg.eigh(moments.T.astype(np.float64) @ moments / len(moments))
    # Directions that text hardly uses would be blown up to noise.
    scale = 1 / np.sqrt(np.maximum(values, 0) + 0.01 * values.mean())
    whiten = (vectors * scale) @ vectors.T
    return {
        "as they are": lambda keys: keys,
        "centred": lambda keys: keys - mean,
        "whitened": lambda keys: (keys @ whiten).astype(np.float32),
    }


def _unit(rows: _Array) -> _Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _nearest(queries: _Array, keys: _Array) -> tuple[_Array, _Array]:
    """The nearest key of every query, and its cosine: int64 and float32 [queries]."""
    parts = [queries[at : at + 1024] @ keys.T for at in range(0, len(queries), 1024)]
    return np.concatenate([part.argmax(1) for part in parts]), np.concatenate([part.max(1) for part in parts])


def at_rate(false: _Array, right: _Array, rate: float) -> tuple[float, float]:
    """The lowest gate at which at most `rate` of `false` [T] fire, and the share of `right` [prompts] above it."""
    allowed = int(rate * len(false))
    gamma = float(np.sort(false)[::-1][allowed])
    return gamma, float((right > gamma).mean())


def _curve(false: _Array, right: _Array) -> list[tuple[float, float]]:
    gates = np.linspace(0.05, 0.98, 40)
    return [(float((false > gate).mean()), float((right > gate).mean())) for gate in gates]


def _table(rows: Sequence[Row], rates: Sequence[float]) -> str:
    heads = " | ".join(f"recall at {rate:g} (γ)" for rate in rates)
    lines = [f"| layer | keys | cosine | {heads} |", "|---|---|---|" + "--:|" * len(rates)]
    for at in range(0, len(rows), len(rates)):
        some = rows[at : at + len(rates)]
        cells = " | ".join(f"{row['recall']:.3f} ({row['gamma']:.2f})" for row in some)
        lines.append(f"| {some[0]['layer']} | {some[0]['keys']} | {some[0]['cosine']} | {cells} |")
    return "\n".join(lines) + "\n"
