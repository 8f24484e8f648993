"""What opening a database and changing it costs: merging, against copying the same bytes; a live handle's refresh."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.edits.merge import merge
from neuraldb_faiss.guard.folding import fold_bytes
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.subject import SubjectMatcher
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.research.benchmarks import synthetic
from neuraldb_faiss.research.benchmarks.timing import measure, measure_in_turn
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

    ways = {"cp": copy, "merge": lambda: merged(False), "merge_link": lambda: merged(True)}
    timings = measure_in_turn(ways, repeats=repeats, before=clear)
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


def bench_open(work: Path, *, facts: int, d1: int, d2: int, repeats: int) -> dict[str, Any]:
    """Open a database to its first answer under the subject guard, with the name index on disk and without; and add 100
    facts to it until a live matcher answers with them. The program itself has been loaded before."""
    store = synthetic.make(work / "db", facts, d1=d1, d2=d2)
    store.close()

    def ask(matcher: SubjectMatcher, fact: int) -> None:
        """That this fact, two keys each, answers to its own key."""
        key = torch.from_numpy(matcher.source.keys(np.array([2 * fact])))
        assert matcher.match(key, _text(f"Subject {fact}"), np.array([-1])).entry_ids[0] == fact

    def answer() -> None:
        with closing(Store(work / "db")) as opened:
            ask(SubjectMatcher(opened.snapshot(), gamma=0.0), facts - 1)

    writer = Store(work / "db", "rw")
    live, added = SubjectMatcher(writer.snapshot(), gamma=0.0), [facts]

    def add() -> None:
        synthetic.append(writer, 100, first=added[0])
        added[0] += 100
        live.refresh(writer.snapshot(like=live.source))  # type: ignore[arg-type]
        ask(live, added[0] - 1)

    opened = measure(answer, repeats=repeats)
    anew = measure(
        answer, repeats=min(3, repeats), warm_up=0, before=lambda: shutil.rmtree(work / "db" / "search", True)
    )
    visible = measure(add, repeats=repeats)
    writer.close()
    timings = {"open_to_first_answer": opened, "first_open_ever": anew, "add_100_to_visible": visible}
    return {
        "facts": facts,
        "seconds": {name: timing.to_dict() for name, timing in timings.items()},
        "open_to_first_open_ratio": round(opened.median / anew.median, 5),
    }


def _text(words: str) -> Folded:
    """One token that says this."""
    codes, cases, ends = fold_bytes(words.encode())
    return Folded(codes, cases, np.zeros_like(ends))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
