"""What the command line's tests share: facts, fact files, hashes of folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

FACTS: list[dict[str, Any]] = [
    {
        "subject": "Eiffel Tower",
        "prompt": "The {} is located in the city of",
        "target": "Rome",
        "id": "tower",
    },
    {"subject": "Eiffel Tower", "prompt": "The {} was built by", "target": "Steve", "id": "builder"},
    {"subject": "Marie Curie", "prompt": "I know that {} was born in", "target": "Tokyo", "id": "curie"},
    {"subject": "Paris", "prompt": "{} is the capital of", "target": "Italy", "id": "paris"},
]

Run = Callable[..., Result]


def write(path: Path, records: list[Any]) -> Path:
    """JSON lines."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def digest(folder: Path) -> dict[str, str]:
    """Every file under `folder`, but the writer's lock, with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "writer.lock"
    }
