"""What was looked at as HTML: parts for the live page, and one self-contained page for a file. All text is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from neuraldb_faiss.inference.ask import Fired
from neuraldb_faiss.inference.explain import Nearest
from neuraldb_faiss.inspector.views import Look, Series
from neuraldb_faiss.store import atomic

BINS = 44
MOST = 72  # per cent of colour at a cosine of 1


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # torch needs it too, so it is always there

    made = Environment(
        loader=PackageLoader("neuraldb_faiss.inspector", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals.update(heat=heat, shown=shown)
    made.filters["template"] = _template
    return made


def live_page() -> tuple[str, str]:
    """The page of `neuraldb inspect`, which has no data in it and asks the server for them; and what a browser is to
    allow on it (a Content-Security-Policy): its own script, and requests to its own server."""
    script = _environment().get_template("live.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return str(_environment().get_template("live.html").render()), allowed


def page_of(look: Look, prompt: str, info: dict[str, Any]) -> str:
    """One self-contained page about one prompt. info: `NeuralDB.info()`."""
    name = Path(info["model_name"] or info["model"]).name
    return str(_environment().get_template("static.html").render(**_look(look), asked=prompt, info=info, model=name))


def write_page(text: str, out: Path) -> None:
    """Put a page in place when it is whole. Raises OSError."""
    atomic.write_file(out, text.encode())


def look_part(look: Look) -> str:
    """What came of one prompt."""
    return str(_environment().get_template("look.html").render(**_look(look)))


def histogram_part(series: Sequence[Series], gamma: float, guard: str) -> str:
    """The gate's histogram: a row a kind of text, one axis, gamma on it."""
    template = _environment().get_template("gate.html")
    return str(template.render(rows=rows(series), axis=Axis.of(series, gamma), guard=guard))


def _look(look: Look) -> dict[str, Any]:
    compared = [one for one in look.tokens if one.entry is not None]
    own = Series(
        "this text", "every token, to the nearest key", tuple(one.score for one in compared),
        sum(one.fired for one in compared), own=False,
    )  # fmt: skip
    return {
        "look": look,
        "words": {one.entry: _words(look, one) for one in look.fired},
        "over": sum(_over(one, look.gamma) for one in look.tokens),
        "rows": rows([own]) if compared else [],
        "axis": Axis.of([own], look.gamma),
        "guard": look.guard,
    }


def _words(look: Look, fired: Fired) -> list[str]:
    """The tokens at which it fired, with their places in the text."""
    return [f"token {position}, “{look.tokens[position].token.strip()}”" for position in fired.positions]


def _over(one: Nearest, gamma: float) -> bool:
    """Nearer than γ to an entry whose subject the text does not name at this token."""
    return one.entry is not None and one.score > gamma and not one.fired and not one.held


def heat(score: float) -> int:
    """Per cent of colour for a cosine; squared, so that what is near stands out."""
    return round(MOST * max(0.0, min(1.0, score)) ** 2)


def shown(token: str, *, breaks: bool = True) -> str:
    """A token's text; where it is empty, or `breaks` the line, a sign stands for that."""
    return (token.replace("\n", "↵\n") if breaks else token) or "·"


def _template(fact: Any) -> tuple[str, str]:
    """A fact's prompt before and behind its subject."""
    before, _, behind = fact.template.partition("{}")
    return before, behind


@dataclass(frozen=True)
class Axis:
    """From `low` (a tenth) to 1."""

    low: float
    gamma: float

    @classmethod
    def of(cls, series: Sequence[Series], gamma: float) -> Axis:
        least = min((score for one in series for score in one.scores), default=0.0)
        return cls(min(0.0, int(least * 10 - 1) / 10 if least < 0 else 0.0), gamma)

    def at(self, value: float) -> float:
        """Per cent of its length."""
        return round(100 * (min(1.0, max(self.low, value)) - self.low) / (1 - self.low), 2)

    @property
    def ticks(self) -> list[float]:
        return [tick / 5 for tick in range(int(self.low * 5), 6)]


def rows(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Bars of each series, as per cents of its highest."""
    axis = Axis.of(series, 0.0)
    found = []
    for one in series:
        counts = [0] * BINS
        for score in one.scores:
            counts[min(BINS - 1, int(axis.at(score) / 100 * BINS))] += 1
        highest = max(counts)
        width = 100 / BINS
        bars = [
            {"x": round(width * place, 2), "width": round(width - 0.4, 2), "height": round(100 * n / highest, 1)}
            for place, n in enumerate(counts)
            if n
        ]
        found.append({"series": one, "bars": bars, "total": len(one.scores)})
    return found
