"""Is a database folder whole, and what can be done where it is not? Covers what is derived (`search/`) too."""

from __future__ import annotations

from pathlib import Path

from neuraldb_faiss import store as st
from neuraldb_faiss.guard.name_files import damaged_subjects, forget_subjects
from neuraldb_faiss.index.clustering_files import damaged_files, forget_clustering
from neuraldb_faiss.store import Problem, Repaired, Store

DERIVED = "search"


def check(store: Store, *, deep: bool = False) -> list[Problem]:
    """What is wrong with the folder of `store`; empty where nothing is. `deep` reads every byte."""
    return st.verify(store, deep=deep) + (_derived(store.root) if deep else [])


def repair(path: str | Path, *, wait: float = 10.0) -> Repaired:
    """Make a damaged folder serve again: what is derived goes, to be made anew when it is next needed, and damaged
    arrays are moved to `quarantine/` (see `store.repair`).

    Raises:
        CorruptError: the catalog itself is damaged; nothing has changed then.
    """
    store = Store(path, "rw")
    try:
        done = st.repair(store, wait=wait)
        if _derived(store.root):
            forget_clustering(store.root / DERIVED)
            forget_subjects(store.root / DERIVED)
        return done
    finally:
        store.close()


def _derived(root: Path) -> list[Problem]:
    return [
        Problem(f"{DERIVED}/{name}", f"{what}; it is derived: --repair drops it, and it is made anew")
        for name, what in damaged_files(root / DERIVED) + damaged_subjects(root / DERIVED)
    ]
