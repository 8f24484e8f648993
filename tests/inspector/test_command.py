"""The commands themselves: a page in a file, and a server that is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.commands import digest
from neuraldb_faiss.cli.commands.explain import explain

from .conftest import PROMPT

ROOT = Path(__file__).resolve().parents[2]
CODE = "from neuraldb_faiss.cli.commands.inspect import inspect; inspect()"


def test_a_page_is_written(folder: Path, db: Path, tmp_path: Path) -> None:
    before = digest(db)
    out = tmp_path / "out.html"
    arguments = [str(db), PROMPT, "--model", str(folder / "tiny"), "--html", str(out), "--max-new-tokens", "3"]
    done = CliRunner().invoke(explain, arguments)
    assert done.exit_code == 0 and done.stdout == "" and f"written: {out}" in done.stderr
    assert "atlas.csv" in out.read_text(encoding="utf-8") and digest(db) == before
    other = CliRunner().invoke(explain, [*arguments, "--guard", "none"])
    assert other.exit_code == 0 and "γ 0.65, guard none" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("more", [["--json"], ["--top", "3"]])
def test_a_page_goes_with_nothing_that_prints(db: Path, tmp_path: Path, more: list[str]) -> None:
    done = CliRunner().invoke(explain, [str(db), PROMPT, "--html", str(tmp_path / "out.html"), *more])
    assert done.exit_code == 2 and "--html writes a page" in done.stderr and not (tmp_path / "out.html").exists()


def test_a_page_that_cannot_be_written_is_said(folder: Path, db: Path, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "out.html"
    done = CliRunner().invoke(explain, [str(db), PROMPT, "--model", str(folder / "tiny"), "--html", str(out)])
    assert done.exit_code == 1 and f"there is no folder {out.parent} to write it in" in str(done.exception)


def test_inspect_prints_where_it_is_and_stops_when_it_is_told(folder: Path, db: Path) -> None:
    httpx = pytest.importorskip("httpx2")
    pytest.importorskip("prometheus_client")
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(db), "--model", str(folder / "tiny"), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        address, token = process.stdout.readline().strip().split("/#token=")
        assert address.startswith("http://127.0.0.1:") and len(token) >= 32
        told = httpx.get(f"{address}/inspect/about", headers={"Authorization": f"Bearer {token}"}, timeout=60)
        assert told.json()["facts"] == 3
        asked = httpx.post(
            f"{address}/inspect/look", json={"prompt": PROMPT}, headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        assert asked.json()["summary"] == "1 fired (Rome)."
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        errors = process.stderr.read()
        assert errors.splitlines()[-1] == "stopped" and token not in errors
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def test_inspect_of_nothing_is_said(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from neuraldb_faiss.cli.commands.inspect import inspect

    done = CliRunner().invoke(inspect, [str(tmp_path / "nothing"), "--port", "0"])
    assert done.exit_code == 1 and "no database at" in str(done.exception)
