"""Real processes killed with SIGKILL at random moments. scripts/crash_test.sh runs this module for long.

A child is forked, so it need not import torch again; it opens its own stores and dies in the middle of a command.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.exchanged import EDITOR, PlacedEditor, fingerprint
from helpers.pieces import set_piece
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Edited
from neuraldb_faiss.store import Store, compact, copy, joining, repair, rollback, verify
from neuraldb_faiss.store.segments import ARRAYS

CRASHES = int(os.environ.get("NEURALDB_CRASHES", "20"))
pytestmark = pytest.mark.usefixtures("eager_joining")


class SlowEditor(PlacedEditor):
    def make_residuals(self, *groups: Any, **how: Any) -> list[Edited]:
        time.sleep(0.03)
        return super().make_residuals(*groups, **how)


def fact(subject: str, target: str = "Rome", relation: str = "{} is in") -> Fact:
    return Fact(subject=subject, prompt=relation, target=target, source="test")


BUILT = [fact(f"City {n % 30}", relation=("{} is in", "{} was founded by")[n // 30]) for n in range(40)]


SEED = int(os.environ.get("NEURALDB_SEED", random.SystemRandom().randrange(1 << 30)))


def run_and_kill(command: Callable[[], Any], after: float | None = None) -> bool:
    """Run `command` in a forked child, killed so many seconds after it began (None: never); did it end by itself?"""
    began, begin = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(begin, b"!")
            command()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.read(began, 1)  # forking takes longer than most commands here: the clock starts behind it
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(began)
    os.close(begin)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the command failed by itself"
    return True


def timed(command: Callable[[], Any]) -> float:
    """Seconds that `command` takes in a child, as the child sees it."""
    result, tell = os.pipe()

    def run() -> None:
        start = time.perf_counter()
        command()
        os.write(tell, str(time.perf_counter() - start).encode())

    assert run_and_kill(run)
    seconds = float(os.read(result, 100))
    os.close(result)
    os.close(tell)
    return seconds


def rows(store: Store) -> list[tuple[Any, ...]]:
    return [tuple(dict(row, time="").values()) for row in store.catalog.all("SELECT * FROM facts ORDER BY row")]


def arrays(store: Store) -> dict[str, bytes]:
    """Every array over all key positions (or entries), whichever segments hold them; key_rows as entry ids."""
    opened = store.snapshot().segments
    found = {
        name: b"".join(np.asarray(getattr(segment, f"_{name}")).tobytes() for segment in opened)
        for name in ARRAYS
        if name != "key_rows"
    }
    return {**found, "key_entries": b"".join(segment.key_entries.tobytes() for segment in opened)}


def shown(root: Path, damaged_until: int = 0) -> dict[str, str] | None:
    """What lives and whether it fires; None where nothing was published. Opened both ways, the reader first: it meets
    the journal. Up to the generation `damaged_until` the first segment, and only that, is damaged."""
    try:
        reader = Store(root)
    except StoreError:
        return None
    try:
        facts = {f.text: f"{f.target} ({f.state})" for f in reader.catalog.facts(reader.generation)}
        first = min(record.segment for record in reader.catalog.segments(reader.generation))
        expected = {first} if reader.generation <= damaged_until else set()
        assert {problem.segment for problem in verify(reader, deep=True)} == expected
    finally:
        reader.close()
    writer = Store(root, "rw")
    assert {problem.segment for problem in verify(writer, deep=True)} == expected
    writer.close()
    return facts


@pytest.mark.timeout(0 if CRASHES > 20 else 300)
def test_a_killed_build_resumes_to_the_same_database(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_piece(monkeypatch, 3)

    def build(path: Path) -> None:
        changes.build(BUILT, SlowEditor(fingerprint()), path)

    took = timed(lambda: build(quick_path / "calm"))
    calm = Store(quick_path / "calm")
    expected_rows, expected_arrays, expected = rows(calm), arrays(calm), shown(calm.root)
    calm.close()
    chance, killed, published, staged = random.Random(SEED), 0, 0, Counter[int]()
    for number in range(CRASHES):
        path = quick_path / f"db{number}"
        killed += not run_and_kill(partial(build, path), chance.uniform(0, took))
        found = shown(path)
        assert found in (None, expected)
        if found is None:
            staged[len(list((path / "segments").glob("*"))) if path.exists() else -1] += 1
            assert run_and_kill(partial(build, path))
        else:
            published += 1
        store = Store(path)
        assert rows(store) == expected_rows
        assert arrays(store) == expected_arrays
        assert verify(store, deep=True) == []
        store.close()
        shutil.rmtree(path)
    print(f"build: {killed} of {CRASHES} killed ({took:.2f} s undisturbed, seed {SEED}), {published} had published;"
          f" segment folders found: {dict(sorted(staged.items()))}")  # fmt: skip


def prepare(path: Path) -> None:
    """path/db, of five generations, and path/other to merge."""
    store = changes.build(BUILT[:12], EDITOR, path / "db")
    changes.add(store, EDITOR, [fact("Oslo"), fact("City 1", "Kyiv"), fact("Oslo", "Ibsen", "{} was founded by")])
    changes.remove(store, [f for f in store.catalog.facts(2) if f.subject in ("City 3", "City 4")])
    changes.add(store, EDITOR, [fact(f"Town {n}") for n in range(5)])
    rollback(store, 2)
    store.close()
    other = changes.build([fact("Bonn"), fact("Ulm"), fact("City 1", "Lima"), fact("City 2")], EDITOR, path / "other")
    export(other, path / "file", "safetensors")
    other.close()


def leave_waiting(path: Path) -> None:
    """Of the two facts of one entry, one goes, and the other waits to be solved."""
    store = Store(path / "db", "rw")
    (gone,) = [f for f in store.catalog.facts(store.generation) if f.subject == "Oslo" and f.target == "Ibsen"]
    changes.remove(store, [gone])
    store.close()


def damage(path: Path) -> None:
    keys = min((path / "db" / "segments").iterdir()) / "keys.npy"
    data = bytearray(keys.read_bytes())
    data[-1] ^= 0x10
    keys.write_bytes(bytes(data))


def opened(work: Path) -> Store:
    return Store(work / "db", "rw")


def add(work: Path) -> None:
    changes.add(opened(work), EDITOR, [*(fact(f"New {n}") for n in range(9)), fact("City 5", "Kyiv")])


def remove(work: Path) -> None:
    store = opened(work)
    gone = ("City 7", "Oslo")
    live = store.catalog.facts(store.generation)
    changes.remove(store, [f for f in live if f.subject in gone and f.target == "Rome"])


def roll_back(work: Path) -> None:
    rollback(opened(work), 4)


def compact_it(work: Path) -> None:
    compact(opened(work))


def merge_into_it(work: Path) -> None:
    merge.merge([Store(work / "other")], into=opened(work), on_conflict="last")


def merge_anew(work: Path) -> None:
    merge.merge([Store(work / "db"), Store(work / "other")], out=work / "out", on_conflict="first", link=True)


def merge_and_solve(work: Path) -> None:
    merge.merge([Store(work / "other")], into=opened(work), on_conflict="first", model=object())


def solve(work: Path) -> None:
    changes.solve(opened(work), EDITOR)


def import_into_it(work: Path) -> None:
    import_file(work / "file", into=work / "db", on_conflict="last")


def import_anew(work: Path) -> None:
    import_file(work / "file", out=work / "out")


def copy_it(work: Path) -> None:
    copy(Store(work / "db"), work / "out")


def repair_it(work: Path) -> None:
    repair(opened(work))


COMMANDS = (
    add, remove, roll_back, compact_it, merge_into_it, merge_anew, merge_and_solve, solve, import_into_it, import_anew,
    copy_it, repair_it,
)  # fmt: skip
CAIRO = {"Cairo is in": "Rome (live)"}
ANEW = (merge_anew, import_anew, copy_it)
FIRST = {solve: leave_waiting, repair_it: damage}


@pytest.mark.timeout(0 if CRASHES > 20 else 300)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_killed_command_leaves_before_or_after(
    command: Callable[[Path], None], quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_piece(monkeypatch, 3)
    if command is repair_it:
        monkeypatch.setattr(joining, "FAN", 99)  # several segments, of which one is damaged
    prepare(quick_path / "start")
    FIRST.get(command, lambda _: None)(quick_path / "start")
    start, calm, work = quick_path / "start", quick_path / "calm", quick_path / "work"
    result = "out" if command in ANEW else "db"
    damaged = Store(start / "db").generation if command is repair_it else 0
    before = shown(start / result, damaged)
    shutil.copytree(start, calm)
    took = timed(lambda: command(calm))
    for again in ("second", "third"):  # the first run is slower than those to come
        shutil.copytree(start, quick_path / again)
        took = min(took, timed(partial(command, quick_path / again)))
    after = shown(calm / result)
    newest = Store(calm / result).generation
    chance, seen, killed = random.Random(SEED), Counter[str](), 0
    for number in range(max(10, CRASHES // 2)):
        shutil.copytree(start, work)
        killed += not run_and_kill(lambda: command(work), chance.uniform(0, took * 1.2))
        assert shown(work / "db", damaged) is not None and shown(work / "other") is not None
        found = shown(work / result, damaged)
        done = Store(work / "db").generation == newest if result == "db" else found is not None
        seen["after" if done else "before"] += 1
        assert found == (after if done else before)
        # Every second time another command comes next, and the killed one is given again behind it.
        between = bool(number % 2) and found is not None and not damaged
        if between:
            store = Store(work / result, "rw")
            if command is not roll_back:
                changes.add(store, EDITOR, [fact("Cairo")])
                assert verify(store, deep=True) == []
            else:
                compact(store)
            expected = {**(found or {}), **CAIRO} if command is not roll_back else found
            store.close()
            assert shown(work / result) == expected
        if not done and not (between and command is roll_back):
            command(work)
            extra = CAIRO if between else {}
            assert shown(work / result) == {**(after or {}), **extra}
        left = {path.name for path in (work / result / "segments").iterdir()}
        store = Store(work / result, "rw")
        with store.write("sweep"):
            pass
        named = {f"{row['segment']:08d}" for row in store.catalog.all("SELECT segment FROM segments")}
        assert {path.name for path in (work / result / "segments").iterdir()} == named <= left
        store.close()
        shutil.rmtree(work)
    of = f"{killed} of {sum(seen.values())} killed ({took * 1000:.0f} ms undisturbed, seed {SEED})"
    print(f"{command.__name__}: {of}, found {dict(seen)}")


def test_a_reader_rolls_a_killed_commit_back(quick_path: Path) -> None:
    """The journal of a commit that was killed while it wrote is met by a reader first, an open one too."""
    store = changes.build(BUILT, EDITOR, quick_path / "db")
    reader = Store(store.root)
    before = shown(store.root)
    store.close()

    def die() -> None:
        writer = Store(quick_path / "db", "rw")
        writer.catalog.all("PRAGMA cache_size = 1")  # pages go to the file before the commit
        with writer.catalog.transaction():
            writer.catalog.run("UPDATE facts SET target = 'Nowhere'")
            for number in range(500):
                writer.catalog.run("INSERT INTO staging VALUES (?, ?)", (str(number), "x" * 500))
            os.kill(os.getpid(), signal.SIGKILL)

    assert not run_and_kill(die)
    assert (quick_path / "db" / "catalog.sqlite-journal").stat().st_size > 0
    assert {f.text: f"{f.target} ({f.state})" for f in reader.catalog.facts(reader.generation)} == before
    reader.close()
    assert shown(quick_path / "db") == before
