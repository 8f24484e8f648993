"""Measure a method on cases: all its facts in place, the base model's figures beside, one row a case."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.models.tokenization import has_chat
from neuraldb_faiss.research.datasets.cases import Case, sha256
from neuraldb_faiss.research.evaluation import metrics as m
from neuraldb_faiss.research.evaluation.generation import match_targets, sample_texts
from neuraldb_faiss.research.evaluation.methods import Method, applied, base, facts_identity, silent
from neuraldb_faiss.research.evaluation.scoring import score_pairs, separators_of
from neuraldb_faiss.research.evaluation.text import TfIdf
from neuraldb_faiss.runs import Row, RunWriter, base_path, surroundings

if TYPE_CHECKING:
    from neuraldb_faiss.research.evaluation.methods import Stage

BASE = "base_"  # begins the base model's columns
# Cases measured at a time: what a kill can cost, and what there is to batch.
CPU_CASES = 16
GPU_CASES = 64


@dataclass(frozen=True)
class Settings:
    """How cases are measured.

    Attributes:
        dataset: one of DATASETS. metrics: of METRICS; None for all that the dataset has.
        generations: generation prompts a case, from its first; None for all, 0 for none.
        length: tokens of a generated text. seed: of the sampling. quirks: of QUIRKS.

    Raises:
        EvaluationError: an unknown metric or quirk.
    """

    dataset: str
    metrics: tuple[str, ...] | None = None
    generations: int | None = None
    length: int = 100
    seed: int = 0
    quirks: tuple[str, ...] = ()
    names: tuple[str, ...] = field(init=False, default=())
    probes: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        names = m.check(self.dataset, self.metrics)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "quirks", m.check_quirks(self.quirks))
        object.__setattr__(self, "probes", m.probes(names))

    def identity(self) -> dict[str, Any]:
        values = asdict(self)
        del values["names"], values["probes"]
        return {**values, "metrics": list(self.names), "quirks": list(self.quirks)}


@dataclass(frozen=True)
class Source:
    """Where cases and facts came from, as a run's header names them.

    Attributes:
        cases, references: files; corpus: references of all their cases, from which the idf table is made.
        model: what the model's fingerprint says. facts: all that are in place.
    """

    cases: str
    model: str
    facts: Sequence[Fact]
    corpus: Sequence[str] = ()
    references: str | None = None

    def identity(self) -> dict[str, Any]:
        """What does not depend on the edit."""
        named: dict[str, Any] = {"file": Path(self.cases).name, "sha256": sha256(self.cases), "model": self.model}
        if self.references is not None:
            named |= {"references": Path(self.references).name, "references_sha256": sha256(self.references)}
        return named


def measure(
    model: Any, tokenizer: Any, cases: Sequence[Case], settings: Settings, table: TfIdf | None
) -> list[m.Values]:
    """The metrics of each case, with the model as it is now. `table`: the idf table of consistency."""
    dataset, probes = settings.dataset, settings.probes
    if "zsre-question-mark" in settings.quirks and dataset == "zsre":
        cases = [_with_question_mark(case) for case in cases]
    asked = [pair for case in cases for pair in m.pairs(case, probes)]
    scores = score_pairs(model, tokenizer, asked, separators=separators_of([case.fact for case in cases]))
    values = [m.teacher_forced(case, probes, scores) for case in cases]
    if "generation" in probes:
        weights = "sum" if "fluency-sum" in settings.quirks else "mean"
        texts = _generate(model, tokenizer, cases, settings)
        for case, own, row in zip(cases, texts, values, strict=True):
            row |= m.generated(case, own, table, weights)
    prompts, targets = [case.fact.text for case in cases], [case.fact.target for case in cases]
    for probe, chat in (("greedy", False), ("chat", True)):
        if probe in probes:
            known = has_chat(tokenizer) or not chat
            matches = match_targets(model, tokenizer, prompts, targets, chat=chat) if known else [None] * len(cases)
            for match, row in zip(matches, values, strict=True):
                row |= m.decoded(match, chat=chat)
    return [{name: row[name] for name in settings.names if name != "score"} for row in values]


def _generate(model: Any, tokenizer: Any, cases: Sequence[Case], settings: Settings) -> list[list[str]]:
    prompts = [list(case.generation[: settings.generations]) for case in cases]
    names = [f"{case.id}/{n}" for case, own in zip(cases, prompts, strict=True) for n in range(len(own))]
    texts = iter(
        sample_texts(
            model, tokenizer, [prompt for own in prompts for prompt in own], names, length=settings.length,
            seed=settings.seed, with_prompt="text-with-prompt" in settings.quirks,
        )
    )  # fmt: skip
    return [[next(texts) for _ in own] for own in prompts]


def _with_question_mark(case: Case) -> Case:
    asked = tuple((prompt if prompt.endswith("?") else prompt + "?", truth) for prompt, truth in case.neighbours)
    return replace(case, neighbours=asked)


def evaluate(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    method: Method,
    out: str | Path,
    settings: Settings,
    source: Source,
    *,
    with_base: bool = True,
    label: str | None = None,
    chunk: int | None = None,
    stage: Stage | None = None,
) -> list[Row]:
    """Rows of `cases`, in their order: metrics, base_* metrics, seconds. Cases that `out` holds are not measured again.

    All of `source.facts` are in place whatever `cases` are. The base model's rows are a run of their own beside
    `out`, made once and shared by all methods measured there (`base_path`).

    Args:
        with_base: False leaves the base_* columns out.
        label: what tables call the run, where the method's name does not tell enough.
        chunk: cases measured at a time.
        stage: where progress goes.

    Raises:
        EvaluationError: no cases; `out` is another run's, or no run.
        NeuralDBError: what the method says when it is put in place.
    """
    if not cases:
        raise EvaluationError("there is no case to evaluate: no fact of the file is among the edited ones")
    stage = stage or silent
    identity = run_identity(method, settings, source)
    about = surroundings(model) | ({"label": label} if label is not None else {})
    with RunWriter(out, identity, about) as run:
        todo = [case for case in cases if case.id not in run.rows]
        beside: Mapping[str, Row] = {}
        if todo and with_base and method.name != "base":
            path = base_path(out, run_identity(base(), settings, source))
            rows = evaluate(
                model, tokenizer, todo, base(), path, settings, source, chunk=chunk, stage=stage
            )  # fmt: skip
            beside = {row["case"]: row for row in rows}
        if todo:
            size = chunk or (CPU_CASES if input_device(model).type == "cpu" else GPU_CASES)
            table = TfIdf(source.corpus) if source.corpus and "generation" in settings.probes else None
            resumed = len(cases) - len(todo)
            with applied(method, stage) as edit, stage(method.name, "case") as report:
                if hasattr(edit, "settings"):  # a weight editor tells what it did in full
                    run.note("edit", {"settings": edit.settings, "batch": edit.batch})
                report(Progress(resumed, len(cases), resumed, None))
                for start in range(0, len(todo), size):
                    some = todo[start : start + size]
                    run.add(_rows(model, tokenizer, some, settings, table, beside))
                    report(Progress(resumed + start + len(some), len(cases), resumed, None))
        return [run.rows[case.id] for case in cases]


def _rows(
    model: Any, tokenizer: Any, cases: Sequence[Case], settings: Settings, table: TfIdf | None,
    beside: Mapping[str, Row],
) -> Iterator[Row]:  # fmt: skip
    started = time.perf_counter()
    measured = measure(model, tokenizer, cases, settings, table)
    seconds = (time.perf_counter() - started) / len(cases)
    for case, values in zip(cases, measured, strict=True):
        told = {"subject": case.fact.subject, "target": case.fact.target}
        if "case_id" in case.fact.metadata:
            told["case_id"] = case.fact.metadata["case_id"]
        own = beside.get(case.id, {})
        yield {"case": case.id, **told, **values, **{BASE + k: own[k] for k in values if k in own}, "seconds": seconds}


def run_identity(method: Method, settings: Settings, source: Source) -> dict[str, Any]:
    """What decides whether a run's file may be gone on with."""
    told = {"kind": "eval", "method": method.name, **source.identity(), **settings.identity()}
    if method.name == "base":
        return told
    return {**told, "method_settings": dict(method.identity), **facts_identity(source.facts)}
