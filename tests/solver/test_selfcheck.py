"""What is proved on the model in use before a solve relies on it: gradients, cheaper passes, reading direction."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny import tiny
from neuraldb_faiss.errors import BuildError, ModelError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import find_site
from neuraldb_faiss.models.interventions import check_causal, shared_copy
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.solver import ResidualConfig, solve_residuals
from neuraldb_faiss.solver.forward.base import FastForward

FACT = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
PREFIXES = ("The city of", "Because")
CONFIG = ResidualConfig(steps=2, lr=0.5, weight_decay=0.5, clamp=0.75, kl_factor=0.0625)


def solve(model: Any, tokenizer: Any, layer: int = 1) -> Any:
    return solve_residuals(model, tokenizer, find_site(model, layer), [[FACT]], PREFIXES, CONFIG)


@pytest.mark.parametrize("lost", ["self_attn", "mlp", "lm_head"])
def test_a_layer_without_gradient_is_found_out(lost: str) -> None:
    """As in a kernel that has no backward pass: what flows around it still gives some gradient."""
    model, tokenizer = tiny("llama")
    model.register_parameter("packed", nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    layers: list[nn.Module] = [model.lm_head]
    if lost != "lm_head":
        layers = [getattr(block, lost) for block in model.model.layers[2:]]
    for layer in layers:
        layer.register_forward_hook(
            lambda _, args, out: out.detach() if isinstance(out, Tensor) else (out[0].detach(), *out[1:])
        )
    with pytest.raises(BuildError, match="no true gradient comes back .* above layer 1 .*unquantised"):
        solve(model, tokenizer)


def test_an_error_of_another_kind_is_not_called_a_missing_gradient() -> None:
    model, tokenizer = tiny("llama")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    model.model.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        solve(model, tokenizer)


@pytest.mark.parametrize("fault", ["logits", "gradient", "norm", "raises"])
def test_a_cheaper_pass_that_is_wrong_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny("llama")
    (wanted,) = solve(model, tokenizer)
    model, tokenizer = tiny("llama")  # the same one, of which nothing was proved
    right = FastForward.logits
    record = FastForward._record

    def wrong(self: FastForward, r: Tensor) -> Tensor:
        if fault == "raises":
            raise NotImplementedError("no cache here")
        logits = right(self, r)
        return logits * 1.1 if fault == "logits" else logits.detach() + 0 * r.sum()

    def longer(self: FastForward) -> None:
        record(self)
        self.h_norm = self.h_norm * 1.1

    if fault == "norm":
        monkeypatch.setattr(FastForward, "_record", longer)
    else:
        monkeypatch.setattr(FastForward, "logits", wrong)
    with caplog.at_level(logging.WARNING):
        (got,) = solve(model, tokenizer)
    assert torch.allclose(torch.from_numpy(got.residual), torch.from_numpy(wanted.residual), atol=1e-3)
    assert "whole forward passes" in caplog.text


@pytest.mark.parametrize("kind", ["llama", "qwen3_5_text"])
def test_a_copied_cache_leaves_the_first_as_it_was(kind: str) -> None:
    model, tokenizer = tiny(kind)
    ids = tokenizer(FACT.text, return_tensors="pt")["input_ids"]

    def go_on(past: Any) -> Tensor:
        return model(input_ids=ids[:, 4:], past_key_values=shared_copy(past), use_cache=True).logits

    with torch.no_grad():
        past = model(input_ids=ids[:, :4], use_cache=True).past_key_values
        assert torch.equal(go_on(past), go_on(past))
        torch.testing.assert_close(go_on(past), model(input_ids=ids).logits[:, 4:], rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_both_ways_is_refused() -> None:
    model, tokenizer = tiny("llama")
    site, ids = find_site(model, 1), tokenizer(FACT.text)["input_ids"]
    check_causal(model, site, ids)

    def mix(_: nn.Module, args: Any, out: Any) -> Any:
        return (out[0] + out[0].mean(1, keepdim=True), *out[1:])

    handle = model.model.layers[0].self_attn.register_forward_hook(mix)
    with pytest.raises(ModelError, match="reads its prompt in both directions .*layer 1"):
        check_causal(model, site, ids)
    handle.remove()
    check_causal(model, site, ids[:1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_ids_go_where_an_offloaded_model_computes() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, _ = tiny("llama")
    assert input_device(model) == torch.device("cpu")
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.get_input_embeddings().weight.is_meta
    assert input_device(model) == torch.device("cpu")
