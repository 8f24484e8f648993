"""Databases without a model: facts are stated, nothing is solved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build, merge
from neuraldb_faiss.errors import BuildError, ConfigError, FingerprintError, ModelError
from neuraldb_faiss.hook.text_handle import TextHandle

FACTS = [Fact("Rome", "The city of {} is in", "Peru"), Fact("Rome", "The mayor of {} is", "Ann")]


@pytest.fixture
def db(tmp_path: Path) -> NeuralDB:
    return build(FACTS, None, None, tmp_path / "db")


def stated(db: NeuralDB) -> list[str]:
    return [fact.target for fact in db.ground("Rome and Lima").facts]


def test_it_changes_without_a_model(db: NeuralDB) -> None:
    assert stated(db) == ["Peru", "Ann"]
    done = db.add([Fact("Lima", "{} lies in", "Chad"), Fact("Rome", "The mayor of {} is", "Bob")])
    assert done is not None and (done.added, done.updated, done.entries) == (1, 1, 3)
    assert stated(db) == ["Peru", "Bob", "Chad"]
    assert db.add(FACTS[:1]) is None
    assert db.remove(subject="Lima").facts == 2 and stated(db) == ["Peru", "Bob"]
    db.rollback(1)
    assert stated(db) == ["Peru", "Ann"]
    db.compact()
    assert stated(db) == ["Peru", "Ann"] and db.verify(deep=True) == []
    info = db.info()
    assert (info["keys"], info["waiting"], info["entries"]) == (0, 0, 2)
    assert info["model"].startswith("no model")


def test_another_statement_is_news(db: NeuralDB) -> None:
    told = Fact("Rome", "The city of {} is in", "Peru", metadata={"statement": "{} is a Peruvian city."})
    assert db.add([told]) is not None and db.add([told]) is None
    assert (
        db.ground("Rome").text.startswith("Rome is a Peruvian city.\n")
        or "Rome is a Peruvian city." in db.ground("Rome").text
    )
    assert db.add(FACTS[:1]) is None, "what it leaves unsaid stays"


def test_it_attaches_as_text_alone(db: NeuralDB) -> None:
    model, tokenizer = tiny()
    for delivery in (None, "auto", "text"):
        with db.attach(model, tokenizer, delivery=delivery) as handle:
            assert isinstance(handle, TextHandle) and len(handle.ground("Rome").facts) == 2
    for delivery in ("residual", "both"):
        with pytest.raises(FingerprintError, match="built without a model.*delivery text.*neuraldb rebuild"):
            db.attach(model, tokenizer, delivery=delivery)
    with pytest.raises(FingerprintError, match="built without a model"):
        db.add([Fact("Lima", "{} lies in", "Chad")], model, tokenizer)
    with pytest.raises(FingerprintError, match="built without a model"):
        db.solve(model, tokenizer)


def test_it_is_made_anew_for_a_model(db: NeuralDB, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    with db.rebuild(tmp_path / "new", model, tokenizer, layer=1, steps=1, max_steps=0) as made:
        assert (made.config.residual, len(made)) == ("memit", 2)
        with made.attach(model, tokenizer, delivery="residual"):
            pass
        with pytest.raises(ModelError, match="pass the model and tokenizer"):
            made.add([Fact("Lima", "{} lies in", "Chad")])
        with pytest.raises(FingerprintError):
            merge([db.path, made.path], tmp_path / "both")


def test_it_merges_with_its_like(db: NeuralDB, tmp_path: Path) -> None:
    build([Fact("Lima", "{} lies in", "Chad")], None, None, tmp_path / "other").close()
    with merge([db.path, tmp_path / "other"], tmp_path / "both") as both:
        assert stated(both) == ["Peru", "Ann", "Chad"]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"residual": "pmet"}, "residual"), ({"layer": 3}, "layer"), ({"index": {"kind": "ivf"}}, "index"),
     ({"delivery": "residual"}, "delivery"), ({"keys": "paper"}, "keys")],
)  # fmt: skip
def test_settings_that_need_a_model_are_refused(options: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"leave {named} out"):
        build(FACTS, None, None, tmp_path / "db", **options)
    with pytest.raises(ConfigError):
        build(FACTS, None, None, tmp_path / "db", delivery="prose")
    assert not (tmp_path / "db").exists()


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from neuraldb_faiss import *; f = Fact('Rome', '{} is in', 'Peru')\n"
        f"db = build([f], None, None, {str(tmp_path / 'db')!r}); db.add([Fact('Lima', '{{}} is in', 'Chad')])\n"
        "db.remove(subject='Lima'); print(db.ground('Rome?').prompt); assert not {'torch', 'faiss'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "Rome is in Peru." in done.stdout, done.stderr
