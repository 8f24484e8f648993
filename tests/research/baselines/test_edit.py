"""Whole edits against the same method written out densely, step by step, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import weight_edits as plain
from helpers.tiny import tiny
from helpers.weight_edits import FACTS, FEW_STEPS
from neuraldb_faiss import Fact
from neuraldb_faiss.errors import BuildError, ModelError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import METHODS, Edit, Statistics, default_settings, edited
from neuraldb_faiss.solver.editor import Editor

Take = Callable[..., Statistics]
LAYERS = [0, 1, 2]
SETTINGS: dict[str, dict[str, Any]] = {
    "memit": {"layers": LAYERS, "c0_weight": 3.0, **FEW_STEPS},
    "rect": {"layers": LAYERS, "c0_weight": 3.0, **FEW_STEPS},
    "alphaedit": {"layers": LAYERS, "null_threshold": 0.3, "l2": 0.5, **FEW_STEPS},
    "pmet": {"layers": LAYERS, "c0_weight": 3.0, **FEW_STEPS},
    "rome": {"layers": [1], **FEW_STEPS},
    "ft": {"layers": [1], "steps": 3},
}


LINEAR = ("memit", "alphaedit", "rect", "pmet")


def bits(model: nn.Module) -> list[bytes]:
    return [value.detach().contiguous().view(torch.uint8).numpy().tobytes() for value in model.state_dict().values()]


def matrices(edit: Edit) -> dict[int, np.ndarray]:
    return {layer: edit.delta(layer).double().numpy() for layer in edit.layers}


class Dense:
    """The methods once more: whole forward passes, explicit inverses, weights set outright."""

    def __init__(self, model: Any, tokenizer: Any, name: str, statistics: Statistics) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.settings = {**vars(default_settings(name, model)), **SETTINGS[name]}
        self.sites = [find_site(model, layer) for layer in self.settings["layers"]]
        self.c0 = {n: m.matrix for n, m in statistics.moments(model, self.sites).items()}
        solver = ("steps", "lr", "weight_decay", "clamp", "kl_factor", "stop_loss", "optimizer")
        kind = "pmet" if name == "pmet" else "memit"
        layer, config = self.settings["layers"][-1], {field: self.settings[field] for field in solver}
        self.editor = Editor.new(model, tokenizer, layer=layer, residual=kind, keys="paper", **config)
        self.earlier = {site.layer: np.zeros((site.d1, site.d1)) for site in self.sites}

    def batch(self, facts: Sequence[Fact]) -> None:
        which = "ffn" if self.name == "pmet" else "layer"
        last = self.sites[-1]
        r = np.stack([one.residual for one in self.editor.make_residuals([[fact] for fact in facts])]).astype(float)
        z = plain.outputs(self.model, self.tokenizer, last, facts, which) + r
        before = {site.layer: plain.matrix(site.module) for site in self.sites}
        for i, site in enumerate(self.sites):
            k1 = self.keys(site, facts).T
            left = len(self.sites) - i
            missing = z - plain.outputs(self.model, self.tokenizer, last, facts, which)
            r1 = missing.T / (math.sqrt(left) if self.name == "pmet" else left)
            self.set(site, plain.matrix(site.module) + r1 @ k1.T @ self.s(site.layer, k1))
        for site in self.sites:
            if self.name == "rect":
                delta = plain.matrix(site.module) - before[site.layer]
                change = np.abs(delta / before[site.layer])
                self.set(site, before[site.layer] + delta * (change >= np.quantile(change, 0.6)))
            k = self.keys(site, facts).T
            self.earlier[site.layer] += k @ k.T

    def s(self, layer: int, k1: np.ndarray) -> np.ndarray:
        c0 = self.c0[layer]
        if self.name != "alphaedit":
            return np.linalg.inv(k1 @ k1.T + self.settings["c0_weight"] * c0)
        u, values, _ = np.linalg.svd(c0)
        small = u[:, values < self.settings["null_threshold"]]
        assert 0 < small.shape[1] < len(c0)  # else the projection is not tested
        p = small @ small.T
        return p @ np.linalg.inv(self.earlier[layer] @ p + k1 @ k1.T @ p + self.settings["l2"] * np.eye(len(p)))

    def keys(self, site: Any, facts: Sequence[Fact]) -> np.ndarray:
        return plain.keys(self.model, self.tokenizer, site, facts, self.editor.prefixes)

    def set(self, site: Any, wanted: np.ndarray) -> None:
        turned = type(site.module).__name__ == "Conv1D"
        with torch.no_grad():
            site.module.weight.copy_(torch.from_numpy(wanted.T if turned else wanted))


CASES = [
    *[(kind, batch, name) for kind, batch in (("llama", None), ("gpt2", 3)) for name in LINEAR],
    *[("gptj", None, name) for name in ("memit", "pmet")],
    ("llama", 3, "alphaedit"),
]


@pytest.mark.parametrize(("kind", "batch", "name"), CASES)
def test_equals_the_dense_method(kind: str, name: str, batch: int | None, take: Take) -> None:
    model, tokenizer = tiny(kind)
    statistics = take(model, tokenizer, LAYERS)
    before = bits(model)
    with edited(name, model, tokenizer, FACTS, batch=batch, statistics=statistics, **SETTINGS[name]) as edit:
        got = matrices(edit)
        assert (edit.method, edit.facts, edit.batch, edit.layers) == (name, 5, batch, (0, 1, 2))
        assert len(edit.losses) == 5 and all(loss > 0 for loss in edit.losses)
    assert bits(model) == before
    dense = Dense(model, tokenizer, name, statistics)
    start = {site.layer: plain.matrix(site.module) for site in dense.sites}
    for first in range(0, len(FACTS), batch or len(FACTS)):
        dense.batch(FACTS[first : first + (batch or len(FACTS))])
    for site in dense.sites:
        wanted = plain.matrix(site.module) - start[site.layer]
        scale = np.abs(wanted).max()
        assert scale > 1e-4
        if name == "rect":  # an entry at the edge of the share may fall on either side
            off = ~np.isclose(got[site.layer], wanted, atol=2e-3 * scale)
            assert off.mean() < 0.002
            assert np.mean(got[site.layer] != 0) == pytest.approx(0.4, abs=0.002) or batch
        else:
            np.testing.assert_allclose(got[site.layer], wanted, atol=2e-3 * scale)


def test_one_layer_and_one_fact_is_rome_scaled(take: Take) -> None:
    """MEMIT's update is ROME's for the same residual, times kᵀC⁻¹k / (λ + kᵀC⁻¹k)."""
    model, tokenizer = tiny("llama")
    statistics = take(model, tokenizer, [1])
    site, fact = find_site(model, 1), FACTS[:1]
    with edited("memit", model, tokenizer, fact, statistics=statistics, **SETTINGS["memit"] | {"layers": [1]}) as edit:
        got = edit.delta(1).double().numpy()
        prefixes = edit.settings["prefixes"]
    c0 = statistics.moments(model, [site])[1].matrix
    key = plain.keys(model, tokenizer, site, fact, prefixes)[0]
    editor = Editor.new(model, tokenizer, layer=1, keys="paper", optimizer="adam", **FEW_STEPS)
    residual = editor.make_residuals([fact])[0].residual.astype(float)
    solved = np.linalg.solve(c0, key)
    rome = np.outer(residual, solved) / (key @ solved)
    q = key @ solved
    np.testing.assert_allclose(got, rome * q / (3.0 + q), atol=1e-3 * np.abs(got).max())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_rome_writes_each_residual_whole(kind: str, take: Take) -> None:
    model, tokenizer = tiny(kind)
    statistics = take(model, tokenizer, [1])
    site = find_site(model, 1)
    facts, c0 = FACTS[:3], statistics.moments(model, [site])[1].matrix
    before = bits(model)
    with edited("rome", model, tokenizer, facts, statistics=statistics, **SETTINGS["rome"]) as edit:
        got, prefixes = edit.delta(1).double().numpy(), edit.settings["prefixes"]
    assert bits(model) == before
    # In the same order by hand: every fact is solved, by eq. 21 with the FFN's output in the place of the layer's,
    # on the model that holds the facts before it.
    start = plain.matrix(site.module)
    for fact in facts:
        _, ffn, layer = plain.read(model, tokenizer, site, fact.text, fact.subject_span[1])
        ratio = np.linalg.norm(ffn) / np.linalg.norm(layer)
        own = {**FEW_STEPS, "clamp": 4.0 * ratio, "weight_decay": 0.5 / ratio**2, "kl_factor": 0.0625}
        editor = Editor.new(model, tokenizer, layer=1, keys="paper", optimizer="adam", **own)
        residual = Editor.make_residuals(_with_prefixes(editor, prefixes), [[fact]])[0].residual.astype(float)
        key = plain.keys(model, tokenizer, site, [fact], prefixes)[0]
        solved = np.linalg.solve(c0, key)
        update = np.outer(residual, solved) / (key @ solved)
        np.testing.assert_allclose(update @ key, residual, rtol=1e-9)
        with torch.no_grad():
            new = torch.from_numpy(plain.matrix(site.module) + update)
            site.module.weight.copy_(new.T if kind == "gpt2" else new)
    wanted = plain.matrix(site.module) - start
    np.testing.assert_allclose(got, wanted, atol=5e-3 * np.abs(wanted).max())


def _with_prefixes(editor: Editor, prefixes: list[str]) -> Editor:
    import dataclasses

    return dataclasses.replace(editor, prefixes=tuple(prefixes))  # those of the unedited model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_ft_lowers_the_loss_within_its_bound(kind: str) -> None:
    model, tokenizer = tiny(kind)
    before, grads = bits(model), [p.requires_grad for p in model.parameters()]
    with edited("ft", model, tokenizer, FACTS, layers=[1], steps=12, lr=2e-3, bound=5e-3, batch_size=4) as edit:
        delta = edit.delta(1)
        assert edit.losses[-1] < edit.losses[0] - 0.05 and len(edit.losses) == 12
    assert 0.004 < float(delta.abs().max()) <= 0.005 + 1e-6
    assert bits(model) == before and [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())


def test_ft_by_hand() -> None:
    """One round of one batch is one step of Adam, whose first step moves every entry by lr against its gradient."""
    model, tokenizer = tiny("llama")
    weight = find_site(model, 1).module.weight
    losses = []
    for fact in FACTS[:2]:
        ids = tokenizer(f"{fact.text} {fact.target}")["input_ids"]
        n = len(tokenizer(f" {fact.target}")["input_ids"])
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[-n - 1 : -1], torch.tensor(ids[-n:])))
    mean = (losses[0] + losses[1]) / 2
    (grad,) = torch.autograd.grad(mean, weight)
    with edited("ft", model, tokenizer, FACTS[:2], layers=[1], steps=1, lr=1e-3, bound=1.0) as edit:
        delta = edit.delta(1)
    assert edit.losses[0] == pytest.approx(float(mean.detach()), rel=1e-4)
    clear = grad.abs() > 1e-4
    torch.testing.assert_close(delta[clear], -1e-3 * grad[clear].sign(), rtol=0.01, atol=1e-6)


def test_ft_ends_when_all_is_said() -> None:
    model, tokenizer = tiny("llama")
    with edited("ft", model, tokenizer, FACTS, layers=[1], stop_loss=1e9) as edit:
        assert len(edit.losses) == 1 and not edit.delta(1).any()


@pytest.mark.parametrize("name", METHODS)
def test_restores_whatever_happens_inside(name: str, take: Take) -> None:
    model, tokenizer = tiny("gpt2")
    statistics = take(model, tokenizer, LAYERS)
    before = bits(model)
    with pytest.raises(KeyError), edited(name, model, tokenizer, FACTS[:2], statistics=statistics, **SETTINGS[name]):
        assert bits(model) != before
        raise KeyError
    assert bits(model) == before


def test_a_failure_while_writing_restores(take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.research.baselines import kernels

    model, tokenizer = tiny("llama")
    statistics, before, calls = take(model, tokenizer, LAYERS), bits(model), []
    memit = kernels.memit

    def second_fails(*args: Any) -> Any:
        calls.append(bits(model) == before)
        if len(calls) == 2:
            raise BuildError("no luck")
        return memit(*args)

    monkeypatch.setattr(kernels, "memit", second_fails)
    with pytest.raises(BuildError, match="no luck"):
        with edited("memit", model, tokenizer, FACTS[:2], statistics=statistics, **SETTINGS["memit"]):
            pass
    assert calls == [True, False] and bits(model) == before


def test_a_half_precision_model(take: Take) -> None:
    model, tokenizer = tiny("llama")
    statistics = take(model, tokenizer, LAYERS)
    with edited("memit", model, tokenizer, FACTS, statistics=statistics, **SETTINGS["memit"]) as edit:
        wanted = matrices(edit)
    model = model.to(torch.bfloat16)
    before = bits(model)
    with edited("memit", model, tokenizer, FACTS, statistics=statistics, **SETTINGS["memit"]) as edit:
        got = matrices(edit)
    assert bits(model) == before
    for layer in LAYERS:
        a, b = got[layer].ravel(), wanted[layer].ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.5  # the solver's own rounding


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"name": "mend"}, BuildError, "unknown method 'mend': choose one of memit, alphaedit, rect, pmet, rome, ft"),
        ({"facts": []}, BuildError, "memit was given no facts"),
        ({"batch": 0}, BuildError, "batch is 0"),
        ({"name": "rome", "batch": 2}, BuildError, "rome knows no batches"),
        ({"name": "ft", "batch": 2}, BuildError, "ft knows no batches"),
        ({"solve_on": "moon"}, BuildError, "solve_on is 'moon': it must be one of edited, base"),
        ({"given": np.zeros((2, 64), np.float32)}, BuildError, "2 residuals are given for 5 facts"),
        ({"name": "pmet", "given": np.zeros((5, 64), np.float32)}, BuildError, "pmet solves its residuals itself"),
        ({"keep": 0.4}, BuildError, "memit has no setting 'keep': it has layers, steps"),
        ({"c0_weight": 0}, BuildError, "c0_weight of memit is 0: it must be above 0"),
        ({"c0_weight": "15000"}, BuildError, "c0_weight of memit is '15000': it must be a number"),
        ({"weight_decay": -1.0}, BuildError, "weight_decay of memit is -1.0: it must not be negative"),
        ({"steps": 0}, BuildError, "steps of memit is 0: it must be a whole number"),
        ({"name": "rect", "keep": 1.5}, BuildError, "keep of rect is 1.5: it is a share"),
        (
            {"name": "pmet", "optimizer": "sampled"},
            BuildError,
            "optimizer of pmet is 'sampled': it must be one of adam",
        ),
        ({"optimizer": "sgd"}, BuildError, "optimizer of memit is 'sgd': it must be one of adam, sampled"),
        ({"name": "rome", "layers": [1, 2]}, BuildError, "rome edits one layer, not 1, 2"),
        ({"layers": []}, BuildError, "memit needs at least one layer"),
        ({"layers": [1, 9]}, ModelError, "layer 9 does not exist"),
        ({}, BuildError, r"no key statistics of layer 0,1 of this model.*`neuraldb statistics"),
    ],
)
def test_bad_calls_change_nothing(call: dict[str, Any], error: type[Exception], message: str, tmp_path: Any) -> None:
    model, tokenizer = tiny("llama")
    before = bits(model)
    given = {"name": "memit", "facts": FACTS, "statistics": tmp_path / "c0", "cache": tmp_path / "cache", **call}
    with pytest.raises(error, match=message), edited(model=model, tokenizer=tokenizer, **given):
        pass
    assert bits(model) == before and not list(tmp_path.iterdir())


def test_a_norm_behind_the_ffn_is_refused_by_those_that_spread_layer_outputs(take: Take) -> None:
    model, tokenizer = tiny("gemma2")
    statistics = take(model, tokenizer, LAYERS)
    before = bits(model)
    with pytest.raises(BuildError, match="model.layers.2 does not add its FFN's output.*use pmet, rome or ft"):
        with edited("memit", model, tokenizer, FACTS, statistics=statistics, **SETTINGS["memit"]):
            pass
    with edited("pmet", model, tokenizer, FACTS, statistics=statistics, **SETTINGS["pmet"]) as edit:
        assert edit.delta(2).any()
    assert bits(model) == before


def test_a_compiled_model_is_edited_under_its_wrapper(take: Take) -> None:
    model, tokenizer = tiny("llama")
    statistics = take(model, tokenizer, LAYERS)

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = model

    with edited("memit", Compiled(), tokenizer, FACTS, statistics=statistics, **SETTINGS["memit"]) as edit:
        assert edit.delta(1).any()


def test_romes_scale_at_position_0_is_that_of_the_prefixed_rows() -> None:
    from neuraldb_faiss.research.baselines.rome import _norm_ratio

    model, tokenizer = tiny("llama")
    editor, site = Editor.new(model, tokenizer, layer=1, keys="paper"), find_site(model, 1)
    fact = Fact("The", "{} language is", "French")  # a single token, and the first
    behind = [plain.read(model, tokenizer, site, f"{x}. {fact.text}", len(x) + 5) for x in editor.prefixes]
    ffn, layer = (np.linalg.norm(np.mean([row[place] for row in behind], axis=0)) for place in (1, 2))
    assert _norm_ratio(editor, fact) == pytest.approx(ffn / layer, rel=1e-4)
    _, ffn_raw, layer_raw = plain.read(model, tokenizer, site, fact.text, 3)
    assert _norm_ratio(editor, fact) != pytest.approx(np.linalg.norm(ffn_raw) / np.linalg.norm(layer_raw), rel=0.01)
