"""The table of guard kinds: what it says of each, and of one that there is not."""

from __future__ import annotations

from importlib import import_module

import pytest

from neuraldb_faiss.errors import ConfigError
from neuraldb_faiss.guard.registry import REGISTRY


@pytest.mark.parametrize("name", REGISTRY.kinds)
def test_every_kind_has_help_a_gamma_and_a_gate_of_its_name(name: str) -> None:
    kind = REGISTRY[name]
    assert kind.name == name and kind.help and 0 <= kind.gamma < 1
    gate = kind.load().__annotations__["return"]
    assert getattr(import_module(kind.target.partition(":")[0]), gate).guard == name


def test_an_unknown_guard_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown guard 'nobody': choose one of subject, whole-words, none"):
        REGISTRY["nobody"]
