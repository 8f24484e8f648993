"""The layer is found in vLLM's model or refused, and the operator runs there, eager and compiled."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch import nn

from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.errors import FingerprintError, ModelError, ServeError
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.integrations.vllm import layer
from neuraldb_faiss.integrations.vllm.layer import Served, answer, check_weights, find_layer, serve
from neuraldb_faiss.integrations.vllm.settings import Settings
from neuraldb_faiss.models import find_site
from neuraldb_faiss.models.fingerprint import fingerprint


class RowParallel(nn.Module):
    """Shaped like vLLM's: sizes under other names, and a bias beside the output."""

    def __init__(self, inputs: int, outputs: int, tp_size: int = 1) -> None:
        super().__init__()
        self.input_size, self.output_size, self.tp_size = inputs, outputs, tp_size
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)))

    def forward(self, keys: torch.Tensor) -> tuple[torch.Tensor, None]:
        return keys @ self.weight.T, None


def named(**modules: nn.Module) -> nn.Module:
    """A model whose modules have these names, "__" for a dot."""
    model = nn.Module()
    for name, module in modules.items():
        *path, last = name.split("__")
        owner = model
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = getattr(owner, step)
        owner.add_module(last, module)
    return model


STORED: Any = SimpleNamespace(module_name="model.layers.3.mlp.down_proj", d1=8, d2=4)


@pytest.mark.parametrize("prefix", ["model__", "language_model__model__", ""])
def test_the_layer_is_found_behind_whatever_words(prefix: str) -> None:
    projection = RowParallel(8, 4)
    model = named(**{
        f"{prefix}layers__3__mlp__down_proj": projection,
        f"{prefix}layers__13__mlp__down_proj": RowParallel(8, 4),
        "visual__layers__3__mlp__down_proj": RowParallel(6, 3),
    })  # fmt: skip
    assert find_layer(model, STORED) == (f"{prefix}layers__3__mlp__down_proj".replace("__", "."), projection)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no layers.3.mlp.down_proj from 8 to 4.*nothing is called so.*another rank"):
        find_layer(named(model__layers__2__mlp__down_proj=RowParallel(8, 4)), STORED)
    with pytest.raises(ModelError, match=r"found model.layers.3.mlp.down_proj \(RowParallel \(9, 4\)\)"):
        find_layer(named(model__layers__3__mlp__down_proj=RowParallel(9, 4)), STORED)
    with pytest.raises(ModelError, match="several"):
        one, other = RowParallel(8, 4), RowParallel(8, 4)
        find_layer(named(a__layers__3__mlp__down_proj=one, b__layers__3__mlp__down_proj=other), STORED)


def test_a_split_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="split over 2 ranks"):
        find_layer(named(model__layers__3__mlp__down_proj=RowParallel(8, 4, tp_size=2)), STORED)


# ---- weights


def vllm_like(model: nn.Module) -> nn.Module:
    """As vLLM keeps it: q, k and v in one matrix, more rows in the embedding."""
    for block in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            delattr(block.self_attn, name)
    embedding: Any = model.model.embed_tokens
    embedding.weight = nn.Parameter(torch.cat([embedding.weight, torch.zeros(7, embedding.weight.shape[1])]))
    return model


def test_the_right_weights_pass_and_others_do_not() -> None:
    model, _ = tiny("llama")
    site = find_site(model, 1)
    stored = fingerprint(model, site)
    config = model.config
    check_weights(vllm_like(model), config, stored, site.module_name)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(0.5)
    with pytest.raises(FingerprintError, match="was built with llama"):
        check_weights(model, config, stored, site.module_name)


def test_weights_that_vllm_transposes_are_known() -> None:
    model, _ = tiny("gpt2")
    site = find_site(model, 1)
    stored = fingerprint(model, site)
    for block in model.transformer.h:
        block.mlp.c_proj.weight = nn.Parameter(block.mlp.c_proj.weight.T.contiguous())
    check_weights(model, model.config, stored, site.module_name)


def test_another_shape_of_model_is_refused() -> None:
    model, _ = tiny("llama")
    site = find_site(model, 1)
    other = SimpleNamespace(model_type="llama", num_hidden_layers=9, vocab_size=model.config.vocab_size)
    with pytest.raises(FingerprintError, match="9 layers"):
        check_weights(model, other, fingerprint(model, site), site.module_name)


# ---- the operator


@pytest.fixture
def projection() -> RowParallel:
    return RowParallel(8, 4)


@pytest.fixture
def served() -> Served:
    """Fires on the unit vectors 0 and 1, and adds 10 and 20."""
    source = FakeSnapshot(np.eye(8)[:2], np.array([[10.0] * 4, [20.0] * 4]))
    return Served(PlainGate(Matcher(source, gamma=0.9)))


KEYS = torch.eye(8)[[2, 0, 1, 0, 3]]
ADDED = torch.tensor([0.0, 10.0, 20.0, 0.0, 0.0])[:, None].expand(5, 4)  # the fourth row is padding


def step(served: Served) -> None:
    served.begin(["a", "b"], np.array([2, 1]), np.array([4, 7]), torch.tensor([1, 2, 3, 0, 0]))


@pytest.mark.parametrize("compiled", [False, True])
def test_it_fires_eager_and_compiled(compiled: bool, projection: RowParallel, served: Served) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = projection

        def forward(self, keys: torch.Tensor) -> torch.Tensor:
            out, _ = self.down_proj(keys * 1.0)
            return out + 1.0

    block = Block()
    with torch.no_grad():
        plain = block(KEYS)
        answer(projection, "the layer", served)
        # "aot_eager": the operator is traced and functionalised as with inductor, without a C++ compiler.
        run = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
        torch.testing.assert_close(run(KEYS), plain)  # vLLM warms up
        for _ in range(2):
            step(served)
            torch.testing.assert_close(run(KEYS), plain + ADDED)
            served.end()
    assert served.hits == 4


def test_only_the_newest_answers(projection: RowParallel, served: Served) -> None:
    first = RowParallel(8, 4)
    answer(first, "the first", served)
    answer(projection, "the second", served)
    assert layer.served() is served
    with pytest.raises(ModelError, match="compiled for a database at the first"):
        first(KEYS)


# ---- a real database


def test_a_database_is_served_and_refreshed(tmp_path: Path) -> None:
    model, words = tiny("llama")
    words.save_pretrained(tmp_path / "model")
    facts = [Fact("Vienna", "{} is the capital of", "Italy"), Fact("Berlin", "{} lies in", "Spain")]
    db = build(facts, model, words, tmp_path / "db", steps=2)
    device = torch.device("cpu")
    found = serve(model, model.config, Settings(str(tmp_path / "db")), str(tmp_path / "model"), device)
    assert "2 facts" in found.describe() and "guard subject, gamma 0.45" in found.describe()
    ids = np.array(words("I saw Vienna today").input_ids)
    keys = torch.from_numpy(np.stack([db.snapshot.keys(np.array([0]))[0]] * len(ids)).astype(np.float32))

    def fired() -> list[int]:
        output = torch.zeros(len(ids), db.snapshot.d2)
        found.requests.begin("r", ids.tolist())
        found.begin(["r"], np.array([len(ids)]), np.array([0]), torch.from_numpy(ids))
        found.add(keys, output)
        found.end()
        return torch.nonzero(output.abs().sum(dim=1)).flatten().tolist()

    assert len(fired()) == 1
    db.remove([fact.id for fact in db.facts() if fact.subject == "Vienna"])
    assert len(fired()) == 1  # the generation of the start, until somebody refreshes
    assert found.refresh() == db.generation
    assert fired() == []


def test_a_tokenizer_that_ends_every_prompt_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, words = tiny("llama", "metaspace")
    build([Fact("Vienna", "{} is the capital of", "Italy")], model, words, tmp_path / "db", residual="none").close()
    words = copy.deepcopy(words)
    for template, warned in (("<s> $A", False), ("<s> $A </s>", True)):
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        words.save_pretrained(tmp_path / template)
        settings = Settings(str(tmp_path / "db"))
        serve(model, model.config, settings, str(tmp_path / template), torch.device("cpu"))
        assert any("puts </s> behind every prompt" in text for text in caplog.messages) == warned


def test_guards_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    model, words = tiny("llama")
    build([Fact("Vienna", "{} is the capital of", "Italy")], model, words, tmp_path / "db", steps=1).close()
    with pytest.raises(ModelError, match="no fast tokenizer"):
        serve(model, model.config, Settings(str(tmp_path / "db")), str(tmp_path / "none"), torch.device("cpu"))
    plain = Settings(str(tmp_path / "db"), guard="none")
    found = serve(model, model.config, plain, str(tmp_path / "none"), torch.device("cpu"))
    assert "guard none, gamma 0.65" in found.describe()
    ahead = Settings(str(tmp_path / "db"), guard="whole-words")
    with pytest.raises(ServeError, match="set NEURALDB_GUARD=subject"):
        serve(model, model.config, ahead, str(tmp_path / "model"), torch.device("cpu"))
    how: Any = {"residual": "answer", "layer": 2, "steps": 1, "max_steps": 0}
    build([Fact("Vienna", "{} is the capital of", "Italy")], model, words, tmp_path / "answer", **how).close()
    for guard in (None, "subject"):
        settings = Settings(str(tmp_path / "answer"), guard=guard)
        with pytest.raises(ServeError, match="fires where a prompt ends"):
            serve(model, model.config, settings, str(tmp_path / "model"), torch.device("cpu"))
