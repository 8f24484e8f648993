"""What build, rebuild and add report: counts, conflicts, failed facts, and the history's line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.loading import Input
from neuraldb_faiss.cli.output import count

if TYPE_CHECKING:
    from neuraldb_faiss.edits.pipeline import Progress, Report
    from neuraldb_faiss.facts import Fact


class Listener:
    """A report that passes on what it is told, and remembers which facts were left out because they cannot fire."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.unheard: tuple[Fact, ...] = ()

    def __call__(self, now: Progress) -> None:
        self.unheard = now.unheard
        self._report(now)


def about(made: dict[str, Any]) -> dict[str, Any]:
    return {"database": made["path"], "facts": f"{made['facts']:,}", "entries": f"{made['entries']:,}"}


def history_command(name: str, sources: tuple[str, ...], limit: int | None, shard: tuple[int, int] | None) -> str:
    """What the history calls this: the file names, not where they lay."""
    words = [name, *(source if ":" in source else Path(source).name for source in sources)]
    if limit is not None:
        words.append(f"--limit {limit}")
    if shard is not None:
        words.append(f"--shard {shard[0]}/{shard[1]}")
    return " ".join(words)


def input_counts(given: Input) -> dict[str, int]:
    return {
        "duplicates": given.folded.duplicates,
        "conflicts": given.folded.conflicts,
        "skipped": given.skipped,
    }


def conflicts_text(given: Input, on_conflict: str) -> str:
    conflicts = given.folded.conflicts
    return f"{conflicts} (the {on_conflict} target was taken)" if conflicts else "0"


def failed_text(failed: int, db: Path) -> str:
    return f"{count(failed, 'fact')}; list with `neuraldb facts {db} --failed`" if failed else "0"


def cannot_fire(unheard: Sequence[Any]) -> dict[str, str]:
    """A line about facts that were left out, where there are any; a warning has named them."""
    return {"cannot fire": f"{count(len(unheard), 'fact')}, left out (see the warning)"} if unheard else {}
