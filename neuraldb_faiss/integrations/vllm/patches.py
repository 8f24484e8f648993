"""The functions of vLLM that the plugin reaches into, all of them here: the engine's configuration, the loading of the
model, and each step of the model runner (the first one, V1).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.integrations.vllm.settings import NAME, Settings, adapt, check

# Under vLLM's own logger, so that it is printed as vLLM prints.
logger = logging.getLogger("vllm.neuraldb")


def _patch(where: str, name: str, make: Callable[[Any], Any]) -> None:
    """Replace `name` ("function", or "Class.method") of the module `where` by what `make` makes of it, once."""
    try:
        owner: Any = import_module(where)
        *path, last = name.split(".")
        for step in path:
            owner = getattr(owner, step)
        before = getattr(owner, last)
    except (ImportError, AttributeError) as error:
        raise ServeError(
            f"this vLLM has no {where}.{name} ({error}): the plugin was tested with vLLM 0.32; install that, or keep"
            " the plugin out (VLLM_PLUGINS)"
        ) from error
    if not hasattr(before, "_neuraldb"):
        after: Any = wraps(before)(make(before))
        after._neuraldb = True
        setattr(owner, last, after)


def patch_engine() -> None:
    """An engine that is given a database gets a configuration in which it answers. Raises ServeError as `_patch`."""

    def make(before: Any) -> Any:
        def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            settings = Settings.read(self.additional_config, os.environ)
            if settings is None:
                return before(self, *args, **kwargs)
            settings = settings.resolved()
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
            config = before(self, *args, **kwargs)
            check(config)
            _check_loader(config)
            adapt(config, settings)
            return config

        return create_engine_config

    _patch("vllm.engine.arg_utils", "EngineArgs.create_engine_config", make)


def patch_loader() -> None:
    """A model gets its database when its weights are there. Raises ServeError as `_patch`."""

    def make(before: Any) -> Any:
        def process_weights_after_loading(model: Any, model_config: Any, device: Any) -> Any:
            from vllm.config import get_current_vllm_config_or_none

            config = get_current_vllm_config_or_none()
            if config is not None and model_config is config.model_config and NAME in (config.additional_config or {}):
                _serve(model, model_config, config.additional_config, device)
            return before(model, model_config, device)

        return process_weights_after_loading

    _patch("vllm.model_executor.model_loader.base_loader", "process_weights_after_loading", make)


def _serve(model: Any, model_config: Any, additional: Any, device: Any) -> None:
    from neuraldb_faiss.integrations.vllm.layer import serve

    settings = Settings.read(additional, {})
    assert settings is not None
    patch_runner()
    found = serve(model, model_config.hf_text_config, settings, model_config.tokenizer, device)
    logger.info("neuraldb: answering from %s", found.describe())


def patch_runner() -> None:
    """Each step tells the database what is in it, and is checked to have asked. Raises ServeError as `_patch`."""
    from neuraldb_faiss.integrations.vllm.layer import served

    def make_execute(before: Any) -> Any:
        def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            found = served()
            if found is None:
                return before(self, scheduler_output, *args, **kwargs)
            found.requests.end(scheduler_output.finished_req_ids)
            for new in scheduler_output.scheduled_new_reqs:
                found.requests.begin(new.req_id, new.prompt_token_ids)
            try:
                out = before(self, scheduler_output, *args, **kwargs)
            except BaseException:
                found.step = None
                raise
            found.end()
            return out

        return execute_model

    def make_prepare(before: Any) -> Any:
        def _prepare_inputs(self: Any, scheduler_output: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
            out = before(self, scheduler_output, counts, *args, **kwargs)
            found = served()
            if found is not None:
                batch, size = self.input_batch, self.input_batch.num_reqs
                computed = batch.num_computed_tokens_cpu[:size]
                found.begin(batch.req_ids[:size], counts, computed, self.input_ids.gpu)
            return out

        return _prepare_inputs

    def refresh(worker: Any) -> int:
        found = served()
        if found is None:
            raise ServeError("no database answers here")
        generation = found.refresh()
        logger.info("neuraldb: answering from %s", found.describe())
        return generation

    where = "vllm.v1.worker.gpu_model_runner"
    _patch(where, "GPUModelRunner.execute_model", make_execute)
    _patch(where, "GPUModelRunner._prepare_inputs", make_prepare)
    base: Any = import_module("vllm.v1.worker.worker_base").WorkerBase
    base.neuraldb_refresh = refresh


def _check_loader(config: Any) -> None:
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    loader = type(get_model_loader(config.load_config))
    if loader.load_model is not BaseModelLoader.load_model:
        raise ServeError(
            f"a database cannot be served together with --load-format {config.load_config.load_format}"
            f" ({loader.__name__}): use auto"
        )
