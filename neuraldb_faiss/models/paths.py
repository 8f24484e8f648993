"""Model names that can only be paths, checked before torch or a model hub is waited for."""

from __future__ import annotations

from pathlib import Path

from neuraldb_faiss.errors import ModelError


def check_model_name(name: str) -> None:
    """Raises ModelError where `name` can only be a path, and there is no model folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} is no model folder: it has no config.json")
        return
    if path.exists():
        raise ModelError(f"{name} is a file: give the folder that save_pretrained wrote, or a name on the model hub")
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2
    if looks_like_path or (len(path.parts) == 2 and path.parent.is_dir()):
        raise ModelError(f"there is no model at {name}: check the path (scripts/demo.sh makes the demo model)")
