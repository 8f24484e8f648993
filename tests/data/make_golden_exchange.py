"""Writes tests/data/exchange-1/facts.safetensors, once a version of the layout; kept for ever after.

PYTHONPATH=.:tests python tests/data/make_golden_exchange.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from helpers.exchanged import EDITOR
from neuraldb_faiss.edits import changes
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.layout import VERSION
from neuraldb_faiss.facts import Fact

FACTS = [
    Fact("Oslo", "{} is in", "Peru", source="golden", metadata={"case_id": 7}),
    Fact("Eiffel Tower", "The {} stands in", "Rome", id="tower", target_true="Paris", relation="P276"),
    Fact("Eiffel Tower", "The {} was built by", "Łódź", source="golden"),
]

if __name__ == "__main__":
    folder = Path(__file__).resolve().parent / f"exchange-{VERSION}"
    folder.mkdir()
    with tempfile.TemporaryDirectory() as name:
        export(changes.build(FACTS, EDITOR, Path(name) / "db"), folder / "facts.safetensors", "safetensors")
