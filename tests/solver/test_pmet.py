"""PMET's residual: the fast solver equals the plain one, keeps the FFN's vector only, and ends by its own rule."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from helpers.reference_pmet import reference_pmet
from helpers.reference_residual import Reference
from helpers.tiny import save_tiny, tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.cli.commands.build import build as build_command
from neuraldb_faiss.errors import BuildError, ModelError
from neuraldb_faiss.models import find_attention, find_site
from neuraldb_faiss.models.sites import FFNSite
from neuraldb_faiss.solver import ResidualConfig, Solved, residuals, solve_residuals
from neuraldb_faiss.solver.forward.strategy import Ways
from neuraldb_faiss.solver.objectives import pmet
from neuraldb_faiss.solver.objectives.base import Evaluation
from neuraldb_faiss.solver.objectives.registry import REGISTRY

PREFIXES = (
    "The city of",
    "Therefore I think that Paris",
    "Because",
    "I was born in Spain",
    "You know Rome is",
)
CONFIG = ResidualConfig(steps=8, lr=0.2, weight_decay=0.5, clamp=0.75, kl_factor=1.0)

INSIDE = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
START = Fact("LeBron James", "{} plays the sport of", "football and tennis")
ONE_TOKEN = Fact("The", "{} language is", "French")  # a single token at position 0, without BOS
TWINS = (
    Fact("Marie Curie", "The city {} was born in is", "Berlin"),
    Fact("Marie Curie", "The city {} knows as the capital is", "Madrid"),
)
GROUPS = [[INSIDE], [START], [ONE_TOKEN], list(TWINS)]


def by_reference(model: Any, tokenizer: Any, site: FFNSite, group: list[Fact], config: ResidualConfig) -> Reference:
    facts = [(fact.subject, fact.text, fact.target) for fact in group]
    attention = find_attention(model, site).module
    settings = dataclasses.asdict(config)
    for name in ("kl_prompts", "max_steps", "end_factor", "optimizer"):  # PMET's reference has none of them
        del settings[name]
    return reference_pmet(model, tokenizer, site.module, attention, facts, PREFIXES, **settings)


def assert_equal(solved: Solved, wanted: Reference) -> None:
    got = torch.from_numpy(solved.residual)
    if wanted.steps == 1:  # stopped where it began
        assert not got.any() and not wanted.residual.any()
    else:
        assert torch.cosine_similarity(got, wanted.residual, dim=0) >= 0.999
        assert float(got.norm()) == pytest.approx(float(wanted.residual.norm()), rel=1e-2)
    assert abs(solved.loss - wanted.loss) <= 1e-3 * max(1.0, abs(wanted.loss))
    assert solved.steps == wanted.steps
    assert [fact.nll for fact in solved.facts] == pytest.approx(wanted.nll, abs=2e-3)


@pytest.mark.parametrize("tokenizer_kind", ["bytelevel", "metaspace"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_batched_solver_equals_the_plain_one(kind: str, tokenizer_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residuals, "CPU_TOKENS", 4096)  # all in one pass
    model, tokenizer = tiny(kind, tokenizer_kind)
    site = find_site(model, 1)
    # Some groups leave the batch early, some stay to the end.
    first = by_reference(model, tokenizer, site, GROUPS[0], dataclasses.replace(CONFIG, steps=5))
    config = dataclasses.replace(CONFIG, stop_loss=first.loss * 1.01)
    wanted = [by_reference(model, tokenizer, site, group, config) for group in GROUPS]
    assert len({reference.steps for reference in wanted}) > 1
    solved = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, config, kind="pmet")
    for got, reference in zip(solved, wanted, strict=True):
        assert_equal(got, reference)


@pytest.mark.parametrize("layer", [0, 3])
def test_first_and_last_layer(layer: int) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, layer)
    fact = Fact("Marie Curie", "I think that {}", "speaks French")
    (solved,) = solve_residuals(model, tokenizer, site, [[fact]], PREFIXES, CONFIG, kind="pmet")
    assert_equal(solved, by_reference(model, tokenizer, site, [fact], CONFIG))


@pytest.mark.parametrize("way", ["packed ffn", "ffn", "full"])
def test_every_way_to_run_the_model_gives_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("phi")
    site = find_site(model, 1)
    monkeypatch.setattr(Ways, "fastest", lambda *_: way)
    solved = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, CONFIG, kind="pmet")
    for got, group in zip(solved, GROUPS, strict=True):
        assert_equal(got, by_reference(model, tokenizer, site, group, CONFIG))


def test_the_fast_pass_runs_the_layer_from_its_attention_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 2)
    calls = [0, 0, 0, 0]
    monkeypatch.setattr(Ways, "fastest", lambda *_: "ffn")
    for number, block in enumerate(model.model.layers):
        q_proj = block.self_attn.q_proj

        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        q_proj.register_forward_hook(count)
    solve_residuals(model, tokenizer, site, [[INSIDE]], PREFIXES, CONFIG, kind="pmet")
    # Up to the site's attention: the prefix and the recording, for the batch and once more for the outcomes.
    assert calls[:3] == [4, 4, 4] and calls[3] == 2 + CONFIG.steps + 1


def test_the_attentions_vector_takes_part_and_is_not_kept() -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    memit, both = (
        solve_residuals(model, tokenizer, site, [[INSIDE]], PREFIXES, CONFIG, kind=kind)[0]
        for kind in ("memit", "pmet")
    )
    cosine = torch.cosine_similarity(torch.from_numpy(memit.residual), torch.from_numpy(both.residual), dim=0)
    assert 0.1 < float(cosine) < 0.99
    # The outcome is what the hook will make of it: NLL with only the FFN's vector in place.
    encoded = tokenizer(f"{INSIDE.text} {INSIDE.target}", return_offsets_mapping=True)
    ids, offsets = torch.tensor(encoded["input_ids"]), encoded["offset_mapping"]
    last = max(i for i, (a, b) in enumerate(offsets) if a < INSIDE.subject_span[1] <= b)
    first = next(i for i, (_, b) in enumerate(offsets) if b > len(INSIDE.text))

    def add(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, last] += torch.from_numpy(both.residual)
        return output

    handle = site.module.register_forward_hook(add)
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0, first - 1 : -1]
    handle.remove()
    nll = float(torch.nn.functional.cross_entropy(logits, ids[first:]))
    assert both.facts[0].nll == pytest.approx(nll, abs=1e-3)


def test_the_rule_of_the_early_end() -> None:
    hit = torch.tensor([True, True, False, False])
    kl = torch.tensor([0.01, 0.011, 0.0, 1.0])
    now = Evaluation(loss=kl, stop=kl, kl=kl, hit=hit)
    assert pmet.may_end(now).tolist() == [True, False, False, False]
    torch.testing.assert_close(pmet.next_nll_scale(now), torch.tensor([0.1, 0.1, 1.0, 1.0]))


def test_a_run_ends_early_when_the_fact_is_said() -> None:
    """Long before the loss is small: with a bound loose enough, the NLL's weight falls and the run ends."""
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    fact = Fact("Marie Curie", "I think that {}", "was")
    config = dataclasses.replace(CONFIG, steps=60, clamp=20.0, kl_factor=0.01, stop_loss=0.0, weight_decay=0.0)
    wanted = by_reference(model, tokenizer, site, [fact], config)
    (solved,) = solve_residuals(model, tokenizer, site, [[fact]], PREFIXES, config, kind="pmet")
    assert solved.steps == wanted.steps
    assert solved.loss == pytest.approx(wanted.loss, abs=0.02)


def test_the_model_is_left_as_it_was() -> None:
    model, tokenizer = tiny("gpt2")
    weights = {name: p.clone() for name, p in model.named_parameters()}
    solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG, kind="pmet")
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in model.named_parameters())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_float32_residuals(dtype: torch.dtype) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    (wanted,) = solve_residuals(model, tokenizer, site, [[START]], PREFIXES, CONFIG, kind="pmet")
    model = model.to(dtype)
    (solved,) = solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG, kind="pmet")
    assert solved.residual.dtype == np.float32
    a, b = torch.from_numpy(solved.residual), torch.from_numpy(wanted.residual)
    assert torch.cosine_similarity(a, b, dim=0) > 0.8


def test_a_nan_names_the_fact() -> None:
    model, tokenizer = tiny("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(BuildError, match="LeBron James.*not finite"):
        solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG, kind="pmet")


def test_a_layer_without_attention_is_refused() -> None:
    model, _tokenizer = tiny("llama")
    del model.model.layers[1].self_attn.o_proj
    with pytest.raises(ModelError, match=r"model\.layers\.1 .*no attention .*self_attn\.o_proj.*--residual memit"):
        find_attention(model, find_site(model, 1))


def test_defaults_are_the_references_on_top_of_the_models() -> None:
    memit, pmets = (REGISTRY[kind].load().defaults(tiny("gptj")[0]) for kind in ("memit", "pmet"))
    assert (pmets.steps, pmets.lr, pmets.kl_factor) == (30, 0.2, 1.0)
    kept = ("layer", "weight_decay", "clamp")
    assert [getattr(pmets, name) for name in kept] == [getattr(memit, name) for name in kept]


def test_a_database_holds_one_kind(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    db = build([INSIDE, START], model, tokenizer, tmp_path / "db", residual="pmet", steps=3)
    assert db.info()["residual"] == "pmet"
    db.add([TWINS[0]], model, tokenizer)
    assert {fact.residual for fact in db.facts()} == {"pmet"} and len(db) == 3
    assert db.verify(deep=True) == []
    with db.attach(model, tokenizer) as handle, torch.no_grad():
        model(**tokenizer(INSIDE.text, return_tensors="pt"))
        assert {fire.fact_ids for fire in handle.trace()} >= {(INSIDE.id,)}


def test_on_the_command_line(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"subject": "Eiffel Tower", "prompt": "The {} is in", "target": "Rome"}\n')
    line = [str(facts), "--model", str(folder), "--out", str(tmp_path / "db"), "--residual", "pmet", "--steps", "2"]
    done = CliRunner().invoke(build_command, line, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with NeuralDB.open(tmp_path / "db") as db:
        settings = db.settings
        assert settings["residual"] == "pmet"
        assert (settings["config"]["steps"], settings["config"]["lr"], settings["config"]["kl_factor"]) == (2, 0.2, 1.0)
