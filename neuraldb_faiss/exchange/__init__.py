"""Databases as files that others read, and back: JSON lines, safetensors; folders on a hub (`exchange.hub`)."""

from neuraldb_faiss.exchange.export_file import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
