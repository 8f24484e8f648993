"""An editable database of facts for a frozen causal language model.

The public names are loaded when they are first used (PEP 562), so that importing the package, and
`neuraldb --help`, cost nothing: torch, transformers and faiss come with the name that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .create import build, merge
    from .database import NeuralDB
    from .errors import NeuralDBError
    from .facts import Fact

    __version__: str

__all__ = ["Fact", "NeuralDB", "NeuralDBError", "__version__", "build", "merge"]

_HOMES = {
    "Fact": ".facts",
    "NeuralDB": ".database",
    "NeuralDBError": ".errors",
    "build": ".create",
    "merge": ".create",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it, once."""
    value: Any
    if name == "__version__":
        value = _version()
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("neuraldb-faiss")
    except PackageNotFoundError:  # a checkout on the path, never installed
        return "0+unknown"
