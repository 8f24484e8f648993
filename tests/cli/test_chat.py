"""`neuraldb chat`: a conversation line by line, what it keeps, and the facts that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.commands import FACTS, Run
from helpers.tiny import save_tiny, tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.inference.chat import Conversation
from neuraldb_faiss.models import load_model

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
ABOUT = "Tell me about the Eiffel Tower."


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    model, tokenizer = tiny("llama")
    tokenizer.chat_template = TEMPLATE
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = None  # other tests share it
    return folder


@pytest.fixture
def stated(tmp_path: Path) -> Path:
    """A database without a model."""
    build([Fact.from_dict(one) for one in FACTS], None, None, tmp_path / "stated").close()
    return tmp_path / "stated"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The conversations that chat templates were given."""
    from transformers import PreTrainedTokenizerFast

    heard: list[list[dict[str, Any]]] = []
    apply = PreTrainedTokenizerFast.apply_chat_template

    def listen(self: Any, conversation: Any, **how: Any) -> Any:
        if "sanitize_control_tokens" in how:
            heard.append(list(conversation))
        return apply(self, conversation, **how)

    monkeypatch.setattr(PreTrainedTokenizerFast, "apply_chat_template", listen)
    return heard


def test_piped_lines_are_one_conversation_and_facts_are_named(
    run: Run, stated: Path, model_folder: Path, asked: list[Any]
) -> None:
    lines = f"{ABOUT}\n\n  I love it!  \n/reset\nHello\n/unknown\n/quit\nnot read\n"
    done = run("chat", stated, "--model", model_folder, "--max-new-tokens", 4, "--system", "Be brief.", input=lines)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("stated  The Eiffel Tower was built by Steve.") == 2  # the second turn's too
    assert "forgotten" in done.stderr and "there is no /unknown" in done.stderr
    roles = [[message["role"] for message in one] for one in asked]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert all(one[0]["content"].startswith("Be brief.") for one in asked)
    assert "Rome" in asked[1][0]["content"] and "Rome" not in asked[2][0]["content"]
    answers = [message["content"] for message in asked[1] if message["role"] == "assistant"]
    assert answers[0].strip() and "stated" not in done.stdout


def test_a_delivery_as_residuals_names_what_fired(run: Run, tmp_path: Path, model_folder: Path) -> None:
    model, tokenizer = load_model(model_folder)
    facts = [Fact.from_dict(one) for one in FACTS]
    build(facts, model, tokenizer, tmp_path / "db", steps=1, max_steps=0, gamma=0.01).close()
    said = "I know that Marie Curie was born in"
    for how, fired, stated in (("residual", True, False), ("text", False, True), ("both", True, True)):
        done = run("chat", tmp_path / "db", "--delivery", how, "--max-new-tokens", 2, input=f"{said}\n")
        assert done.exit_code == 0, done.output
        assert ("fired   Marie Curie: " in done.stderr) is fired, how
        assert ("stated  I know that Marie Curie was born in Tokyo." in done.stderr) is stated, how


def test_the_oldest_turns_are_forgotten_and_what_is_too_long_is_told(stated: Path, model_folder: Path) -> None:
    """The tiny model has a context of 512 tokens."""
    model, tokenizer = load_model(model_folder)
    with NeuralDB.open(stated) as db, db.attach(model, tokenizer) as handle:
        talk = Conversation(db, handle, model, tokenizer, max_new_tokens=8)
        pieces: list[str] = []
        replies = [talk.say("word " * 60, pieces.append) for _ in range(8)]
        assert "".join(pieces) == "".join(one.text for one in replies)
        forgotten = [one.forgotten for one in replies]
        assert forgotten[0] == 0 and forgotten[-1] == 2
        with pytest.raises(ModelError, match="too long"):
            talk.say("word " * 600)
        assert talk.say("word").forgotten == 0


def test_an_answer_that_was_stopped_does_not_count(stated: Path, model_folder: Path, asked: list[Any]) -> None:
    model, tokenizer = load_model(model_folder)
    with NeuralDB.open(stated) as db, db.attach(model, tokenizer) as handle:
        talk = Conversation(db, handle, model, tokenizer, max_new_tokens=8)

        def stop(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            talk.say("One two three", stop)
        talk.say("Hello")
    assert [message["content"] for message in asked[-1]] == ["Hello"]


def test_a_model_without_a_chat_template_is_told(run: Run, stated: Path, tmp_path: Path) -> None:
    done = run("chat", stated, "--model", save_tiny(tmp_path / "plain"), input="Hello\n")
    assert done.exit_code == 1 and "no chat template" in done.stderr
