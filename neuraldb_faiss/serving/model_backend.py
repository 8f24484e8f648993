"""The backend of a model on this machine: the model with its databases, and its routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.model_service import ModelService
from neuraldb_faiss.serving.routes import completions, explain
from neuraldb_faiss.serving.service import Backend
from neuraldb_faiss.serving.settings import ServerSettings


def model_backend(
    load: Callable[[], tuple[Any, Any]], databases: Mapping[str, Path], settings: ServerSettings, metrics: Metrics
) -> Backend:
    """Load a model and attach the databases.

    Args:
        load: gives the model and its tokenizer. databases: name -> folder.

    Raises:
        NeuralDBError: a database cannot be opened, or was built with another model.
    """
    service = ModelService.of_model(*load(), databases, settings, metrics)
    return Backend(service, (completions.router, explain.router))
