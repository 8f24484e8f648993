"""Write docs/python.md from signatures and docstrings. Run it where a public name changed."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import neuraldb_faiss

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"

INTRODUCTION = """\
# Python reference

Made from the signatures and docstrings by `scripts/gen_python_docs.py`; a test fails where this page is stale.

`from neuraldb_faiss import Fact, NeuralDB, NeuralDBError, build, merge` is what most need, with
`neuraldb_faiss.__version__`. Importing it costs nothing: torch, transformers and faiss come with the name that needs
them. What a user can cause raises a subclass of `NeuralDBError`: [errors.md](errors.md) lists them. The equations are
those of [concepts.md](concepts.md). What is not on this page is not public.
"""

BESIDE = """\
## Beside them

Of the package's modules, as the line above each says.
"""

RETURNED = """\
## What they return

Made by the calls above, not by you.
"""

# Functions for what stands around a database: module and name, under neuraldb_faiss.
HELPERS = (("facts", "read_facts"), ("models", "load_model"), ("integrity", "repair"))

# What the public names give back: module and name, under neuraldb_faiss.
OTHERS = (
    ("hook.attach", "Handle"),
    ("hook.lookup", "Fire"),
    ("store.records", "StoredFact"),
    ("store.records", "Generation"),
    ("store.verify", "Problem"),
    ("index.matcher", "Matches"),
    ("guard.calibration", "Calibration"),
    ("edits.pipeline", "Progress"),
)
OWN_METHODS = ("__len__",)  # of the special ones, those that mean something of their own here
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:")
WIDTH = 100


def markdown() -> str:
    """The page."""
    names = [name for name in neuraldb_faiss.__all__ if name not in ("__version__", "NeuralDBError")]
    public = [getattr(neuraldb_faiss, name) for name in names]
    helpers, returned = _loaded(HELPERS), _loaded(OTHERS)
    parts = [INTRODUCTION, _contents([*public, *helpers, *returned]), *map(_section, public), BESIDE]
    for (module, name), one in zip(HELPERS, helpers, strict=True):
        parts.append(_section(one, "###", f"`from neuraldb_faiss.{module} import {name}`"))
    return "\n".join([*parts, RETURNED, *(_section(one, "###") for one in returned)])


def _loaded(names: tuple[tuple[str, str], ...]) -> list[Any]:
    return [getattr(import_module(f"neuraldb_faiss.{module}"), name) for module, name in names]


def _contents(names: list[Any]) -> str:
    return "".join(f"- [`{one.__name__}`](#{one.__name__.lower()}): {_first(one)}\n" for one in names)


def _first(one: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((inspect.getdoc(one) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.;]) ", paragraph)[0].rstrip(".;") + "."


def _section(one: Any, level: str = "##", above: str = "") -> str:
    parts = [f"{level} {one.__name__}", "", *([above, ""] if above else [])]
    if not inspect.isclass(one):
        return "\n".join([*parts, _code(one.__name__, one), *_prose(one)])
    if dataclasses.is_dataclass(one):
        parts.append(_code(one.__name__, one))
    parts += _prose(one)
    for name, member in _members(one):
        function = _function(member)
        if isinstance(member, property):
            parts += [f"**`{one.__name__}.{name}`**: `{inspect.signature(function).return_annotation}` (property)", ""]
        else:
            kind = " (class method)" if isinstance(member, classmethod) else ""
            parts += [f"**`{one.__name__}.{name}`**{kind}", "", _code(name, function)]
        parts += _prose(function)
    return "\n".join(parts)


def _members(one: type) -> list[tuple[str, Any]]:
    """Its own public methods and properties, in the order of the source."""
    return [
        (name, member)
        for name, member in vars(one).items()
        if (not name.startswith("_") or (name in OWN_METHODS and not dataclasses.is_dataclass(one)))
        and isinstance(member, (FunctionType, classmethod, staticmethod, property))
    ]


def _function(member: Any) -> Any:
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, (classmethod, staticmethod)) else member


def _code(name: str, one: Any) -> str:
    return f"```python\n{_signature(name, one)}\n```\n"


def _signature(name: str, one: Any) -> str:
    signature = inspect.signature(one)
    shown = [p.replace(default=_Shown(p.default)) if p.default is not p.empty else p
             for p in signature.parameters.values() if p.name not in ("self", "cls")]  # fmt: skip
    returns = "" if inspect.isclass(one) or signature.return_annotation is inspect.Signature.empty else (
        f" -> {_plain(signature.return_annotation)}"
    )  # fmt: skip
    words = _with_marks(shown)
    line = f"{name}({', '.join(words)}){returns}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){returns}"


class _Shown:
    """A default as it stands in the page: never an address or an object's inner name."""

    def __init__(self, value: Any) -> None:
        plain = value is None or isinstance(value, (str, int, float, bool, tuple))
        self._text = repr(value) if plain else "..."

    def __repr__(self) -> str:
        return self._text


def _with_marks(parameters: list[inspect.Parameter]) -> list[str]:
    words, keyword_only = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        mark = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        keyword_only |= one.kind is one.VAR_POSITIONAL
        annotation = "" if one.annotation is one.empty else f": {_plain(one.annotation)}"
        default = "" if one.default is one.empty else f" = {one.default!r}" if annotation else f"={one.default!r}"
        words.append(f"{mark}{one.name}{annotation}{default}")
    return words


def _plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _prose(one: Any) -> list[str]:
    """A docstring as Markdown: paragraphs, tables of names as they are, sections as lists."""
    text = inspect.getdoc(one)
    if not text:
        return []
    lines: list[str] = []
    for part in text.split("\n\n"):
        lines += _part(part)
    return lines


def _part(part: str) -> list[str]:
    first, _, rest = part.strip("\n").partition("\n")
    if first in SECTIONS:
        return [f"*{first.rstrip(':')}*", "", *_items(textwrap.dedent(rest)), ""]
    if any(re.search(r"\S {2,}\S", line) for line in part.splitlines()):
        return ["```text", *part.splitlines(), "```", ""]
    # "Raises:" and its like also begin inside of a paragraph, at the margin
    for at, line in enumerate(part.splitlines()[1:], 1):
        if line in SECTIONS:
            above, below = part.splitlines()[:at], part.splitlines()[at:]
            return _part("\n".join(above)) + _part("\n".join(below))
    return [" ".join(part.split()), ""]


def _items(text: str) -> list[str]:
    """One bullet an item; an indented line goes on with the item before it."""
    items: list[str] = []
    for line in text.splitlines():
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    named = re.compile(r"(\w+(?:, \w+)*): (.*)")
    return [f"- `{found[1]}`: {found[2]}" if (found := named.fullmatch(one)) else f"- {one}" for one in items]


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
