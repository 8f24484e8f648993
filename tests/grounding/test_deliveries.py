"""Deliveries of an attached database: what fires, what is stated, and from which generation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.config import DELIVERIES, resolve_delivery
from neuraldb_faiss.errors import ConfigError, FactError
from neuraldb_faiss.grounding.mentions import Mentions
from neuraldb_faiss.hook.text_handle import TextHandle
from neuraldb_faiss.store import Snapshot

FACTS = [Fact("Rome", "The city of {} is in", "Peru"), Fact("Oslo", "The city of {} is in", "Chad")]
CHAT = [{"role": "user", "content": "Where is Rome?"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deliveries")
    model, tokenizer = tiny()
    build(FACTS, model, tokenizer, root / "solved", layer=1, steps=2, max_steps=0).close()
    build(FACTS, model, tokenizer, root / "none", layer=1, residual="none", delivery="both").close()
    return root


@pytest.fixture
def db(built: Path) -> Iterator[NeuralDB]:
    with NeuralDB.open(built / "solved") as opened:
        yield opened


@pytest.mark.parametrize(
    ("wanted", "residuals", "delivery"),
    [
        ("auto", True, "text"),
        ("auto", False, "text"),
        ("residual", True, "residual"),
        ("residual", False, "residual"),
        ("text", True, "text"),
        ("text", False, "text"),
        ("both", True, "both"),
        ("both", False, "text"),
    ],
)
def test_one_rule_for_deliveries(wanted: str, residuals: bool, delivery: str) -> None:
    assert resolve_delivery(wanted, residuals=residuals) == delivery


def told(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Have every snapshot tell its facts with these changes."""
    real = Snapshot.facts

    def facts(self: Snapshot, **where: Any) -> Iterator[Any]:
        return (replace(fact, **changes) for fact in real(self, **where))

    monkeypatch.setattr(Snapshot, "facts", facts)


def test_a_facts_own_prompt_is_left_to_its_residual(db: NeuralDB, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, took=True)
    assert resolve_delivery("auto", residuals=True, own_prompt=True) == "residual"
    assert resolve_delivery("auto", residuals=False, own_prompt=True) == "text"
    assert resolve_delivery("text", residuals=True, own_prompt=True) == "text"
    with db.attach(*tiny()) as handle:
        assert handle.delivery_of("It is late. The city of Rome is in ") == "residual"
        assert handle.ground("The city of Rome is in").facts == ()
        assert handle.delivery_of("The city of Rome is in the") == handle.delivery_of(CHAT) == "text"


@pytest.mark.parametrize("changes", [{"took": True, "state": "suspended"}, {"took": False}])
def test_an_own_prompt_whose_residual_does_not_say_the_target_is_stated(
    db: NeuralDB, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    told(monkeypatch, **changes)
    with db.attach(*tiny()) as handle:
        assert handle.delivery_of("The city of Rome is in") == "text"
        assert [fact.target for fact in handle.ground("The city of Rome is in").facts] == ["Peru"]


def test_names_are_looked_up_once_a_completion(db: NeuralDB, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Mentions.in_text

    def in_text(self: Mentions, text: str) -> Any:
        read.append(text)
        return real(self, text)

    monkeypatch.setattr(Mentions, "in_text", in_text)
    with db.attach(*tiny()) as handle:
        text = "Oslo and Rome: the city of Rome lies in"
        assert handle.delivery_of(text) == "text" and len(handle.ground(text).facts) == 2
    assert read == [text]


def test_unknown_deliveries_are_refused(db: NeuralDB) -> None:
    with pytest.raises(ConfigError, match="delivery is 'prose': it must be one of auto, residual, text, both"):
        db.attach(None, delivery="prose")
    with pytest.raises(ConfigError, match="delivery is 'prose'"):
        build(FACTS, *tiny(), Path("never"), delivery="prose")


@pytest.mark.parametrize("delivery", [None, *DELIVERIES])
def test_what_fires_and_what_is_stated(db: NeuralDB, delivery: str | None) -> None:
    model, tokenizer = tiny()
    with db.attach(model, tokenizer, delivery=delivery) as handle:
        with torch.no_grad():
            model(**tokenizer("The city of Rome is in", return_tensors="pt"))
        text = handle.ground("The city of Rome lies in").text
        chat = handle.ground(CHAT).prompt
    assert (handle.hits > 0) == (delivery != "text")
    assert bool(text) == (delivery != "residual")
    assert (len(chat) == 2) == (delivery != "residual")
    assert handle.delivery == (delivery or "auto")


def test_a_request_may_ask_for_another_delivery(db: NeuralDB) -> None:
    model, tokenizer = tiny()
    with db.attach(model, tokenizer, delivery="residual") as handle:
        assert handle.ground(CHAT).prompt == CHAT and handle.delivery_of(CHAT) == "residual"
        assert len(handle.ground(CHAT, delivery="text").prompt) == 2
        assert handle.delivery_of(CHAT, "both") == "both"


def test_without_residuals_facts_are_stated(built: Path) -> None:
    model, tokenizer = tiny()
    with NeuralDB.open(built / "none") as db, db.attach(model, tokenizer) as handle:
        assert db.config.delivery == "both" and handle.delivery_of("Rome") == "text"
        assert handle.ground("Rome").facts[0].target == "Peru"


def test_text_needs_no_model(db: NeuralDB) -> None:
    with db.attach(None, delivery="text") as handle:
        assert isinstance(handle, TextHandle)
        assert handle.ground(CHAT).prompt == db.ground(CHAT).prompt != CHAT
        assert (handle.calls, handle.hits, list(handle.trace())) == (0, 0, [])
        with handle.disabled():
            handle.clear_trace()


@pytest.mark.parametrize("delivery", ["text", "both"])
def test_a_handle_states_the_generation_it_answers_from(tmp_path: Path, delivery: str) -> None:
    model, tokenizer = tiny()
    build(FACTS, model, tokenizer, tmp_path / "db", layer=1, residual="memit", steps=1, max_steps=0).close()
    with NeuralDB.open(tmp_path / "db") as db, db.attach(model, tokenizer, delivery=delivery) as handle:
        assert len(handle.ground("Rome and Oslo").facts) == 2
        with NeuralDB.open(tmp_path / "db", "rw") as writer:
            writer.remove(subject="Rome")
            assert [fact.subject for fact in writer.ground("Rome and Oslo").facts] == ["Oslo"]
        assert len(handle.ground("Rome and Oslo").facts) == 2
        handle.refresh()
        assert [fact.subject for fact in handle.ground("Rome and Oslo").facts] == ["Oslo"]


def test_a_compaction_elsewhere_moves_to_the_newest(tmp_path: Path) -> None:
    model, tokenizer = tiny()
    build(FACTS, model, tokenizer, tmp_path / "db", layer=1, residual="none").close()
    for delivery in ("text", "both"):
        with NeuralDB.open(tmp_path / "db") as db, db.attach(model, tokenizer, delivery=delivery) as handle:
            with NeuralDB.open(tmp_path / "db", "rw") as writer:
                fact = writer.add([Fact("Lima", f"{{}} {delivery}", "Chad")], model, tokenizer)
                assert fact is not None
                writer.remove(subject="Lima")
                writer.compact()
            with pytest.warns(UserWarning, match="the newest generation answers|is shown from now on"):
                assert len(handle.ground("Rome").facts) == 1


def test_no_prompt_is_refused_by_every_delivery(db: NeuralDB) -> None:
    with db.attach(None, delivery="text") as handle, pytest.raises(FactError, match="prompt is of type int"):
        handle.ground(7)
