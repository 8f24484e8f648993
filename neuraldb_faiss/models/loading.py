"""Loading of a model and its tokenizer, with one-line errors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.paths import check_model_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in ``eval()`` mode, and its fast tokenizer (with a pad token).

    ``name_or_path``: a folder written by ``save_pretrained``, or a name on the model hub. ``device``: None
    for the GPU where there is one, "auto" to spread the layers over all devices, or a device's name.
    ``dtype``: None for float32 on a CPU and the stored one elsewhere; "auto" for the stored one; or float32,
    bfloat16, float16.

    Raises ModelError: missing or damaged model, weights missing, no fast tokenizer, unknown dtype or device.
    """
    name = os.fspath(name_or_path)
    check_model_name(name)
    place = _device(device)
    kind = _dtype(dtype, place)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except _LOAD_ERRORS as error:
        raise ModelError(f"cannot load the tokenizer of {name}: {_one_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{name} has no fast tokenizer (tokenizer.json), which the subject's place is found with")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        # With output_loading_info the answer is a pair, which transformers' annotations do not say.
        loaded: Any = _auto_class(name).from_pretrained(
            name, dtype=kind, device_map="auto" if place == "auto" else None, output_loading_info=True
        )
        model, report = loaded
        if place != "auto":
            model = model.to(place)
    except _LOAD_ERRORS as error:
        raise ModelError(f"cannot load the model {name}: {_one_line(error)}") from error
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{name} is no complete causal language model: {len(missing)} weights are missing ({missing[0]}, ...)"
        )
    return model.eval(), tokenizer


def _auto_class(name: str) -> Any:
    """What loads the model: the class of one that also sees, where transformers knows no purely textual one."""
    kind = type(AutoConfig.from_pretrained(name))
    sees = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def tokenizer_of(model: Any) -> Any:
    """The fast tokenizer that lies beside an already loaded model, on this machine; None where there is none."""
    name = getattr(model, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    try:
        found = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except _LOAD_ERRORS:
        return None
    return found if getattr(found, "is_fast", False) else None


def _device(device: str | torch.device | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "auto":
        return "auto"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {str(device)!r}: use cpu, cuda, cuda:1 or auto") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {str(device)!r} asked for, but PyTorch sees no GPU: use --device cpu")
    return str(found)


def _dtype(dtype: str | torch.dtype | None, device: str) -> str | torch.dtype:
    if dtype is None:
        return torch.float32 if device == "cpu" else "auto"
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}: use auto, float32, bfloat16 or float16")
    return _DTYPES[dtype]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
