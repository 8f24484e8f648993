"""A model with databases attached, as what answers requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from neuraldb_faiss.models.identity import model_name
from neuraldb_faiss.serving.delivery import Deliveries
from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import ServerSettings
from neuraldb_faiss.serving.tenants import Tenants


@dataclass
class ModelService(Service):
    """One model, its databases and its worker."""

    tenants: Tenants
    engine: Engine
    prompts: Prompts
    deliveries: Deliveries

    def check_fact(self, text: str) -> None:
        self.prompts.of_text(text)

    @staticmethod
    def of(request: Request) -> ModelService:
        return cast(ModelService, Service.of(request))

    @classmethod
    def of_model(
        cls, model: Any, tokenizer: Any, databases: Mapping[str, Path], settings: ServerSettings, metrics: Metrics
    ) -> ModelService:
        """With these databases attached: name -> folder. Raises NeuralDBError where one cannot be."""
        limits = settings.limits
        tenants = Tenants(model, tokenizer, databases, settings, _name(model))
        prompts = Prompts(model, tokenizer, limits)
        engine = Engine(model, tokenizer, tenants, limits, metrics)
        return cls(tenants, engine, limits, metrics, prompts, Deliveries(prompts, metrics, settings.delivery))


def _name(model: Any) -> str:
    """What clients call the model: its name on the hub, or its folder's."""
    name = model_name(model) or "model"
    return Path(name).name if Path(name).is_absolute() else name
