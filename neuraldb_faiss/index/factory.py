"""Searchers of every registered kind, filled with the keys of a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from neuraldb_faiss.index import transfers
from neuraldb_faiss.index.base import KeySource, Place, Searcher
from neuraldb_faiss.index.faiss_module import gpu_count
from neuraldb_faiss.index.registry import AUTO, REGISTRY, check_kind
from neuraldb_faiss.index.vectors import unit_blocks


def make_searcher(
    source: KeySource,
    kind: str = AUTO,
    *,
    options: Mapping[str, int] | None = None,
    directory: Path | None = None,
    device: torch.device | None = None,
) -> Searcher:
    """A searcher that holds all keys of the source, live or not.

    Args:
        source: the keys.
        kind: one of `registry.names()`.
        options: of the kind, as its row in the registry names them.
        directory: the database's `search/` folder, where a kind may keep files; None to keep none.
        device: the model's. Where it is a GPU that the installed FAISS can use, a kind may put its index there.

    Raises:
        SearchError: an unknown kind, an option that the kind does not have, or FAISS is missing.
    """
    name = check_kind(kind, options)
    gpu = device if device is not None and transfers.is_gpu(device) and gpu_count() > 0 else None
    searcher = REGISTRY[name].load()(source, Place(directory, gpu), **(options or {}))
    for block in unit_blocks(source, searcher.ntotal):
        searcher.add(block)
    return searcher
