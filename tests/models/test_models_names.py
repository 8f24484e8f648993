"""The room's public names are there, in any order of imports, and cost nothing before they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from neuraldb_faiss import models


def test_every_public_name_is_the_one_its_module_defines() -> None:
    for room, names in models._ROOMS.items():
        home = import_module(room, models.__name__)
        for name in names:
            assert getattr(models, name) is getattr(home, name)
    assert sorted(models._HOMES) == sorted(models.__all__)
    assert set(models.__all__) <= set(dir(models))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = models.nothing


def test_prompts_need_no_torch() -> None:
    code = "import sys, neuraldb_faiss.models.tokenization; print(*({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
