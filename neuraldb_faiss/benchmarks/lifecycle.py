"""What changing a database costs: merging, against copying the same bytes; and a live handle's refresh."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from neuraldb_faiss.benchmarks import synthetic
from neuraldb_faiss.benchmarks.timing import measure
from neuraldb_faiss.editing.merging import merge
from neuraldb_faiss.search import Matcher
from neuraldb_faiss.search.subject_matcher import SubjectMatcher
from neuraldb_faiss.store import Store


def bench_merge(work: Path, *, facts: int, d1: int, d2: int, repeats: int) -> dict[str, Any]:
    """Merge two databases of `facts` each, copying and linking, beside `cp -r` of both with the same fsyncs."""
    sources = [
        synthetic.make(work / name, facts, d1=d1, d2=d2, first=number * facts) for number, name in enumerate("ab")
    ]
    size = sum(path.stat().st_size for store in sources for path in store.root.rglob("*") if path.is_file())

    def clear() -> None:
        shutil.rmtree(work / "out", ignore_errors=True)
        os.sync()

    def copy() -> None:
        (work / "out").mkdir()
        subprocess.run(["cp", "-r", *(str(store.root) for store in sources), str(work / "out")], check=True)
        for path in (work / "out").rglob("*"):
            _sync(path)

    def merged(link: bool) -> None:
        merge(sources, out=work / "out", link=link)[0].close()

    timings = {
        "cp": measure(copy, repeats=repeats, before=clear),
        "merge": measure(lambda: merged(False), repeats=repeats, before=clear),
        "merge_link": measure(lambda: merged(True), repeats=repeats, before=clear),
    }
    clear()
    for store in sources:
        store.close()
    return {
        "facts": 2 * facts,
        "bytes": size,
        "seconds": {name: timing.to_dict() for name, timing in timings.items()},
        "merge_to_cp_ratio": round(timings["merge"].median / timings["cp"].median, 3),
        "merge_link_to_cp_ratio": round(timings["merge_link"].median / timings["cp"].median, 3),
    }


def bench_refresh(work: Path, *, facts: int, d1: int, d2: int, repeats: int) -> dict[str, Any]:
    """Move a live matcher to the generation that added 100 facts, against opening the database anew; for the plain
    gate (with its flat index) and for the subject guard."""
    store = synthetic.make(work / "db", facts, d1=d1, d2=d2)
    added = [facts]

    def add() -> None:
        synthetic.append(store, 100, first=added[0])
        added[0] += 100

    report: dict[str, Any] = {"added_each_time": 100, "seconds": {}}
    for name, kind in (("plain", Matcher), ("guarded", SubjectMatcher)):
        live = kind(store.snapshot(), gamma=0.65)

        def refresh(live: Any = live) -> None:
            live.refresh(store.snapshot(like=live.source))

        def reopen(kind: Any = kind) -> None:
            again = Store(store.root)
            kind(again.snapshot(), gamma=0.65)
            again.close()

        moved, opened = measure(refresh, repeats=repeats, before=add), measure(reopen, repeats=repeats)
        report["seconds"] |= {f"{name}_refresh": moved.to_dict(), f"{name}_open": opened.to_dict()}
        report[f"{name}_refresh_to_open_ratio"] = round(moved.median / opened.median, 5)
    store.close()
    return {"facts": added[0], **report}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
