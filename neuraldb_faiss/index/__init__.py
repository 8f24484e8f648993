"""Top-1 under the gate: which stored key, if any, answers a query."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraldb_faiss.index.base import KINDS, EntrySource, KeySource, Searcher, make_searcher
    from neuraldb_faiss.index.faiss_module import FaissMissing
    from neuraldb_faiss.index.matcher import Matcher, Matches

__all__ = [
    "KINDS",
    "EntrySource",
    "FaissMissing",
    "KeySource",
    "Matcher",
    "Matches",
    "Searcher",
    "make_searcher",
]

_HOMES = {
    "EntrySource": ".base",
    "FaissMissing": ".faiss_module",
    "KINDS": ".base",
    "KeySource": ".base",
    "Matcher": ".matcher",
    "Matches": ".matcher",
    "Searcher": ".base",
    "make_searcher": ".base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
