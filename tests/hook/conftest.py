"""Cases that several files hook."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.hooked import Case


@pytest.fixture
def case(tiny_shape: tuple[Any, Any]) -> Case:
    return Case(*tiny_shape)


@pytest.fixture
def llama(tiny_llama: tuple[Any, Any]) -> Case:
    return Case(*tiny_llama)
