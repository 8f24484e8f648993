"""Many readers while one process writes, removes and compacts."""

from __future__ import annotations

import os
import threading
import traceback
from pathlib import Path

import numpy as np

from helpers.fake_editor import FakeEditor
from neuraldb_faiss.edits import changes
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Snapshot, Store, compact, verify

EDITOR = FakeEditor()
STEPS = 25


def fact(number: int) -> Fact:
    return Fact(f"City {number}", "{} is in", "Rome")


def write_on(path: Path) -> None:
    """Each step adds a fact, removes the one ten steps back, and now and then compacts."""
    store = Store(path, "rw")
    for step in range(1, STEPS):
        changes.add(store, EDITOR, [fact(step)])
        if step >= 10:
            gone = store.catalog.facts(store.generation, subject=f"City {step - 10}")
            changes.remove(store, list(gone))
        if step % 5 == 0:
            compact(store)


def check(store: Store, snapshot: Snapshot) -> set[str]:
    """Every live fact leads to its residual; the subjects that live."""
    live = [f for f in store.catalog.facts(snapshot.generation) if f.state == "live"]
    residuals = snapshot.residuals(np.array([f.entry for f in live], np.int64))
    for one, residual in zip(live, residuals, strict=True):
        np.testing.assert_allclose(residual, EDITOR.residual_of([one.fact()]), rtol=2e-3, atol=1e-3)
    return {f.subject for f in live}


def test_readers_beside_a_writer(quick_path: Path) -> None:
    path = quick_path / "db"
    changes.build([fact(0)], EDITOR, path).close()
    first = Store(path)
    old = first.snapshot()
    before = old.keys(np.arange(old.n_keys)).tobytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write_on(path)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    done = threading.Event()
    failed: list[BaseException] = []
    seen: list[int] = []

    def read() -> None:
        store = Store(path)
        try:
            newest = 0
            while not done.is_set():
                snapshot = store.snapshot()
                assert snapshot.generation >= newest
                newest = snapshot.generation
                numbers = sorted(int(one.split()[1]) for one in check(store, snapshot))
                if store.generation == newest:  # else a compaction may have ended the history that was read
                    assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) <= 11
                    seen.append(newest)
        except BaseException as error:
            failed.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    _, status = os.waitpid(child, 0)
    done.set()
    for thread in threads:
        thread.join()
    assert status == 0 and not failed, failed
    assert len(set(seen)) > 1, "the readers saw nothing change"
    assert old.keys(np.arange(old.n_keys)).tobytes() == before  # compacted away since, and still readable
    last = Store(path)
    assert check(last, last.snapshot()) == {f"City {n}" for n in range(STEPS - 10, STEPS)}
    assert verify(last, deep=True) == []
