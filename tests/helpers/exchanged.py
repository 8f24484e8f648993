"""What the tests of exports and imports share: an editor that fills every field, comparisons, edited files."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers.fake_editor import D1, D2, FakeEditor, vector
from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import Fingerprint
from neuraldb_faiss.solver.editor import Edited
from neuraldb_faiss.solver.keys import KeyRows
from neuraldb_faiss.solver.outcome import FactOutcome
from neuraldb_faiss.store import Snapshot, Store, StoredFact
from neuraldb_faiss.store.segments import ARRAYS


def fingerprint(model: str = "llama", layer: int = 3) -> str:
    samples = (("model.embed_tokens.weight", (16256, 48000, 0)),)
    return Fingerprint(model, 4, D1, D2, 300, layer, f"model.layers.{layer}.mlp.down_proj", samples).to_json()


class PlacedEditor(FakeEditor):
    """A fake editor whose subjects at the start of a prompt are at position 0, and whose facts have outcomes."""

    def settings(self) -> DatabaseConfig:
        return replace(super().settings(), model_name="owner/tiny-model")

    def make_keys(self, facts: Sequence[Fact]) -> KeyRows:
        rows = super().make_keys(facts)
        token = rows.token.copy()
        token[::2] = [17 if fact.subject_span[0] == 0 else -1 for fact in facts]
        return replace(rows, token=token)

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        made = []
        for group in groups:
            outcomes = tuple(FactOutcome(0.1 + len(f.target) / 7, 1 / 3, f.target != "Steve") for f in group)
            scale = 1e6 if group[0].subject == "Oslo" else 1.0  # float16 alone would overflow
            made.append(Edited(self.residual_of(group) * scale, 0.1 + 0.2, outcomes))
        return made


EDITOR = PlacedEditor(fingerprint())


def told(fact: StoredFact) -> dict[str, Any]:
    """A fact's row without what belongs to one folder's history."""
    names = (
        "id", "identity", "subject", "prompt", "target", "target_true", "relation", "sources", "metadata", "entry",
        "key_id", "time", "residual", "loss", "nll", "probability", "took", "state",
    )  # fmt: skip
    return {name: getattr(fact, name) for name in names}


def rows(store: Store, generation: int | None = None) -> list[dict[str, Any]]:
    at = store.generation if generation is None else generation
    return [told(fact) for fact in store.catalog.facts(at, every_row=True)]


def arrays(store: Store, generation: int | None = None) -> dict[str, np.ndarray]:
    """Every array over all segments, without dead entries; key_rows as rows of all entries."""
    snapshot = store.snapshot(generation)
    states = store.catalog.states(snapshot.generation)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    first = 0
    for segment in snapshot.segments:
        keep = np.array([states.get(int(entry)) != "dead" for entry in segment.entries], bool)
        whole = segment.rows().select(keep)
        for name in ARRAYS:
            found[name].append(getattr(whole, name) + (first if name == "key_rows" else 0))
        first += len(whole.entries)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def assert_equal(one: Store, other: Store, generation: int | None = None) -> None:
    """`other` holds what `one` held at `generation`: facts, arrays, settings, and what fires."""
    at = one.generation if generation is None else generation
    assert rows(other) == rows(one, at)
    mine, theirs = arrays(one, at), arrays(other)
    for name in ARRAYS:
        assert mine[name].dtype == theirs[name].dtype
        assert mine[name].tobytes() == theirs[name].tobytes(), name
    local = {"epoch", "history_start"}
    assert {k: v for k, v in one.config(at).to_json().items() if k not in local} == {
        k: v for k, v in other.config().to_json().items() if k not in local
    }
    queries = np.concatenate([np.stack([vector(f"query {n}", D1) for n in range(50)]), mine["keys"].astype(np.float32)])
    assert_fires_alike(one.snapshot(at), other.snapshot(), queries)


def assert_fires_alike(one: Snapshot, other: Snapshot, queries: np.ndarray) -> None:
    for first_tokens in (None, np.full(len(queries), 17), np.full(len(queries), -1)):
        matchers = [Matcher(snapshot, "flat", gamma=0.3) for snapshot in (one, other)]
        found = [matcher.match(queries, None, first_tokens, exact=True) for matcher in matchers]
        assert found[0].fired.any() or first_tokens is not None
        for name in ("entry_ids", "scores", "fired"):
            assert getattr(found[0], name).tolist() == getattr(found[1], name).tolist()


# ---- safetensors files, taken apart and put together again without the library


def take_apart(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    spans = {name: one["data_offsets"] for name, one in header.items() if name != "__metadata__"}
    return header, {name: data[8 + length + start : 8 + length + end] for name, (start, end) in spans.items()}


def put_together(path: Path, header: dict[str, Any], tensors: dict[str, bytes]) -> None:
    """`data_offsets` are made from the bytes given."""
    at = 0
    for name, data in tensors.items():
        header[name]["data_offsets"] = [at, at + len(data)]
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    header, tensors = take_apart(path)
    change(header, tensors)
    put_together(path, header, tensors)
