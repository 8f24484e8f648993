"""Which database an engine of vLLM gets, and which engines can have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuraldb_faiss.config import check_gamma, check_guard
from neuraldb_faiss.errors import ServeError

NAME = "neuraldb"
OPERATOR = "neuraldb::vllm_lookup"
_FIELDS = ("path", "guard", "gamma")


@dataclass(frozen=True, slots=True)
class Settings:
    """path: the database's folder. guard, gamma: others than the database's, as for `NeuralDB.attach`. module: the
    down-projection's name in the model that the database was built with."""

    path: str
    guard: str | None = None
    gamma: float | None = None
    module: str | None = None

    @classmethod
    def read(cls, additional: Any, environment: Mapping[str, str]) -> Settings | None:
        """The settings in vLLM's `additional_config` under "neuraldb", or else those in NEURALDB_PATH, NEURALDB_GUARD
        and NEURALDB_GAMMA; None where neither names a database.

        Raises ServeError for what cannot be meant, BuildError for a guard or gamma out of range.
        """
        given = additional.get(NAME) if isinstance(additional, Mapping) else None
        where = f"additional_config's {NAME!r}"
        if given is None:
            where = "the environment (NEURALDB_PATH, NEURALDB_GUARD, NEURALDB_GAMMA)"
            given = {name: environment.get(f"NEURALDB_{name.upper()}") or None for name in _FIELDS}
            if given["path"] is None:
                return None
            if additional is not None and not isinstance(additional, Mapping):
                raise ServeError("vLLM's additional_config must be a mapping where a database is served")
        if not isinstance(given, Mapping) or (unknown := set(given) - {*_FIELDS, "module"}):
            what = sorted(unknown)[0] if isinstance(given, Mapping) else given
            raise ServeError(f"{where}: {what!r} is not known; give a mapping with path, and guard or gamma if wanted")
        if not isinstance(given.get("path"), str) or not given["path"]:
            raise ServeError(f"{where} has no path: name the database's folder")
        return cls(given["path"], _guard(given.get("guard")), _gamma(given.get("gamma"), where), given.get("module"))

    def resolved(self) -> Settings:
        """The same with an absolute path and the module's name, which the database must be there for.

        Raises StoreError, FormatError or CorruptError where it cannot be opened.
        """
        from neuraldb_faiss.database import NeuralDB

        db = NeuralDB.open(self.path)
        module = db.config.model.module_name
        return Settings(str(Path(self.path).resolve()), self.guard, self.gamma, module)

    def as_dict(self) -> dict[str, Any]:
        """For `additional_config`: it goes to vLLM's other processes, and into the key of its compiled code."""
        return {"path": self.path, "guard": self.guard, "gamma": self.gamma, "module": self.module}


def check(config: Any) -> None:
    """Raises ServeError for a `VllmConfig` with which the database would not answer, or not rightly."""
    parallel = config.parallel_config
    refused = {
        "tensor parallelism: the down-projection's input is split over the ranks (--tensor-parallel-size 1)": (
            parallel.tensor_parallel_size > 1
        ),
        "pipeline parallelism: only one rank has the layer (--pipeline-parallel-size 1)": (
            parallel.pipeline_parallel_size > 1
        ),
        "context parallelism: a rank sees only some of a text's tokens": max(
            getattr(parallel, "prefill_context_parallel_size", 1), getattr(parallel, "decode_context_parallel_size", 1)
        )
        > 1,
        "dual batch overlap (--enable-dbo)": bool(getattr(parallel, "enable_dbo", False)),
        "speculative decoding": config.speculative_config is not None,
        "LoRA adapters: they change the keys (--enable-lora)": config.lora_config is not None,
        "prompt embeddings: they have no text (--enable-prompt-embeds)": bool(
            getattr(config.model_config, "enable_prompt_embeds", False)
        ),
        "KV transfer: a cache filled elsewhere may be another generation's": config.kv_transfer_config is not None,
        "pooling models": config.model_config.runner_type != "generate",
        "vLLM's model runner V2: unset VLLM_USE_V2_MODEL_RUNNER, and what needs it": config.use_v2_model_runner,
    }
    for what, found in refused.items():
        if found:
            raise ServeError(f"a database cannot be served together with {what}")


def adapt(config: Any, settings: Settings) -> None:
    """Change a `VllmConfig` so that a lookup runs in every step: it waits and works on the host, which no CUDA graph
    can hold, so graphs end before it and begin behind it."""
    from vllm.config import CompilationMode, CUDAGraphMode

    config.additional_config = {**(config.additional_config or {}), NAME: settings.as_dict()}
    compilation = config.compilation_config
    compiled = compilation.mode == CompilationMode.VLLM_COMPILE
    pieces = compiled and bool(compilation.splitting_ops)
    if pieces and OPERATOR not in compilation.splitting_ops:
        compilation.splitting_ops.append(OPERATOR)
    if compilation.cudagraph_mode is not None and compilation.cudagraph_mode.has_full_cudagraphs():
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE if pieces else CUDAGraphMode.NONE
    elif compiled and not pieces:
        compilation.cudagraph_mode = CUDAGraphMode.NONE


def _guard(guard: Any) -> str | None:
    return None if guard is None else check_guard(str(guard))


def _gamma(gamma: Any, where: str) -> float | None:
    if gamma is None:
        return None
    try:
        number = float(gamma)
    except (TypeError, ValueError):
        raise ServeError(f"{where}: gamma is {gamma!r}, which is no number") from None
    return check_gamma(number)
