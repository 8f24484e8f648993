"""What finding the nearest key costs: each way to search, against NumPy's brute force over the same keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.index.base import KeySource
from neuraldb_faiss.index.factory import make_searcher
from neuraldb_faiss.research.benchmarks.timing import Timing, seconds_of

BATCHES = (1, 64)
QUERIES, RECALL = 512, 128


class HeldKeys:
    """Keys in memory as a store's snapshot has them: float16 rows."""

    epoch = lineage = 1

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        self.n_keys, self.d1 = keys.shape
        self.key_entries = np.arange(self.n_keys)
        self.key_tokens = np.full(self.n_keys, -1, np.int32)
        self.live = np.ones(self.n_keys, bool)

    def key_blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        yield start, self._keys[start:]

    def keys(self, positions: np.ndarray) -> np.ndarray:
        return self._keys[positions]


def lifted(rows: np.ndarray, d1: int) -> np.ndarray:
    """float32 unit rows of d1 dimensions with the very cosines that these have among each other: repeated as often as
    fits, the rest zeros. Keys of a model with wider layers are not at hand, and cosines are what a random rotation
    sees; how long a scan takes does not depend on what is in the rows."""
    unit = rows.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    n, d = unit.shape
    times = max(1, d1 // d)
    out = np.zeros((n, max(d, d1)), np.float32)
    unit /= np.float32(np.sqrt(times))
    for at in range(times):
        out[:, at * d : (at + 1) * d] = unit
    return out


def bench_keys(
    source: KeySource, *, facts: int, d1: int | None, repeats: int, peers: tuple[str, ...], gamma: float = 0.65
) -> dict[str, Any]:
    """Median seconds of one search over the first `facts` keys of a database, taking turns, for 1 query and for 64;
    time ÷ NumPy's; and the gated recall: of the queries that brute force fires at gamma, the share for which a key as
    near comes first.

    The keys are brought to `d1` dimensions. One query in eight is a later key, the others are earlier ones with noise:
    about a quarter fires, in ordinary text a seventh does. peers: names of `PEERS`; one that is not installed is listed
    under "missing".

    Raises SearchError for an unknown peer.
    """
    if unknown := sorted(set(peers) - set(PEERS)):
        raise SearchError(f"unknown way to search {unknown[0]!r}: choose among {', '.join(PEERS)}")
    usable = np.flatnonzero(np.asarray(source.key_tokens) < 0)  # those at position 0 are searched by their token
    n = min(facts, max(1, len(usable) - QUERIES // 8))
    narrow = lifted(source.keys(usable[: n + QUERIES // 8]), source.d1)
    random = np.random.default_rng(2)
    noisy = narrow[random.choice(n, QUERIES - (len(narrow) - n))]
    noise = random.standard_normal(noisy.shape, np.float32) / np.float32(np.sqrt(source.d1))
    noisy = noisy + noise * random.uniform(0.8, 4, (len(noisy), 1)).astype(np.float32)
    asked = np.concatenate([narrow[n:], noisy])[random.permutation(QUERIES)]
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    truth = np.concatenate([asked[at : at + 64] @ narrow[:n].T for at in range(0, QUERIES, 64)])
    keys, queries = lifted(narrow[:n], d1 or 0), lifted(asked, d1 or 0)
    return _bench(keys, queries, truth, gamma=gamma, repeats=repeats, peers=peers)


def _bench(
    keys: np.ndarray, queries: np.ndarray, truth: np.ndarray, *, gamma: float, repeats: int, peers: tuple[str, ...]
) -> dict[str, Any]:
    """keys: float32 [n, d1], queries: float32 [m, d1], unit rows; truth: their cosines [m, n]."""
    report: dict[str, Any] = {"keys": len(keys), "d1": keys.shape[1], "gamma": gamma, "seconds": {}, "missing": []}
    top = truth.max(1)
    fires = top > gamma
    report |= {"queries": len(queries), "fired_by_brute_force": int(fires.sum())}
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    for name in ("numpy", "sketch", *peers):
        try:
            ways[name] = _WAYS[name](keys, gamma)
        except ImportError:
            report["missing"].append(name)
    for batch in BATCHES:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(1 + repeats):
            others, rows = (queries[at * batch % (len(queries) - batch + 1) :][:batch] for at in (turn, turn + 1))
            for name, search in ways.items():
                search(others)  # so that its own threads are awake, and not another library's
                times[name].append(seconds_of(partial(search, rows)))
        for name, found in times.items():
            kept = found[1:]  # the first is the warm-up
            timing = Timing(median(kept), min(kept), max(kept), repeats)
            report["seconds"][f"{name}_{batch}"] = timing.to_dict()
            ratios = [one / other for one, other in zip(kept, times["numpy"][1:], strict=True)]
            report[f"{name}_{batch}_to_numpy_ratio"] = round(median(ratios), 5)
    for name, search in ways.items():
        if name == "numpy":
            continue
        looked = len(queries) if name == "sketch" else RECALL
        got = np.concatenate([search(queries[at : at + 64]) for at in range(0, looked, 64)])
        asked = np.flatnonzero(fires[:looked])
        right = (got[asked] >= 0) & (truth[asked, got[asked]] >= top[asked] - 1e-5)  # of equals either is right
        report[f"{name}_gated_recall"] = round(float(right.mean()), 6) if len(asked) else None
    return report


def _numpy(keys: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: (rows @ keys.T if len(rows) > 1 else (keys @ rows[0])[None]).argmax(1)


def _torch(keys: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    held = torch.from_numpy(keys)
    return lambda rows: (torch.from_numpy(rows) @ held.T).argmax(1).numpy()


def _sketch(keys: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    searcher = make_searcher(HeldKeys(keys.astype(np.float16)), "sketch")
    return lambda rows: searcher.search(rows, 2, above=gamma)[1][:, 0]


def _faiss(factory: str, **settings: int) -> Callable[[np.ndarray, float], Callable[[np.ndarray], np.ndarray]]:
    def make(keys: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
        from neuraldb_faiss.index.faiss_module import load_faiss, small_batches

        faiss = load_faiss()
        index = faiss.index_factory(keys.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(keys[:: max(1, len(keys) // 20_000)])
        index.add(keys)
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)

        def search(rows: np.ndarray) -> np.ndarray:
            with small_batches(keys.shape[1]):
                return index.search(rows, 1)[1][:, 0]

        return search

    return make


def _usearch(keys: np.ndarray, gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    from usearch.index import Index

    index = Index(ndim=keys.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(keys)), keys, threads=1)
    return lambda rows: np.asarray(index.search(rows, 1, threads=1).keys).reshape(-1).astype(np.int64)


_WAYS: dict[str, Callable[[np.ndarray, float], Callable[[np.ndarray], np.ndarray]]] = {
    "numpy": _numpy,
    "sketch": _sketch,
    "torch": _torch,
    "flat": _faiss("Flat"),
    "sq8": _faiss("SQ8"),
    "ivf": _faiss("IVF256,Flat", nprobe=32),
    "hnsw": _faiss("HNSW16", efConstruction=40, efSearch=64),
    "usearch": _usearch,
}
PEERS = tuple(name for name in _WAYS if name not in ("numpy", "sketch"))
