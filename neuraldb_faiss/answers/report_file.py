"""Reports of `neuraldb test` as JSON: written beside a run, and read again to be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import atomic

if TYPE_CHECKING:  # it imports torch, and reading reports needs none
    from neuraldb_faiss.answers.report import FactReport, Figure, Verdict

ENDING = ".report.json"  # in place of a run's .jsonl
_MOST_BYTES = 1 << 28
_MOST_LOOKED_AT = 200  # reports of one folder


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is not as it should be: what was asked, what was said, what is wrong with it."""

    asked: str
    said: str
    problem: str


@dataclass(frozen=True, slots=True)
class FactResult:
    """What a test found of one fact. light: "green", "yellow" or "red". good: answers as they should be, of `asks`."""

    light: str
    prompt: str
    target: str
    good: int
    asks: int
    problems: tuple[Problem, ...]

    def is_of(self, fact: Fact) -> bool:
        """Whether the fact still says what was asked for."""
        return (self.prompt, self.target) == (fact.text, fact.target)


@dataclass(frozen=True, slots=True)
class TestReport:
    """A report that was read. time: seconds since 1970, of the file. facts: by id."""

    __test__ = False  # pytest takes it for a test else

    path: Path
    time: float
    database: str
    delivery: str
    facts: Mapping[str, FactResult]


def to_json(database: Path, delivery: str, reports: Sequence[FactReport], figures: Sequence[Figure]) -> dict[str, Any]:
    """The report as JSON values."""
    from neuraldb_faiss.answers.report import lights

    return {
        "database": str(database),
        "delivery": delivery,
        "lights": lights(reports),
        "summary": {one.name: {"value": one.edited, "base": one.base, "of": one.of} for one in figures},
        "facts": [_fact_json(report) for report in reports],
    }


def report_path(run: Path) -> Path:
    """Where the report of a run lies."""
    return run.with_name(run.name.removesuffix(".jsonl") + ENDING)


def write_report(run: Path, report: Mapping[str, Any]) -> Path:
    """Put a report beside its run's file. Raises EvaluationError where it cannot be written."""
    out = report_path(run)
    try:
        atomic.write_file(out, json.dumps(report, ensure_ascii=False).encode())
    except OSError as error:
        raise EvaluationError(f"{out} cannot be written: {error.strerror}") from None
    return out


def read_report(path: Path) -> TestReport:
    """A report, or the one beside a run's file.

    Raises:
        EvaluationError: there is none, or the file is no report.
    """
    if path.name.endswith(".jsonl"):
        path = report_path(path)
        if not path.exists():
            raise EvaluationError(f"there is no {path.name} beside the run: neuraldb test --out writes it at its end")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise EvaluationError(f"{path} is no report of neuraldb test: it has {path.stat().st_size:,} bytes")
        value, made = json.loads(path.read_bytes()), path.stat().st_mtime
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise EvaluationError(f"{path} is no report of neuraldb test: not valid JSON ({error})") from None
    try:
        facts = {one["id"]: _fact(one) for one in value["facts"] if one["light"]}
        return TestReport(path, made, str(value["database"]), str(value["delivery"]), facts)
    except (KeyError, TypeError, IndexError, AttributeError):
        raise EvaluationError(f"{path} is no report of neuraldb test (--json, or beside --out)") from None


def find_report(database: Path, folders: Sequence[Path]) -> TestReport | None:
    """The newest report of a database in these folders, by the name of its folder; what is no report is passed by."""
    found = [report for folder in folders for report in _reports_in(folder)]
    mine = [report for report in found if Path(report.database).name == database.resolve().name]
    return max(mine, key=lambda report: report.time, default=None)


def _reports_in(folder: Path) -> Iterator[TestReport]:
    for path in sorted(folder.glob(f"*{ENDING}"))[:_MOST_LOOKED_AT]:
        try:
            yield read_report(path)
        except EvaluationError:
            continue


def _fact(record: Mapping[str, Any]) -> FactResult:
    answers = record["answers"]
    problems = tuple(
        Problem(_asked(one["prompt"]), str(one["edited"]), str(one["problem"])) for one in answers if one["problem"]
    )
    return FactResult(
        str(record["light"]), str(record["prompt"]), str(record["target"]), len(answers) - len(problems), len(answers),
        problems,
    )  # fmt: skip


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _fact_json(report: FactReport) -> dict[str, Any]:
    fact = report.case.fact
    told = {} if fact is None else {"subject": fact.subject, "prompt": fact.text, "target": fact.target}
    return {
        "id": report.case.name,
        **told,
        "light": report.light or None,
        "answers": [_verdict_json(verdict) for verdict in report.verdicts],
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    prompt = verdict.ask.prompt
    return {
        "kind": verdict.ask.kind,
        "prompt": prompt if isinstance(prompt, str) else list(prompt),
        "base": verdict.base,
        "edited": verdict.edited,
        "problem": verdict.problem,
    }
