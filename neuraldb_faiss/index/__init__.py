"""Nearest-neighbour search over stored keys: the index kinds, on CPUs and GPUs, and the exact decision."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraldb_faiss.index.base import EntrySource, KeySource, Searcher
    from neuraldb_faiss.index.factory import make_searcher
    from neuraldb_faiss.index.faiss_module import FaissMissing
    from neuraldb_faiss.index.matcher import Matcher, Matches

__all__ = [
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
    "KeySource": ".base",
    "Matcher": ".matcher",
    "Matches": ".matcher",
    "Searcher": ".base",
    "make_searcher": ".factory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
