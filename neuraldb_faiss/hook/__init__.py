"""The database inside a model: a forward hook on one layer that looks every token up."""

from __future__ import annotations

from neuraldb_faiss.hook.attach import Handle, Site, attach
from neuraldb_faiss.hook.lookup import Fire

__all__ = ["Fire", "Handle", "Site", "attach"]
