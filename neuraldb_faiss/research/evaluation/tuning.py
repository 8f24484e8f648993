"""Which layer and which γ suit a model: a few facts are solved at several layers, and what that does is measured."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any

import numpy as np

from neuraldb_faiss.errors import EvaluationError, ModelError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models.tokenization import encode_prompts
from neuraldb_faiss.research.datasets.cases import Pair, sha256, strings
from neuraldb_faiss.research.evaluation.generation import greedy_texts
from neuraldb_faiss.research.evaluation.methods import silent
from neuraldb_faiss.research.evaluation.sample import TEXT
from neuraldb_faiss.research.evaluation.scoring import score_pairs, separators_of
from neuraldb_faiss.runs import Row, RunWriter, surroundings

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.methods import Stage

GAMMAS = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85)
TRIED = 5  # layers, beside the model's default one
PIECE, TOKENS = 64, 20_000  # ordinary text: tokens of a piece, and of all pieces
ANSWER = 8  # tokens of a neighbour's answer that must stay as they were


@dataclass(frozen=True)
class Sample:
    """What is asked: own prompts and paraphrases with the new answer, prompts about other subjects, ordinary text.

    named: paraphrases that name the subject, with it.
    """

    facts: tuple[Fact, ...]
    own: tuple[Pair, ...]
    paraphrases: tuple[Pair, ...]
    named: tuple[Pair, ...]
    neighbours: tuple[str, ...]
    text: Path

    @classmethod
    def of(cls, facts: Sequence[Fact], text: Path) -> Sample:
        """Raises FactError where a fact's probes are no lists of texts, EvaluationError where there are no facts."""
        if not facts:
            raise EvaluationError("there are no facts to try layers with: the file is empty, give another with --facts")
        asked = [(prompt, fact) for fact in facts for prompt in strings(fact, "paraphrase_prompts")]
        return cls(
            tuple(facts),
            tuple((fact.text, fact.target) for fact in facts),
            tuple((prompt, fact.target) for prompt, fact in asked),
            tuple((prompt, fact.subject) for prompt, fact in asked if fact.subject in prompt),
            tuple(dict.fromkeys(prompt for fact in facts for prompt in strings(fact, "neighborhood_prompts"))),
            text,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """How many prompts each share of a layer's row is of."""
        return {
            "efficacy_acc": len(self.own), "generalization_acc": len(self.paraphrases),
            "unchanged": len(self.neighbours),
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        told = json.dumps([fact.to_dict() for fact in self.facts], sort_keys=True)
        return {
            "facts": len(self.facts), "facts_sha256": hashlib.sha256(told.encode()).hexdigest(),
            "text": self.text.name, "text_sha256": sha256(self.text),
        }  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what follows.

    Attributes:
        base: the unedited model's row. rows: one a layer, ascending: layer, gamma (the one that suits it), shares
            efficacy_acc, generalization_acc and unchanged (None without such prompts), spared (of ordinary text and
            neighbours), target_nll (nats a token), target_probability, paraphrase_probability, score (harmonic mean
            of the shares), seconds (to solve and to measure), gates (a row a gamma: recall of own prompts and
            paraphrases, fired_false and tokens of other text, spared).
        layer, gamma: recommended; reason: why, in a sentence. close: layers within two prompts of it.
    """

    sample: Sample
    guard: str
    base: Row
    rows: Sequence[Row]
    layer: int
    gamma: float
    reason: str
    close: tuple[int, ...]

    @property
    def best(self) -> Row:
        return next(row for row in self.rows if row["layer"] == self.layer)


def spread(model: Any, ffn_module: str | None = None) -> list[int]:
    """Layers worth trying: every k-th of the lower two thirds, and the model's default; ascending.

    Layers without an FFN that can be edited are left out. Raises ModelError where there is none.
    """
    from neuraldb_faiss.models import edit_defaults, find_site, layer_count

    upper = max(1, round(layer_count(model, ffn_module) * 2 / 3))
    step = math.ceil(upper / (TRIED + 1))
    wanted = {*range(step - 1, upper, step), edit_defaults(model, ffn_module)[0].layer}
    found: list[int] = []
    for layer in sorted(wanted):
        try:
            found.append(find_site(model, layer, ffn_module).layer)
        except ModelError:
            if not found and layer == max(wanted):
                raise
    return found


def tune(
    model: Any, tokenizer: Any, facts: Sequence[Fact], *, layers: Sequence[int] | None = None,
    gammas: Sequence[float] = GAMMAS, guard: str = "subject", text: Path = TEXT, out: Path | None = None,
    ffn_module: str | None = None, stage: Stage = silent,
) -> Tuning:  # fmt: skip
    """Solve `facts` at every layer, measure each with the γ of `gammas` that suits it, and choose.

    Args:
        facts: folded; `paraphrase_prompts` and `neighborhood_prompts` in their metadata are measured where they are.
        layers: None for `spread`.
        text: ordinary text, JSON lines with a field `text`.
        out: where databases and rows are kept: a layer that was measured there is not measured again.

    Raises:
        EvaluationError: no facts, no γ, no text, or `out` holds a search of other facts or settings.
        ModelError: an unknown layer, or one without an FFN to edit.
        BuildError: a γ or a guard out of range.
    """
    from neuraldb_faiss.config import check_gamma, check_guard
    from neuraldb_faiss.models import find_site
    from neuraldb_faiss.models.fingerprint import fingerprint

    sample, usual = Sample.of(facts, text), spread(model, ffn_module)
    tried = usual if layers is None else sorted(set(layers))
    gates = sorted({check_gamma(gamma) for gamma in gammas})
    check_guard(guard)
    if not tried or not gates:
        raise EvaluationError("there is nothing to try: name at least one layer and one gamma")
    for layer in tried:
        find_site(model, layer, ffn_module)
    pieces = list(false_fires.windows(tokenizer, read_texts(text), size=PIECE, tokens=TOKENS))
    if not pieces:
        raise EvaluationError(f"{text} holds no text: name a file of JSON lines with a field `text`")
    told = fingerprint(model, find_site(model, usual[-1], ffn_module)).describe()
    identity = {"kind": "tune-layer", "model": told, "guard": guard, "gammas": gates, **sample.identity()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if out is None else out
        run = stack.enter_context(RunWriter(folder / "rows.jsonl", identity, surroundings(model)))
        if "base" not in run.rows:
            with stage("the unedited model", "prompt"):
                said = _said(model, tokenizer, sample)
                run.add([{"case": "base", **_answers(model, tokenizer, sample), "said": said}])
        for layer in tried:
            if f"layer {layer}" in run.rows:
                continue
            started = time.perf_counter()
            with _database(folder / f"layer-{layer}", layer, sample, model, tokenizer, guard, ffn_module, stage) as db:
                row = _measured(db, model, tokenizer, sample, pieces, gates, run.rows["base"]["said"])
            run.add([{"case": f"layer {layer}", **row, "seconds": round(time.perf_counter() - started, 2)}])
        rows = [run.rows[f"layer {layer}"] for layer in tried]
        return _choose(sample, guard, run.rows["base"], rows)


# ---- measuring


def _database(
    path: Path, layer: int, sample: Sample, model: Any, tokenizer: Any, guard: str, ffn_module: str | None, stage: Stage
) -> NeuralDB:
    from neuraldb_faiss.create import build
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.methods import is_built

    if not is_built(path):
        with stage(f"layer {layer}: solving", "fact") as report:
            build(
                sample.facts, model, tokenizer, path, layer=layer, guard=guard, ffn_module=ffn_module,
                command="tune-layer", report=report,
            ).close()  # fmt: skip
    return NeuralDB.open(path)


def _measured(
    db: NeuralDB, model: Any, tokenizer: Any, sample: Sample, pieces: Sequence[str], gammas: Sequence[float],
    said: Sequence[str],
) -> Row:  # fmt: skip
    from neuraldb_faiss.config import default_gamma

    gates = _gates(db, model, tokenizer, sample, pieces, gammas)
    # The γ that loses neither the facts' own texts nor others; of equals the one nearest the guard's usual one.
    gate = max(gates, key=lambda row: (round(_mean_of(row), 3), -abs(row["gamma"] - default_gamma(db.guard))))
    with db.attach(model, tokenizer, gamma=gate["gamma"]):
        found = _answers(model, tokenizer, sample)
        now = _said(model, tokenizer, sample)
    same = [before == after for before, after in zip(said, now, strict=True)]
    row: Row = {
        "layer": db.layer, "gamma": gate["gamma"], **found, "unchanged": sum(same) / len(same) if same else None,
        "spared": gate["spared"], "gates": gates,
    }  # fmt: skip
    parts = [row[name] for name in ("efficacy_acc", "generalization_acc", "unchanged", "spared")]
    return {**row, "score": harmonic_mean([part for part in parts if part is not None])}


def _answers(model: Any, tokenizer: Any, sample: Sample) -> Row:
    """How likely the model finds the new answers, as it is now."""
    scores = score_pairs(model, tokenizer, [*sample.own, *sample.paraphrases], separators=separators_of(sample.facts))

    def mean(pairs: Sequence[Pair], what: str) -> float | None:
        values = [float(getattr(scores[pair], what)) for pair in pairs]
        return sum(values) / len(values) if values else None

    return {
        "efficacy_acc": mean(sample.own, "all_correct"),
        "generalization_acc": mean(sample.paraphrases, "all_correct"),
        "target_nll": mean(sample.own, "nll"),
        "target_probability": mean(sample.own, "probability"),
        "paraphrase_probability": mean(sample.paraphrases, "probability"),
    }


def _said(model: Any, tokenizer: Any, sample: Sample) -> list[str]:
    """What the model says behind the neighbours, as it is now."""
    prompts = list(sample.neighbours)
    return greedy_texts(model, tokenizer, encode_prompts(tokenizer, prompts), ANSWER) if prompts else []


def _gates(
    db: NeuralDB, model: Any, tokenizer: Any, sample: Sample, pieces: Sequence[str], gammas: Sequence[float]
) -> list[Row]:
    """For every γ: the share of own prompts and paraphrases whose subject fires, and what fires in other texts."""
    from neuraldb_faiss.models import find_site

    site = find_site(model, db.layer, db.config.ffn_module)
    gate = db.gate(model, tokenizer, gamma=0.0)
    entries: dict[str, set[int]] = {}
    for stored in db.facts():
        entries.setdefault(stored.subject, set()).add(stored.entry)

    def at_subject(asked: Sequence[Pair]) -> np.ndarray:
        """The cosine at which an entry of the right subject wins at the subject's end; NOWHERE if none does."""
        found = []
        for (_, subject), seen in zip(
            asked, false_fires.see(model, tokenizer, site, [text for text, _ in asked]), strict=True
        ):
            winners, cosines = false_fires.scores(gate, seen)
            token = false_fires.subject_end(seen, subject)
            found.append(float(cosines[token]) if int(winners[token]) in entries[subject] else false_fires.NOWHERE)
        return np.array(found)

    truth, false, tokens = false_fires.Truth(db.snapshot), [], 0
    for texts, special in ((pieces, False), (sample.neighbours, True)):
        for seen in false_fires.see(model, tokenizer, site, texts, special=special):
            winners, cosines = false_fires.scores(gate, seen)
            wrong = [token for token in np.flatnonzero(cosines > min(gammas))
                     if not truth(seen, int(token), int(winners[token]))]  # fmt: skip
            false.append(cosines[wrong])
            tokens += len(seen.ids)
    own = at_subject([(fact.text, fact.subject) for fact in sample.facts])
    named = at_subject(sample.named)
    return [
        {
            "gamma": gamma,
            "own": float((own > gamma).mean()),
            "paraphrases": float((named > gamma).mean()) if len(named) else None,
            "fired_false": int(sum((cosines > gamma).sum() for cosines in false)),
            "tokens": tokens,
            "spared": sum(not (cosines > gamma).any() for cosines in false) / len(false),
        }
        for gamma in gammas
    ]


def _mean_of(gate: Mapping[str, Any]) -> float:
    shares = [gate[name] for name in ("own", "paraphrases", "spared")]
    return harmonic_mean([share for share in shares if share is not None])


# ---- choosing


def _choose(sample: Sample, guard: str, base: Row, rows: Sequence[Row]) -> Tuning:
    """The highest score; of equals the layer that finds the new answers likelier."""

    def worth(row: Row) -> tuple[float, float]:
        likely = [one for one in (row["target_probability"], row["paraphrase_probability"]) if one is not None]
        return round(row["score"], 3), sum(likely)

    sizes = sample.sizes

    def right(row: Row) -> int:
        return sum(round(row[name] * size) for name, size in sizes.items() if size)

    best = max(rows, key=worth)
    close = tuple(row["layer"] for row in rows if row is not best and right(row) >= right(best) - 2)
    counts = [f"{round(best[name] * size)} of {size} {noun}" for (name, size), noun in zip(
        sizes.items(), ("own prompts", "paraphrases", "neighbours"), strict=True) if size]  # fmt: skip
    kept = f", {counts.pop()} stay as they were" if sample.neighbours else ""
    gate = next(one for one in best["gates"] if one["gamma"] == best["gamma"])
    start = f"Layer {best['layer']} with γ {best['gamma']:g} "
    start += f"does best of the {len(rows)} tried" if len(rows) > 1 else "is all that was tried"
    if not best["efficacy_acc"]:
        start = f"No layer that was tried takes the facts; layer {best['layer']} comes nearest"
    reason = (
        f"{start}: {' and '.join(counts)} get the new answer{kept}, and {gate['fired_false']} of {gate['tokens']:,}"
        " tokens of other text fire falsely"
    )
    return Tuning(sample, guard, base, rows, best["layer"], best["gamma"], reason, close)
