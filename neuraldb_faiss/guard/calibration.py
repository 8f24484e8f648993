"""Cosine floors for names that often end in ordinary text by chance, as "Bern" in "Bernoulli"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.guard.gate import Gate
from neuraldb_faiss.models import FFNSite
from neuraldb_faiss.store import Snapshot

MARGIN = 0.02  # above the highest cosine that unrelated text reached
WINDOW = 512


@dataclass(frozen=True)
class Calibration:
    """floors: name -> cosine. tokens: of text looked at. before, after: false fires in it without and with the
    floors."""

    floors: dict[str, float]
    tokens: int
    before: int
    after: int


def calibrate(
    snapshot: Snapshot, gate: Gate, texts: Iterable[false_fires.Seen], *, target_rate: float,
    report: Callable[[int], None] | None = None,
) -> Calibration:  # fmt: skip
    """Find the names that fire falsely in `texts`, and for as few of them as need it a floor that stops them.

    First those that fire falsely more often than truly, for there is little to lose: a floor costs recall.

    Args:
        gate: the subject gate of the database.
        texts: ordinary text as the edited layer sees it (`read`).
        target_rate: target false-fire rate per token, such as 1e-4.
        report: called with the tokens looked at so far.
    """
    truth = false_fires.Truth(snapshot)
    highest: dict[str, float] = {}
    times: Counter[str] = Counter()
    truly: Counter[str] = Counter()
    looked = 0
    for seen in texts:
        winners, cosines = false_fires.scores(gate, seen)
        for token in np.flatnonzero(cosines > false_fires.NOWHERE):
            name = _name_there(snapshot.names(int(winners[token])), seen, int(token))
            if truth(seen, int(token), int(winners[token])):
                truly[name] += 1
                continue
            highest[name] = max(float(cosines[token]), highest.get(name, 0.0))
            times[name] += 1
        looked += len(seen.ids)
        if report is not None:
            report(looked)
    left, floors = times.total(), {}
    for name in sorted(times, key=lambda one: (times[one] <= truly[one], -times[one], one)):
        if left <= target_rate * looked:
            break
        floors[name] = round(min(1.0, highest[name] + MARGIN), 4)
        left -= times[name]
    return Calibration(floors, looked, times.total(), left)


def read(model: Any, tokenizer: Any, site: FFNSite, texts: Iterable[str], *, tokens: int) -> Iterator[false_fires.Seen]:
    """So many tokens of running text, in windows, as the edited layer sees them."""
    windows = false_fires.windows(tokenizer, texts, size=WINDOW, tokens=tokens)
    return false_fires.see(model, tokenizer, site, windows, special=False)


def _name_there(names: tuple[str, ...], seen: false_fires.Seen, token: int) -> str:
    """Which of an entry's names the text ends with at this token, in any case."""
    text = seen.text[: seen.spans[token, 1]].casefold()
    fitting = [name for name in names if name.casefold() in text[-len(name) - 8 :]]
    return " ".join(max(fitting, key=len, default=names[0]).split())
