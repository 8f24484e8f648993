"""Settings of a database: read as typed values, written as they were stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss.config import (
    DatabaseConfig,
    IndexConfig,
    ResidualConfig,
    check_choice,
    check_gamma,
    check_guard,
    default_gamma,
)
from neuraldb_faiss.errors import BuildError, ConfigError, CorruptError, FingerprintError, SearchError
from neuraldb_faiss.store.catalog import Catalog

GOLDEN = Path(__file__).parent / "data" / "format-1"
STORED: dict[str, Any] = {
    "fingerprint": "golden", "layer": 3, "ffn_module": None, "d1": 12, "d2": 8, "prefixes": ["The"], "keys": "two",
    "residual": "memit", "gamma": 0.65, "epoch": 1, "history_start": 1, "index": {"kind": "flat"},
    "config": {"steps": 2, "lr": 0.5, "weight_decay": 0.5, "clamp": 0.75, "kl_factor": 0.0625, "kl_prompts": ["{} is"]},
}  # fmt: skip
NEWER = {"guard": "subject", "model_name": None, "floors": {"Rome": 0.5}, "index": {"kind": "ivf", "nlist": 4}}


@pytest.mark.parametrize(
    "stored",
    [
        STORED,
        {**STORED, **NEWER},
        {**STORED, "config": {}, "gamma": 0, "floors": None, "of a later version": [1], "stored": 2},
        {name: STORED[name] for name in STORED if name not in ("epoch", "history_start", "index")},
    ],
)
def test_what_was_stored_is_what_is_stored_again(stored: dict[str, Any]) -> None:
    assert DatabaseConfig.from_json(stored).to_json() == stored


def test_golden_database_keeps_its_settings() -> None:
    catalog = Catalog(GOLDEN)
    for generation in (1, 4):
        config = catalog.config(generation)
        assert config.to_json() == catalog.settings(generation)
        assert (config.guard, config.gamma, config.prefixes, config.index) == ("none", 0.65, ("The",), IndexConfig())
    catalog.close()


def test_replaced_settings_are_stored_beside_the_others() -> None:
    config = DatabaseConfig.from_json({**STORED, "of a later version": 1})
    changed = replace(config, gamma=0.5, index=IndexConfig("ivf", {"nprobe": 3}), floors={"Rome": 0.7})
    wanted = {"gamma": 0.5, "index": {"kind": "ivf", "nprobe": 3}, "floors": {"Rome": 0.7}}
    assert changed.to_json() == {**STORED, **wanted, "of a later version": 1}
    assert DatabaseConfig.from_json(changed.to_json()) == changed


def test_settings_made_anew_have_every_name_that_an_editor_writes() -> None:
    made = replace(DatabaseConfig.from_json({**STORED, "guard": "subject"}), stored={}).to_json()
    assert made == {**STORED, "guard": "subject", "model_name": None, "delivery": "auto"}


@pytest.mark.parametrize(("name", "value"), [("layer", -1), ("d1", 0), ("gamma", 2.0), ("index", {}), ("guard", 3)])
def test_a_value_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"the setting {name} is .*, which it cannot be"):
        DatabaseConfig.from_json({**STORED, name: value})
    with pytest.raises(ValueError, match="the setting layer is missing"):
        DatabaseConfig.from_json({one: STORED[one] for one in STORED if one != "layer"})


def test_objective_and_fingerprint_are_read_when_asked_for() -> None:
    config = DatabaseConfig.from_json(STORED)
    assert config.objective == ResidualConfig(2, 0.5, 0.5, 0.75, 0.0625, kl_prompts=("{} is",))
    with pytest.raises(CorruptError, match="config cannot be read .it has 'stepz'"):
        _ = DatabaseConfig.from_json({**STORED, "config": {"stepz": 1}}).objective
    with pytest.raises(FingerprintError, match="fingerprint cannot be read"):
        _ = config.model


@pytest.mark.parametrize("name", ["keys", "guard"])
def test_a_stored_kind_that_is_not_known_is_damage(name: str) -> None:
    config = DatabaseConfig.from_json({**STORED, name: "odd"})
    with pytest.raises(CorruptError, match=f"the stored setting {name} is 'odd'"):
        config.check_known()


def test_what_a_user_gives_has_one_error_class() -> None:
    assert issubclass(ConfigError, BuildError) and issubclass(ConfigError, SearchError)
    for gamma in (-0.1, 1, float("nan")):
        with pytest.raises(ConfigError, match="gamma is"):
            check_gamma(gamma)
    with pytest.raises(ConfigError, match="unknown guard 'odd': choose one of subject"):
        check_guard("odd")
    with pytest.raises(ConfigError, match="keys is 'three': it must be one of two, paper"):
        check_choice("keys", "three", ("two", "paper"))
    gammas = {guard: default_gamma(check_guard(guard)) for guard in ("subject", "whole-words", "none")}
    assert gammas == {"subject": 0.45, "whole-words": 0.45, "none": 0.65}
