"""vLLM answers from a database: the plugin's entry point, and what a program that runs vLLM may call.

vLLM calls `register` in each of its processes, by the entry point `neuraldb` of the group `vllm.general_plugins`. It
does nothing to an engine that is given no database. `vllm_settings` says how one is given.
"""

from __future__ import annotations

import os
from typing import Any

from neuraldb_faiss.errors import ServeError


def register() -> None:
    """Make vLLM's engines look for a database when they start. Doing it twice is harmless.

    Raises ServeError where this vLLM has not the functions that must be reached into, and NEURALDB_PATH is set; a
    warning tells those who set none.
    """
    from neuraldb_faiss.integrations.vllm.patches import logger, patch_engine, patch_loader

    try:
        patch_engine()
        patch_loader()
    except ServeError as error:
        if os.environ.get("NEURALDB_PATH"):
            raise
        logger.warning("neuraldb: no database can be served here: %s", error)


def refresh(llm: Any) -> int:
    """Answer from the newest generation of the database from now on; that generation.

    The prefix cache is emptied, because what lies in it was computed with the generation before. No request may be
    running.

    Args:
        llm: a `vllm.LLM`.

    Raises:
        ServeError: the prefix cache cannot be emptied, for requests are running; or the engine has no database.
    """
    if "neuraldb" not in (llm.llm_engine.vllm_config.additional_config or {}):
        raise ServeError("this engine was started without a database: set NEURALDB_PATH before")
    generations = llm.collective_rpc("neuraldb_refresh")
    if not llm.reset_prefix_cache():
        raise ServeError("the prefix cache is in use: refresh when no request is running")
    return int(generations[0])
