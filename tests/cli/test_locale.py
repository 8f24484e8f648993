"""No locale ends a command: what an encoding lacks is escaped, and JSON stays JSON."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers.commands import Run, write
from neuraldb_faiss.cli.main import cli

FACT = {"subject": "Zürich 東京", "prompt": "I know that {} is in", "target": "伦敦 🍕", "id": "ü"}
PROMPT = "I know that Zürich 東京 is in"
CHARSETS = {"ascii": "utf-8", "latin-1": "latin-1", "utf-8": "utf-8"}  # of the stream -> of what is written


@pytest.fixture(scope="module")
def database(run: Run, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locale")
    out = folder / "db"
    done = run("build", write(folder / "f.jsonl", [FACT]), "--out", out, "--model", model, "--residual", "none")
    assert done.exit_code == 0, done.output
    return out


def invoke(charset: str, *arguments: object) -> Result:
    done = CliRunner(charset=charset).invoke(cli, [str(one) for one in arguments])
    assert done.exit_code == 0, (done.exception, done.stderr_bytes)
    return done


@pytest.mark.parametrize("charset", CHARSETS)
def test_commands_that_print_texts(charset: str, database: Path) -> None:
    for arguments in (("facts",), ("history",), ("info",), ("generate", PROMPT), ("explain", PROMPT)):
        name, *rest = arguments
        invoke(charset, name, database, *rest)
    shown = invoke(charset, "generate", database, PROMPT, "--explain", "--compare").stdout_bytes
    assert PROMPT.encode(CHARSETS[charset], "backslashreplace") in shown
    found = invoke(charset, "facts", database).stdout_bytes.decode(CHARSETS[charset])
    assert found.startswith("ü  ") and ("伦敦 🍕" if charset != "latin-1" else "\\u4f26\\u6566 \\U0001f355") in found


@pytest.mark.parametrize("charset", CHARSETS)
def test_json_and_csv_stay_what_they_are(charset: str, database: Path) -> None:
    (fact,) = json.loads(invoke(charset, "facts", database, "--json").stdout_bytes)
    assert (fact["subject"], fact["target"]) == (FACT["subject"], FACT["target"])
    for name in ("generate", "explain"):
        assert json.loads(invoke(charset, name, database, PROMPT, "--json").stdout_bytes)["prompt"] == PROMPT
    text = invoke(charset, "facts", database, "--csv").stdout_bytes.decode(CHARSETS[charset])
    assert [row["id"] for row in csv.DictReader(io.StringIO(text))] == ["ü"]


@pytest.mark.parametrize("charset", CHARSETS)
def test_errors_quote_what_was_given(charset: str) -> None:
    done = CliRunner(charset=charset).invoke(cli, ["info", "東京/ü"])
    assert done.exit_code == 1 and b"Error: " in done.stderr_bytes
    assert CliRunner(charset=charset).invoke(cli, ["東京"]).exit_code == 2


def test_a_process_in_locale_c(database: Path) -> None:
    """As Python runs there by itself, and without its own way out."""
    for more in ({}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = subprocess.run(
            [sys.executable, "-m", "neuraldb_faiss.cli", "facts", str(database)],
            capture_output=True, check=False, env={**os.environ, "LC_ALL": "C", **more},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().startswith("ü  I know that Zürich 東京 is in → 伦敦 🍕")


def test_files_are_opened_as_utf8() -> None:
    """Whatever opens a text file, or reads another program's text, says its encoding."""
    root = Path(__file__).parents[2]
    for path in (one for folder in ("neuraldb_faiss", "scripts", "examples") for one in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {one.arg: one.value for one in node.keywords}
            is_text = name in ("read_text", "write_text") or ("text" in given and name in ("run", "Popen"))
            if name == "open" and isinstance(node.func, ast.Name) and len(node.args) < 3:
                is_text = not any("b" in str(getattr(one, "value", "b")) for one in node.args[1:2])
            assert not is_text or "encoding" in given, f"{path}, line {node.lineno}"
