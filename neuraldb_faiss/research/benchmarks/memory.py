"""What a process takes that answers from a database: `python -m neuraldb_faiss.research.benchmarks.memory DB`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import torch

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.guard.folding import fold_bytes
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.subject import SubjectMatcher

ASKED = 512


def memory_of(path: Path) -> dict[str, int]:
    """Bytes that a fresh process needs to open the database under the subject guard and answer 512 lookups spread over
    it, with their residuals: `anonymous` (its own memory) and `mapped` (of files, which the system may drop and read
    again)."""
    command = [sys.executable, "-m", "neuraldb_faiss.research.benchmarks.memory", str(path)]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return found


def _resident() -> dict[str, int]:
    memory = psutil.Process().memory_info()
    return {"anonymous": memory.rss - memory.shared, "mapped": memory.shared}


def _answer(db: NeuralDB) -> None:
    matcher = SubjectMatcher(db.snapshot, gamma=0.0)
    source = db.snapshot
    at = np.flatnonzero(np.asarray(source.key_tokens) < 0)
    for position in at[:: max(1, len(at) // ASKED)].tolist():
        entry = int(source.key_entries[position])
        data = source.names(entry)[0].encode()
        codes, cases, _ = fold_bytes(data)
        text = Folded(codes, cases, np.zeros(len(codes), np.int64))
        found = matcher.match(torch.from_numpy(source.keys(np.array([position]))), text, np.array([-1]))
        assert bool(found.fired[0])
        source.residuals(found.entry_ids.numpy())


def main() -> None:
    torch.zeros(1)
    before = _resident()
    with NeuralDB.open(sys.argv[1]) as db:
        _answer(db)
        after = _resident()
    print(json.dumps({kind: after[kind] - before[kind] for kind in after}))


if __name__ == "__main__":
    main()
