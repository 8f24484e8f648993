"""The backend of a gateway: databases before an upstream server, and their routes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx2

from neuraldb_faiss.serving.gateway import routes
from neuraldb_faiss.serving.gateway.service import GatewayService
from neuraldb_faiss.serving.gateway.upstream import Target
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Backend
from neuraldb_faiss.serving.settings import ServerSettings


def gateway_backend(
    target: Target, databases: Mapping[str, Path], settings: ServerSettings, metrics: Metrics,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Backend:  # fmt: skip
    """
    Args:
        databases: name -> folder. transport: to the upstream server, instead of the network.

    Raises:
        NeuralDBError: as `GatewayService.to`.
    """
    return Backend(GatewayService.to(target, databases, settings, metrics, transport), (routes.router,))
