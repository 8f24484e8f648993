"""Identity of a model: its name, and whether it is the one that a database was built with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import FingerprintError
from neuraldb_faiss.models.fingerprint import fingerprint
from neuraldb_faiss.models.sites import FFNSite, find_site

if TYPE_CHECKING:
    from neuraldb_faiss.config import DatabaseConfig


def model_name(model: Any) -> str | None:
    """What the model was loaded from: a hub's name, or a folder's absolute path; None where it was not loaded."""
    name = getattr(model, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def check_model(config: DatabaseConfig, model: Any, *, strict: bool = True) -> FFNSite:
    """The site in `model` that a database with these settings edits.

    Args:
        strict: False accepts another model of the same shapes.

    Raises:
        FingerprintError: the model is not the one the database was built with (both are named).
    """
    stored = config.model
    if stored.is_none:
        raise FingerprintError(
            "the database was built without a model, so its facts can be stated but do not fire: use the delivery text"
            ' (`db.ground`, `attach(delivery="text")`), or build them for a model (`neuraldb rebuild`)'
        )
    site = find_site(model, config.layer, config.ffn_module)
    found = fingerprint(model, site)
    if (site.d1, site.d2) != (config.d1, config.d2) or (strict and not stored.matches(found)):
        raise FingerprintError(
            f"the database was built with {stored.describe()}; this model is {found.describe()}. Load the right"
            " model, or make the database anew for this one (`neuraldb rebuild`)"
        )
    return site
