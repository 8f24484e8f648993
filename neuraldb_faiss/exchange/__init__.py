"""Export and import: JSON lines, safetensors, and Hugging Face's hub (`exchange.hub`)."""

from neuraldb_faiss.exchange.export_file import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
