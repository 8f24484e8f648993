"""`python -m neuraldb_faiss.models.demo`: gets the demo model, SmolLM2-135M-Instruct, for scripts."""

from __future__ import annotations

import logging
import sys

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.download import get_demo_model
from neuraldb_faiss.models.ready_made import is_complete

__all__ = ["get_demo_model", "is_complete"]


def _main() -> None:
    """Get the model into its folder; stderr says why not."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        get_demo_model()
    except ModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _main()
