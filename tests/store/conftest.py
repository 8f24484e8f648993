from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.fake_editor import FakeEditor
from neuraldb_faiss import config
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.store import joining


class FakeFingerprint:
    """Stands for a model's fingerprint where there is no model: equal names match."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def from_json(cls, text: str) -> FakeFingerprint:
        return cls(text)

    def matches(self, other: FakeFingerprint) -> bool:
        return self.name == other.name

    def describe(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "Fingerprint", FakeFingerprint)
    monkeypatch.setattr(Editor, "of", lambda config, model, tokenizer: FakeEditor(config.fingerprint))


@pytest.fixture
def eager_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly every change joins segments."""
    monkeypatch.setattr(joining, "FAN", 2)


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of files, and pull no plug."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)
