"""`neuraldb models`: what is listed, and where the model that is fetched goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import Run
from helpers.tiny import save_tiny
from neuraldb_faiss.models import download


def test_the_list_names_sizes_licences_and_what_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "models" / "gemma-3-270m")
    shown = run("models", "list").stdout
    assert "qwen2.5-0.5b" in shown and "Apache-2.0" in shown and "491 MB" in shown
    rows = {row["name"]: row for row in json.loads(run("models", "list", "--json").stdout)}
    assert [name for name, row in rows.items() if row["there"]] == ["gemma-3-270m"]
    assert rows["gemma-3-270m"]["licence"] == "Gemma Terms of Use" and rows["demo"]["download_bytes"] == 98_362_432


def test_a_model_that_is_there_is_named_and_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "models" / "qwen2.5-0.5b")
    assert run("models", "get", "qwen2.5-0.5b").stdout == "models/qwen2.5-0.5b\n"
    other = save_tiny(tmp_path / "other")
    assert run("models", "get", "demo", "--out", other).stdout == f"{other}\n"


def test_a_model_that_cannot_be_had_is_one_line_after_its_licence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_from_hub", _unavailable)
    done = run("models", "get", "gemma-3-270m", "--out", tmp_path / "m", "--source", "hub")
    first, *_, last = done.stderr.strip().splitlines()
    assert done.exit_code == 1 and "Gemma Terms of Use (https://ai.google.dev/gemma/terms)" in first
    assert last == "Error: cannot get the model gemma-3-270m: the hub is away"
    assert run("models", "get", "gpt9").exit_code == 2


def _unavailable(*_: object) -> None:
    raise download._Unavailable("the hub is away")
