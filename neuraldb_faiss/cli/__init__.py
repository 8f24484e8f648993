"""The command `neuraldb`: parses, calls, prints. Nothing else in the package prints."""

from __future__ import annotations


def main() -> None:
    """Entry point of the installed command, and of `python -m neuraldb_faiss.cli`."""
    from .main import cli

    cli(prog_name="neuraldb")
