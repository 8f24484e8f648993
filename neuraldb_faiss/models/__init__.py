"""Models as this package sees them: where their facts sit, how to tell them apart, and how prompts become
tokens.

Names are loaded when first used, so that what needs no torch (prompts) does not wait for it. The function
``fingerprint`` is imported from its module, whose name it shares.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraldb_faiss.fingerprint import Fingerprint
    from neuraldb_faiss.models.defaults import EditDefaults, edit_defaults
    from neuraldb_faiss.models.download import get_demo_model, get_model
    from neuraldb_faiss.models.loading import load_model
    from neuraldb_faiss.models.sites import AttentionSite, FFNSite, find_attention, find_site, layer_count
    from neuraldb_faiss.models.tokenization import (
        Encoded,
        EncodedTarget,
        encode,
        encode_all,
        encode_pairs,
        encode_prompt,
        encode_prompts,
        encode_target,
        encode_targets,
        key_id,
        key_ids,
    )

__all__ = [
    "AttentionSite",
    "EditDefaults",
    "Encoded",
    "EncodedTarget",
    "FFNSite",
    "Fingerprint",
    "edit_defaults",
    "encode",
    "encode_all",
    "encode_pairs",
    "encode_prompt",
    "encode_prompts",
    "encode_target",
    "encode_targets",
    "find_attention",
    "find_site",
    "get_demo_model",
    "get_model",
    "key_id",
    "key_ids",
    "layer_count",
    "load_model",
]

_ROOMS = {
    ".defaults": ("EditDefaults", "edit_defaults"),
    ".download": ("get_demo_model", "get_model"),
    "neuraldb_faiss.fingerprint": ("Fingerprint",),
    ".loading": ("load_model",),
    ".sites": ("AttentionSite", "FFNSite", "find_attention", "find_site", "layer_count"),
    ".tokenization": (
        "Encoded",
        "EncodedTarget",
        "encode",
        "encode_all",
        "encode_pairs",
        "encode_prompt",
        "encode_prompts",
        "encode_target",
        "encode_targets",
        "key_id",
        "key_ids",
    ),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
