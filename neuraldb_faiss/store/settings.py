"""Which settings a database keeps, and what each may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from neuraldb_faiss.strict_json import is_count, is_number, is_strings, shown

MAX_WIDTH = 1 << 24  # numbers in one key or residual
_MAX_LAYERS = 1 << 16


def check_settings(settings: Mapping[str, Any]) -> None:
    """Names that are not listed here may have any value.

    Raises:
        ValueError: one is missing, or has a value that it cannot have.
    """
    for name, fits in _NEEDED.items():
        if name not in settings:
            raise ValueError(f"the setting {name} is missing")
        if not fits(settings[name]):
            raise ValueError(f"the setting {name} is {shown(settings[name])}, which it cannot be")
    for name, fits in _OPTIONAL.items():
        if settings.get(name) is not None and not fits(settings[name]):
            raise ValueError(f"the setting {name} is {shown(settings[name])}, which it cannot be")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_width(value: object) -> bool:
    return is_count(value, MAX_WIDTH) and value != 0


def _is_gate(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_config(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, bool) or is_number(v) or is_strings(v) for v in value.values())


def _is_index(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    sizes = (value.get("nlist"), value.get("nprobe"))
    return all(size is None or (is_count(size, 1 << 31) and size > 0) for size in sizes)


def _is_floors(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


_NEEDED: dict[str, Callable[[Any], bool]] = {
    "fingerprint": _is_text,
    "layer": lambda value: is_count(value, _MAX_LAYERS),
    "ffn_module": lambda value: value is None or isinstance(value, str),
    "d1": _is_width,
    "d2": _is_width,
    "prefixes": is_strings,
    "keys": _is_text,
    "residual": _is_text,
    "config": _is_config,
    "gamma": _is_gate,
    "index": _is_index,
    "epoch": is_count,
    "history_start": is_count,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {"guard": _is_text, "floors": _is_floors, "model_name": _is_text}
