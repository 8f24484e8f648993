from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A real Ray cluster of this machine with two CPUs, which says that it has two GPUs; the module `ray`.

    Whoever joins a cluster in this process is given this one.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 would starve beside whatever else this machine does
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into the user's home
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, num_gpus=2, object_store_memory=100 << 20, include_dashboard=False,
             log_to_driver=False)  # fmt: skip
    yield ray
    ray.shutdown()
    for name in ("RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        del os.environ[name]
