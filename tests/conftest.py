"""Fixtures that several rooms use: tiny models, the demo model, the larger test data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.tiny import SHAPES, tiny

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"

# The same examples in every run, so that a test fails for a change and not by chance;
# `pytest --hypothesis-profile=search` looks for new ones. No deadline: a busy machine is no fault of the code.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`: a file's tests share their fixtures in one process, and one alone has a Ray cluster."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist brings no types
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if "integrations/ray/" in file else file

    return Scheduling(config, log)


ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def tiny_llama() -> ModelAndTokenizer:
    """A fresh tiny Llama-shaped model (as all the tiny ones, the test's own to change) and its tokenizer."""
    return tiny("llama")


@pytest.fixture
def tiny_gpt2() -> ModelAndTokenizer:
    return tiny("gpt2")


@pytest.fixture
def tiny_gptj() -> ModelAndTokenizer:
    return tiny("gptj")


@pytest.fixture(params=SHAPES)
def tiny_shape(request: pytest.FixtureRequest) -> ModelAndTokenizer:
    """One test a shape: Llama, GPT-2, GPT-J."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The demo model's folder; the test is skipped where it was not made."""
    from neuraldb_faiss.models.demo import is_complete

    if not is_complete(DEMO_MODEL):
        pytest.skip("no demo model at models/SmolLM2-135M-Instruct: python -m neuraldb_faiss.models.demo makes it")
    return DEMO_MODEL


@pytest.fixture(scope="session")
def demo_model(demo_model_path: Path) -> ModelAndTokenizer:
    """The demo model on the CPU in float32, with its tokenizer; shared, so leave it as it was."""
    from neuraldb_faiss.models import load_model

    return load_model(demo_model_path, device="cpu")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the larger real data sets."""
    folder = os.environ.get("NEURALDB_TEST_DATA")
    if not folder:
        pytest.skip("NEURALDB_TEST_DATA is not set: it names the folder with the larger data sets")
    if not Path(folder).is_dir():
        pytest.skip(f"NEURALDB_TEST_DATA names no folder: {folder}")
    return Path(folder)
