"""Counts that build, rebuild and add report: conflicts, failed facts, facts left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.loading import Input
from neuraldb_faiss.cli.output import count

if TYPE_CHECKING:
    from neuraldb_faiss.edits.pipeline import Progress, Report
    from neuraldb_faiss.facts import Fact


class UnheardRecorder:
    """A progress report that is passed on, and the facts that were left out because they cannot fire."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.unheard: tuple[Fact, ...] = ()

    def __call__(self, now: Progress) -> None:
        self.unheard = now.unheard
        self._report(now)


def database_counts(made: dict[str, Any]) -> dict[str, Any]:
    return {"database": made["path"], "facts": f"{made['facts']:,}", "entries": f"{made['entries']:,}"}


def input_counts(given: Input) -> dict[str, int]:
    return {
        "duplicates": given.folded.duplicates,
        "conflicts": given.folded.conflicts,
        "skipped": given.skipped,
    }


def input_lines(given: Input, on_conflict: str) -> dict[str, Any]:
    """`input_counts` for people."""
    conflicts = given.folded.conflicts
    return {
        "folded duplicates": given.folded.duplicates,
        "conflicts": f"{conflicts} (the {on_conflict} target was taken)" if conflicts else "0",
        "skipped bad records": given.skipped,
    }


def solved_lines(failed: int, unheard: Sequence[Any], db: Path) -> dict[str, str]:
    """Facts that failed, and those left out because they cannot fire, where there are any: a warning named them."""
    lines = {"failed facts": f"{count(failed, 'fact')}; list with `neuraldb facts {db} --failed`" if failed else "0"}
    if unheard:
        lines["cannot fire"] = f"{count(len(unheard), 'fact')}, left out (see the warning)"
    return lines
