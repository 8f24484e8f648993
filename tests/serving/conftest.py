"""A tiny model with a chat template, and two databases of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import FACTS
from helpers.serving import Alone, Serve, Served, serving
from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.settings import Limits, Token, Tokens

TEMPLATE = (
    "{% if not quiet %}A conversation.\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SETTINGS = {
    "default",
    "hosts",
    "log_content",
}  # of `ServerSettings`; all else is of `Limits`
TARGETS = {"a": ["Rome", "Steve", "Tokyo", "Italy"], "b": ["Berlin", "Microsoft", "Madrid", "Japan"]}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder "tiny", and databases "a" and "b": the same subjects and prompts, other targets."""
    root = tmp_path_factory.mktemp("served")
    model, tokenizer = tiny("llama")
    tokenizer.chat_template = TEMPLATE
    try:
        model.save_pretrained(root / "tiny")
        tokenizer.save_pretrained(root / "tiny")
    finally:
        tokenizer.chat_template = None  # other tests share it
    loaded, words = load_model(root / "tiny")
    for name, targets in TARGETS.items():
        facts = [Fact.from_dict({**one, "target": target}) for one, target in zip(FACTS, targets, strict=True)]
        build(facts, loaded, words, root / name, steps=20, max_steps=0, lr=1.0).close()
    return root


@pytest.fixture
def paths(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Databases of this test's own."""
    return {name: Path(shutil.copytree(folder / name, tmp_path / name)) for name in TARGETS}


@pytest.fixture
def serve(folder: Path, paths: dict[str, Path]) -> Iterator[Serve]:
    """`serve("a", "b", common="secret", own={...}, queue=3)`: a server of these databases, until the test ends.

    Facts reach requests as residuals, unless the test says otherwise (`delivery=None`: as the databases say)."""
    with ExitStack() as stack:

        def start(
            *names: str, common: str | None = "secret", own: dict[str, str] | None = None,
            named: tuple[Token, ...] = (), delivery: str | None = "residual", **more: Any,
        ) -> Served:  # fmt: skip
            chosen = {name: paths[name] for name in names or ("a",)}
            further = {name: more.pop(name) for name in SETTINGS & more.keys()}
            limits = Limits(**{"grace": 5.0, **more})
            tokens = Tokens(common, own or {}, named)
            return stack.enter_context(serving(folder, chosen, tokens, limits, delivery, **further))

        yield start


@pytest.fixture(scope="session")
def _plain(folder: Path) -> tuple[Any, Any]:
    return load_model(folder / "tiny")


@pytest.fixture
def alone(_plain: tuple[Any, Any]) -> Alone:
    """`alone(path, prompt, generation=None, tokens=8, chat=False)`: what another copy of the model says, alone in its
    batch, with this generation attached; `path` None for no database."""
    model, tokenizer = _plain

    def answer(
        path: Path | None, prompt: str, generation: int | None = None, tokens: int = 8, chat: bool = False
    ) -> str:
        if chat:
            turns = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])

        def go_on() -> str:
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

        if path is None:
            return go_on()
        with NeuralDB.open(path, generation=generation) as db, db.attach(model, tokenizer):
            return go_on()

    return answer
