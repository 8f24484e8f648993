"""Weight editors over the same facts, keys and residuals as a database: what NeuralDB is compared with.

`edited` puts facts into copies of a model's weights and takes them out again. MEND, InstructEdit and MELO need
editors that are trained first, and are not here. Names are loaded when first used, so that a command line can list
the methods without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.research.baselines.settings import METHODS

if TYPE_CHECKING:
    from neuraldb_faiss.research.baselines.analysis import layer_kernel
    from neuraldb_faiss.research.baselines.defaults import default_settings
    from neuraldb_faiss.research.baselines.edit import Edit, edited
    from neuraldb_faiss.research.baselines.kernels import Kernel
    from neuraldb_faiss.research.baselines.statistics import Statistics, make_statistics

__all__ = ["METHODS", "Edit", "Kernel", "Statistics", "default_settings", "edited", "layer_kernel", "make_statistics"]

_HOMES = {
    "Edit": ".edit",
    "Kernel": ".kernels",
    "Statistics": ".statistics",
    "default_settings": ".defaults",
    "edited": ".edit",
    "layer_kernel": ".analysis",
    "make_statistics": ".statistics",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
