"""Databases as files that others read, and back: JSON lines, safetensors; folders on a hub (`exchange.hub`)."""

from neuraldb_faiss.exchange.exporting import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
