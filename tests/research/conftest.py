"""Cases about the tiny models' world, a database of them, and the commands in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers.commands import Run, write
from helpers.tiny import save_tiny
from neuraldb_faiss import build
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.facts import read_facts
from neuraldb_faiss.models import load_model


def counterfact(number: int, subject: str, place: str, target: str, true: str) -> dict[str, Any]:
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": place, "relation_id": "P1", "subject": subject, "target_new": {"str": target, "id": "Q1"},
            "target_true": {"str": true, "id": "Q2"},
        },
        "paraphrase_prompts": [f"I think that {subject} is in", f"You know that {subject} is in the city of"],
        "neighborhood_prompts": ["The Space Needle is in", "Apple was founded by", "Madrid is in"],
        "attribute_prompts": ["The Colosseum is located in the city of", "Windows was created by"],
        "generation_prompts": [f"{subject} is", f"{subject} is", f"Therefore {subject}"],
    }  # fmt: skip


RECORDS = [
    counterfact(1, "Eiffel Tower", "The {} is located in the city of", "Rome", "Paris"),
    counterfact(2, "Colosseum", "The {} is located in the city of", "Berlin", "Rome"),
    counterfact(3, "LeBron James", "Therefore {} plays the sport of", "chess", "basketball"),
    counterfact(4, "Marie Curie", "I know that {} was born in", "Tokyo", "Warsaw"),
]
ZSRE = [
    {
        "subject": "Marie Curie", "src": "Where was Marie Curie born?",
        "rephrase": "The city that Marie Curie was born in",
        "alt": "Tokyo", "answers": ["Warsaw"], "loc": "nq question: who was Apple founded by", "loc_ans": "Steve Jobs",
    }
]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """Shared: leave it as it was."""
    return load_model(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def cases_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cases") / "cf.jsonl", RECORDS)


@pytest.fixture(scope="session")
def db(cases_file: Path, loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of RECORDS but the last."""
    out = tmp_path_factory.mktemp("dbs") / "db"
    build(read_facts(cases_file, limit=3), *loaded, out, layer=1, steps=12).close()
    return out


@pytest.fixture
def run() -> Run:
    """`run("eval", db, ...)`: the command in this process, stdout and stderr apart."""

    def invoke(*arguments: object, **how: Any) -> Result:
        return CliRunner().invoke(cli, [str(one) for one in arguments], **how)

    return invoke


@pytest.fixture(scope="session")
def zsre_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("cases") / "zsre.jsonl", ZSRE)
