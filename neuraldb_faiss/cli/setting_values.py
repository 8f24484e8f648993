"""Values of the repeatable option --set NAME=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def parse_settings(sets: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as TOML reads the value; what TOML cannot read is a text."""
    import tomllib

    found = {}
    for one in sets:
        name, equals, text = one.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"--set {one}: write NAME=VALUE, as in --set lr=0.1")
        try:
            found[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text.strip()
    return found
