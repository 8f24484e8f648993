"""`neuraldb statistics`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers.tiny import save_tiny
from helpers.weight_edits import write_texts
from neuraldb_faiss.cli.commands.statistics import statistics
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.models import find_site, load_model
from neuraldb_faiss.research.baselines import Statistics


def run(*args: object) -> Result:
    return CliRunner().invoke(statistics, [str(arg) for arg in args])


def test_makes_what_the_methods_need(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    done = run(write_texts(tmp_path / "t.jsonl"), "--model", model, "--out", tmp_path / "c0", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["layer 0", "layer 1"]
    assert "2,529 of 2,529 tokens" in done.stderr
    loaded, _ = load_model(model, device="cpu")
    found = Statistics(tmp_path / "c0").moments(loaded, [find_site(loaded, 0), find_site(loaded, 1)])
    assert found[1].tokens == 2529


@pytest.mark.parametrize(("given", "layers"), [("2", ["2"]), ("0-2", ["0", "1", "2"]), ("3,0-1", ["0", "1", "3"])])
def test_layers_and_json(given: str, layers: list[str], tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    done = run(write_texts(tmp_path / "t.jsonl", 3), "--model", model, "--out", tmp_path / "c0", "--layers", given,
               "--tokens", 20, "--max-length", 5, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert list(made) == layers and all(Path(path).is_file() and "-15tokens-" in path for path in made.values())


@pytest.mark.parametrize("layers", ["", "a", "3-1", "1-", "1;2"])
def test_a_bad_list_of_layers_is_wrong_usage(layers: str, tmp_path: Path) -> None:
    done = run("t.jsonl", "--model", tmp_path, "--layers", layers)
    assert done.exit_code == 2 and "no list of layers" in done.output


def test_a_missing_text_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "no.jsonl", "--model", save_tiny(tmp_path / "model"), "--out", tmp_path / "c0")
    assert isinstance(done.exception, FactError) and "there is no text file" in str(done.exception)
    assert not (tmp_path / "c0").exists()
