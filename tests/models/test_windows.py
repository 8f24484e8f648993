"""Models whose attention reaches back a few tokens only: texts longer than the window change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import tiny as tiny_module
from helpers.matrix import CHECKS, Subject

WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt_neo": {"window_size": 6},
    "cohere2": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
}


@pytest.mark.parametrize("kind", WINDOWED)
def test_matrix_with_a_short_window(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(tiny_module._CONFIGS, kind, {**tiny_module._CONFIGS[kind], **WINDOWED[kind]})
    subject = Subject(kind, tmp_path / "db")
    given = subject.model.config
    assert all(getattr(given, name) == value for name, value in WINDOWED[kind].items())
    assert max(map(len, subject.texts)) > 12
    for check in CHECKS.values():
        check(subject)
    assert subject.way() != "full"
