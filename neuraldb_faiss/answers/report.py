"""Verdicts on answers: a traffic light a fact, and the figures of a whole test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from neuraldb_faiss.answers import asks as kinds
from neuraldb_faiss.answers.asks import Ask, Case
from neuraldb_faiss.answers.judge import degenerates, holds, likeness, misspells, refuses, says, spells
from neuraldb_faiss.answers.run import Answered
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts.names import names_in_texts

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One ask and its answers; a judgement that does not apply is None.

    Attributes:
        said: the answer holds what it must, and not what it must not. base_said: so does the base model's.
        kept: the subject is spelled, where the base model spells it. misspelt: only something like it is there.
        leaked: the target answers a question about something else, where the base model does not say it.
        degenerate: the answer is no sensible text. base_degenerate: so is the base model's.
        refused: the answer refuses, where the base model's does not.
        same: it is the base model's to the character.
    """

    ask: Ask
    base: str
    edited: str
    said: bool | None
    base_said: bool | None
    kept: bool | None
    misspelt: bool | None
    leaked: bool | None
    degenerate: bool
    base_degenerate: bool
    refused: bool
    same: bool

    @property
    def problem(self) -> str | None:
        """What is wrong with the answer, in a few words; None where nothing is."""
        if self.said is False:
            return "not said" if self.ask.kind in kinds.SAID else "wrong"
        if self.leaked:
            return "target said for something else"
        if self.misspelt:
            return "subject misspelt"
        # Continued texts of a small model often end in loops; how often stands beside the base model's share.
        if self.ask.chat and self.degenerate and not self.base_degenerate:
            return "no sensible text"
        if self.refused:
            return "refuses"
        if self.kept is False:
            return "subject gone"
        return "changed" if self.ask.kind == kinds.ELSEWHERE and not self.same else None


@dataclass(frozen=True)
class FactReport:
    """One case's verdicts; `light` is "" for what is no fact."""

    case: Case
    light: str
    verdicts: tuple[Verdict, ...]

    @property
    def problems(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.problem]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measure: its value with the facts in place and without (None: not measured), over `of` asks."""

    name: str
    help: str
    edited: float | None
    base: float | None
    of: int
    share: bool = True


def judge(case: Case, answered: Answered) -> FactReport:
    """All verdicts on one case, and its light.

    Green: said in answer to all that asks for the fact, the subject kept, nothing leaked or refused, no chat answer
    degenerate. Red: the own prompt or every question is answered otherwise, or more than half of all that asks for it.
    Yellow: the rest.
    """
    verdicts = tuple(_verdict(case, ask, answered) for ask in case.asks)
    return FactReport(case, _light(verdicts) if case.fact is not None else "", verdicts)


def _verdict(case: Case, ask: Ask, answered: Answered) -> Verdict:
    base, edited = answered.base[ask.name], answered.edited[ask.name]
    names = _names(case)
    asked = bool(ask.wanted) or ask.kind == kinds.CONVERSATION
    about = bool(names) and ask.chat and ask.kind != kinds.ELSEWHERE
    prompt = ask.prompt if isinstance(ask.prompt, str) else "\n".join(one["content"] for one in ask.prompt)
    target = case.answer if case.fact is None else case.fact.target
    leaked = None
    if ask.kind in kinds.OTHERS:
        known = (base, ask.truth or "", ask.prompt if isinstance(ask.prompt, str) else ask.prompt[-1]["content"])
        leaked = any(holds(edited, one) and not any(holds(text, one) for text in known) for one in ask.unwanted)
    return Verdict(
        ask=ask,
        base=base,
        edited=edited,
        said=_is_right(ask, edited) if asked else None,
        base_said=_is_right(ask, base) if asked else None,
        kept=spells(edited, names) if about and spells(base, names) else None,
        misspelt=misspells(edited, names) if about else None,
        leaked=leaked,
        degenerate=degenerates(edited, f"{prompt}\n{target}\n{base}"),
        base_degenerate=degenerates(base, f"{prompt}\n{target}"),
        refused=refuses(edited) and not refuses(base),
        same=edited == base,
    )


def _is_right(ask: Ask, text: str) -> bool:
    return all(says(text, one) for one in ask.wanted) and not any(holds(text, one) for one in ask.unwanted)


def _names(case: Case) -> tuple[str, ...]:
    fact = case.fact
    return () if fact is None else names_in_texts(fact.subject, fact.template, fact.metadata.get("aliases", ()))


def _light(verdicts: Sequence[Verdict]) -> str:
    said = [verdict for verdict in verdicts if verdict.ask.kind in kinds.SAID]
    questions = [verdict.said for verdict in said if verdict.ask.kind == kinds.QUESTION]
    own = all(verdict.said for verdict in said if verdict.ask.kind == kinds.OWN)
    hits = sum(bool(verdict.said) for verdict in said)
    if not own or (questions and not any(questions)) or 2 * hits < len(said):
        return RED
    clean = not any(verdict.problem for verdict in verdicts)
    return GREEN if clean else YELLOW


def summarise(reports: Sequence[FactReport], answers: Mapping[str, Answered]) -> list[Figure]:
    """The figures of all cases together, without those that nothing was asked for."""
    every = [verdict for report in reports for verdict in report.verdicts]
    ratios = _ratios(reports, answers, whole=False)
    figures = [
        *(_share(f"{plural}_said", f"{text} answered with the target", _of(every, kind), lambda v: v.said,
                 lambda v: v.base_said) for kind, plural, text in _SAID),
        _share("subject_kept", "chat answers that still spell the subject", [v for v in every if v.kept is not None],
               lambda v: v.kept, None),
        _share("misspelt", "chat answers with something like the subject instead",
               [v for v in every if v.misspelt is not None], lambda v: v.misspelt,
               lambda v: misspells(v.base, _names_of(reports, v))),
        _specificity(reports, answers),
        _share("leaks", "answers about something else that hold the target", _of(every, *kinds.OTHERS),
               lambda v: v.leaked, None),
        _likeness(_of(every, *kinds.OTHERS)),
        _share("degenerate", "chat answers that are no sensible text: loops, letters of another script",
               [v for v in every if v.ask.chat], lambda v: v.degenerate, lambda v: v.base_degenerate),
        _share("degenerate_continued", "continued texts that are no sensible text",
               [v for v in every if not v.ask.chat], lambda v: v.degenerate, lambda v: v.base_degenerate),
        _share("refused", "answers that refuse, where the base model's do not", every, lambda v: v.refused, None),
        Figure("fluency_median", "perplexity of the answer, without the target, against the base model's: median",
               median(ratios) if ratios else None, None, len(ratios), share=False),
        Figure("fluency_95", "the same: 95 % are below", _quantile(ratios, 0.95), None, len(ratios), share=False),
        Figure("fluency_whole_median", "the same with the target, median",
               _middle(_ratios(reports, answers, whole=True)), None, len(ratios), share=False),
        _share("conversations", "conversations answered right", _of(every, kinds.CONVERSATION), lambda v: v.said,
               lambda v: v.base_said),
        _share("elsewhere_same", "answers about other subjects that are the same to the character",
               _of(every, kinds.ELSEWHERE), lambda v: v.same, None),
    ]  # fmt: skip
    return [figure for figure in figures if figure.of]


_SAID = (
    (kinds.OWN, "own", "own prompts"),
    (kinds.COMPLETION, "completions", "rephrased prompts"),
    (kinds.QUESTION, "questions", "questions in a chat"),
)


def lights(reports: Iterable[FactReport]) -> dict[str, int]:
    """How many facts have each light."""
    shown = [report.light for report in reports]
    return {light: shown.count(light) for light in (GREEN, YELLOW, RED)}


def _of(verdicts: Iterable[Verdict], *wanted: str) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.ask.kind in wanted]


def _share(
    name: str, help: str, verdicts: Sequence[Verdict], edited: Callable[[Verdict], Any],
    base: Callable[[Verdict], Any] | None,
) -> Figure:  # fmt: skip
    def value(of: Callable[[Verdict], Any]) -> float | None:
        return sum(bool(of(verdict)) for verdict in verdicts) / len(verdicts) if verdicts else None

    return Figure(name, help, value(edited), None if base is None else value(base), len(verdicts))


def _names_of(reports: Sequence[FactReport], verdict: Verdict) -> tuple[str, ...]:
    return next(_names(report.case) for report in reports if any(one is verdict for one in report.verdicts))


def _specificity(reports: Sequence[FactReport], answers: Mapping[str, Answered]) -> Figure:
    """Where the true answer of another relation stays likelier than the target."""
    hits: dict[str, list[bool]] = {"base": [], "edited": []}
    for report in reports:
        told = answers[report.case.name]
        for name, truth in told.truths.items():
            target = told.targets[name]
            pairs = {who: (truth[who], target[who]) for who in hits}
            if all(a is not None and b is not None for a, b in pairs.values()):
                for who, (true, false) in pairs.items():
                    hits[who].append(bool(true < false))  # type: ignore[operator]
    size = len(hits["base"])
    base, edited = (sum(hits[who]) / size if size else None for who in ("base", "edited"))
    return Figure("relation_specificity", "other relations whose true answer stays likelier than the target",
                  edited, base, size)  # fmt: skip


def _likeness(verdicts: Sequence[Verdict]) -> Figure:
    try:
        found = [likeness(verdict.edited, verdict.base) for verdict in verdicts]
    except EvaluationError:  # sacrebleu is in the extra `eval`: the other figures need nothing
        found = []
    value = sum(found) / len(found) if found else None
    return Figure("others_chrf", "likeness of answers about something else to the base model's (chrF, of 100)",
                  value, None, len(found), share=False)  # fmt: skip


def _ratios(reports: Sequence[FactReport], answers: Mapping[str, Answered], *, whole: bool) -> list[float]:
    """Perplexity of the edited answers over that of the base model's answers, under the base model."""
    found = []
    for report in reports:
        told = answers[report.case.name].losses
        for ask in report.case.asks:
            if ask.kind not in kinds.READ:
                continue
            base, edited = told[ask.name]["base"], told[ask.name]["whole" if whole else "edited"]
            if base is not None and edited is not None:
                found.append(math.exp(min(edited - base, 50.0)))
    return found


def _quantile(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None
