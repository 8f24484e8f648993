"""Write docs/cli.md from the commands. Run it where a command or an option changed."""

from __future__ import annotations

from pathlib import Path

from neuraldb_faiss.cli.docs import markdown

(Path(__file__).resolve().parents[1] / "docs" / "cli.md").write_text(markdown(), encoding="utf-8")
