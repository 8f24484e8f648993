"""What is wrong is told before torch is imported or a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NO_DATABASE = "no database at nothing"
WRONG: dict[str, tuple[list[str], str]] = {
    "build: no facts file": (["build", "none.csv", "--model", "MODEL", "--out", "new"], "none.csv does not exist"),
    "build: no model": (["build", "FACTS", "--model", "/no/model", "--out", "new"], "there is no model at /no/model"),
    "build: other files": (["build", "FACTS", "--model", "MODEL", "--out", "."], "holds other files"),
    "build: finished": (["build", "FACTS", "--model", "MODEL", "--out", "DB"], "is a finished database"),
    "build: half a fact": (["build", "--subject", "Nokia", "--model", "MODEL", "--out", "new"], "--target is missing"),
    "add: no facts": (["add", "DB"], "say which facts"),
    "remove: nobody": (["remove", "DB", "--subject", "Nobody"], "no live fact fits"),
    "generate: no database": (["generate", "nothing", "x"], NO_DATABASE),
    "generate: no model": (["generate", "DB", "x", "--model", "/no/model"], "there is no model at /no/model"),
    "explain: no database": (["explain", "nothing", "x"], NO_DATABASE),
    "eval: no database": (
        ["eval", "nothing", "--dataset", "zsre", "--cases", "x", "--out", "r"],
        NO_DATABASE,
    ),
    "import: no file": (["import", "none.safetensors", "--out", "new"], "there is no file"),
    "inspect: no database": (["inspect", "nothing"], NO_DATABASE),
    "merge: no database": (["merge", "DB", "nothing", "--out", "new"], NO_DATABASE),
    "merge: finished": (["merge", "DB", "DB", "--out", "DB"], "is a finished database"),
    "rebuild: no database": (["rebuild", "nothing", "--model", "MODEL", "--out", "new"], NO_DATABASE),
    "serve: no database": (["serve", "nothing"], NO_DATABASE),
    "solve: no database": (["solve", "nothing"], NO_DATABASE),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_before_torch_is_imported(name: str, db: Path, model: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.csv"
    facts.write_text("subject,prompt,target\nNokia,The CEO of {} is,Justin Hotard\n")
    places = {"DB": db, "MODEL": model, "FACTS": facts}
    words, told = WRONG[name]
    code = f"""
import sys
from neuraldb_faiss.cli.main import cli
try:
    cli({[str(places.get(word, word)) for word in words]!r}, prog_name="neuraldb")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    status, heavy = done.stdout.split()
    assert told in done.stderr and status in "12" and heavy == "False", done.stderr
    assert not (tmp_path / "new").exists()
