"""Makes tests/data/format-1: a small database of format 1, read by tests/store/test_golden.py.

    PYTHONPATH=.:tests python tests/data/make_golden.py tests/data/format-1

The folder in the repository was made once and stays: every later version must read it as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from helpers.fake_editor import FakeEditor
from neuraldb_faiss.edits import changes
from neuraldb_faiss.facts import Fact


def make(path: Path) -> None:
    editor = FakeEditor("golden")
    facts = [
        Fact("Eiffel Tower", "The {} stands in", "Rome", source="golden"),
        Fact("Oslo", "{} is the capital of", "Peru", relation="P36", target_true="Norway", source="golden"),
        Fact("Lima", "{} is in", "Japan", id="lima", metadata={"aliases": ["Ciudad de los Reyes"]}),
        Fact("Łódź", "{} lies on the river", "Nile"),
    ]
    store = changes.build(facts, editor, path)
    changes.add(store, editor, [Fact("Quito", "{} is in", "Egypt", source="later")])
    changes.add(store, editor, [Fact("Eiffel Tower", "The {} stands in", "Oslo", source="later")])
    changes.remove(store, list(store.catalog.facts(store.generation, ids=["lima"])))
    store.close()
    (path / "writer.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
