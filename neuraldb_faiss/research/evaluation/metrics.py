"""The metrics: their names, what each needs, and each as a formula over scored pairs.

Formulas are per case; a run's figure is the mean over its cases. Sources: the NeuralDB paper (arXiv
2507.18028), eqs. 13-16 for CounterFact and 17-19 for zsRE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.datasets.cases import Case, Pair
from neuraldb_faiss.research.datasets.registry import DATASETS
from neuraldb_faiss.research.evaluation.generation import Match
from neuraldb_faiss.research.evaluation.scoring import Scored
from neuraldb_faiss.research.evaluation.text import TfIdf, fluency

Values = dict[str, float | None]
PARTS = ("efficacy", "generalization", "specificity")  # the harmonic mean of these is the score


@dataclass(frozen=True, slots=True)
class Metric:
    """probe: what must be measured ("rewrite", "paraphrase", "neighbour", "relation", "portability", "generation",
    "greedy", "chat", or "" for what follows from other metrics). about: one line. needs: what a dataset must have
    (`Dataset.has`). percent: printed times 100."""

    probe: str
    about: str
    needs: frozenset[str] = frozenset()
    percent: bool = True


_OLD, _NEIGHBOURS, _RELATIONS, _GENERATION = map(frozenset, (["old"], ["neighbours"], ["relations"], ["generation"]))
METRICS: dict[str, Metric] = {
    "efficacy": Metric("rewrite", "rewrite prompts with P(new) > P(true); zsRE: target tokens that are the arg-max"),
    "generalization": Metric("paraphrase", "the same over paraphrases"),
    "specificity": Metric(
        "neighbour", "neighbourhood prompts with P(true) > P(new); zsRE: gold tokens that are the arg-max", _NEIGHBOURS
    ),
    "score": Metric("", "harmonic mean of efficacy, generalization and specificity", _NEIGHBOURS),
    "relation_specificity": Metric(
        "relation", "prompts about other relations of the subject with P(true) > P(new)", _RELATIONS
    ),
    "fluency": Metric("generation", "entropy of the words of generated texts, in bits", _GENERATION),
    "consistency": Metric("generation", "TF-IDF cosine of generated texts and texts about the target", _GENERATION),
    "efficacy_acc": Metric("rewrite", "rewrite prompts where every target token is the arg-max"),
    "generalization_acc": Metric("paraphrase", "the same over paraphrases"),
    "specificity_acc": Metric(
        "neighbour", "neighbourhood prompts where every token of the truth is the arg-max", _NEIGHBOURS
    ),
    "relation_specificity_acc": Metric("relation", "the same over other relations of the subject", _RELATIONS),
    "portability": Metric(
        "portability", "answer tokens, of what follows from the edit, that are the arg-max", frozenset({"portability"})
    ),
    "efficacy_margin": Metric("rewrite", "nll(true) - nll(new), nats a token", _OLD, percent=False),
    "generalization_margin": Metric("paraphrase", "the same over paraphrases", _OLD, percent=False),
    "relation_specificity_margin": Metric(
        "relation", "nll(new) - nll(true), nats a token, of other relations", _RELATIONS, percent=False
    ),
    "specificity_margin": Metric("neighbour", "nll(new) - nll(true), nats a token", _OLD | _NEIGHBOURS, percent=False),
    "target_nll": Metric("rewrite", "nll(new), nats a token", percent=False),
    "target_probability": Metric("rewrite", "exp(-nll(new)): mean probability of a target token"),
    "ar_acc": Metric("greedy", "greedy decoding begins with the target"),
    "ar_stop_acc": Metric("greedy", "greedy decoding is the target, and stops there"),
    "ar_chat_acc": Metric("chat", "ar_acc with the prompt in the chat template"),
    "ar_chat_stop_acc": Metric("chat", "ar_stop_acc with the prompt in the chat template"),
}
QUIRKS = {
    "fluency-sum": "fluency with the weights of eq. 16 as printed (2/3, 4/3): twice the usual figure",
    "text-with-prompt": "texts of fluency and consistency with their prompts, 100 tokens in all, as the reference code",
    "zsre-question-mark": "zsRE's unrelated question gets the ? that the reference code appends",
}


def check(dataset: str, names: Iterable[str] | None) -> tuple[str, ...]:
    """The metrics asked for (None: all of the dataset), in their order, with what `score` is made of.

    Raises:
        EvaluationError: an unknown one.
    """
    has = DATASETS[dataset].has
    known = [name for name, metric in METRICS.items() if metric.needs <= has]
    if names is None:
        return tuple(known)
    wanted = set(names)
    for name in sorted(wanted - set(known)):
        where = f"{dataset} has no metric {name!r}" if name in METRICS else f"unknown metric {name!r}"
        raise EvaluationError(f"{where}: choose of {', '.join(known)}")
    if "score" in wanted:
        wanted |= set(PARTS)
    return tuple(name for name in known if name in wanted)


def check_quirks(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted; raises EvaluationError for an unknown one."""
    for name in names:
        if name not in QUIRKS:
            raise EvaluationError(f"unknown quirk {name!r}: choose of {', '.join(QUIRKS)}")
    return tuple(sorted(set(names)))


def probes(names: Iterable[str]) -> frozenset[str]:
    """What must be measured for these metrics."""
    return frozenset(METRICS[name].probe for name in names) - {""}


def pairs(case: Case, wanted: frozenset[str]) -> list[Pair]:
    """Every (prompt, target) that a case's teacher-forced metrics are made of."""
    prompts = [case.fact.text] if "rewrite" in wanted else []
    prompts += case.paraphrases if "paraphrase" in wanted else ()
    untouched = case.neighbours if "neighbour" in wanted else ()
    untouched += case.relations if "relation" in wanted else ()
    found = [(prompt, case.fact.target) for prompt in prompts] + list(untouched)
    if case.compared:
        found += [(prompt, case.truth) for prompt in prompts]
        found += [(prompt, case.fact.target) for prompt, _ in untouched]
    return found + list(case.portability if "portability" in wanted else ())


def teacher_forced(case: Case, wanted: frozenset[str], scores: Mapping[Pair, Scored]) -> Values:
    """Efficacy, generalization, specificity and what belongs to them, from the scores of `pairs(case, ...)`."""
    values: Values = {}
    for probe, name, prompts in (
        ("rewrite", "efficacy", (case.fact.text,)),
        ("paraphrase", "generalization", case.paraphrases),
    ):
        if probe in wanted:
            new = [scores[prompt, case.fact.target] for prompt in prompts]
            old = [scores[prompt, case.truth] for prompt in prompts] if case.compared else []
            values |= _compare(name, new, old)
    if "rewrite" in wanted:
        own = scores[case.fact.text, case.fact.target]
        values |= {"target_nll": own.nll, "target_probability": own.probability}
    for probe, name, untouched in (
        ("neighbour", "specificity", case.neighbours),
        ("relation", "relation_specificity", case.relations),
    ):
        if probe in wanted:
            true = [scores[pair] for pair in untouched]
            edited = [scores[prompt, case.fact.target] for prompt, _ in untouched] if case.compared else []
            values |= _compare(name, true, edited)
    if "portability" in wanted:
        values["portability"] = _mean(scores[pair].share_correct for pair in case.portability)
    return values


def _compare(name: str, good: Sequence[Scored], bad: Sequence[Scored]) -> Values:
    """Eqs. 13-15 where there is something to compare with (mean of [P(good) > P(bad)]), else eqs. 17-19; None (not
    available) where the case has no such prompts."""
    if not good:
        return dict.fromkeys((name, f"{name}_acc", f"{name}_margin"))
    exact: Values = {f"{name}_acc": _mean(one.all_correct for one in good)}
    if not bad:
        return {name: _mean(one.share_correct for one in good), **exact}
    margins = [b.nll - g.nll for g, b in zip(good, bad, strict=True)]
    return {name: _mean(margin > 0 for margin in margins), **exact, f"{name}_margin": _mean(margins)}


def generated(case: Case, texts: Sequence[str], table: TfIdf | None, weights: str) -> Values:
    """Fluency and consistency; None (not available) where a record has no prompts, or no references."""
    if not texts:
        return {"fluency": None, "consistency": None}
    known = table is not None and bool(case.references)
    return {
        "fluency": fluency(texts, weights),
        "consistency": table.consistency(texts, case.references) if table is not None and known else None,
    }


def decoded(match: Match | None, *, chat: bool) -> Values:
    """Autoregressive accuracy; None where there is no chat template."""
    name = "ar_chat" if chat else "ar"
    if match is None:
        return {f"{name}_acc": None, f"{name}_stop_acc": None}
    return {f"{name}_acc": float(match.starts), f"{name}_stop_acc": float(match.stops)}


def _mean(values: Iterable[float]) -> float | None:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else None
