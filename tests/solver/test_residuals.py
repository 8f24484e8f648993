"""The fast solver equals equation 21 written down plainly, and does what it promises around it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch

from helpers.reference_residual import Reference, reference_residual
from helpers.tiny import tiny
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import FFNSite, find_site
from neuraldb_faiss.solver import ResidualConfig, Solved, residuals, solve_residuals
from neuraldb_faiss.solver.batch import Batch, group_rows
from neuraldb_faiss.solver.forward.packed import Heads
from neuraldb_faiss.solver.forward.strategy import Ways
from neuraldb_faiss.solver.optimizer import Adam, project
from neuraldb_faiss.solver.target_end import continuing

PREFIXES = (
    "The city of",
    "Therefore I think that Paris",
    "Because",
    "I was born in Spain",
    "You know Rome is",
)
CONFIG = ResidualConfig(steps=8, lr=0.5, weight_decay=0.5, clamp=0.75, kl_factor=0.0625)

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
    settings = dataclasses.asdict(config)
    return reference_residual(model, tokenizer, site.module, site.block, facts, PREFIXES, **settings)


def assert_equal(solved: Solved, wanted: Reference) -> None:
    got = torch.from_numpy(solved.residual)
    assert solved.residual.dtype == np.float32
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
    first = by_reference(model, tokenizer, site, GROUPS[0], dataclasses.replace(CONFIG, steps=5, end_factor=0.25))
    config = dataclasses.replace(CONFIG, end_factor=0.25, stop_loss=first.loss * 1.01)
    wanted = [by_reference(model, tokenizer, site, group, config) for group in GROUPS]
    assert len({reference.steps for reference in wanted}) > 1
    solved = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, config)
    for got, reference in zip(solved, wanted, strict=True):
        assert_equal(got, reference)


@pytest.mark.parametrize("way", ["packed block", "packed ffn", "block", "ffn", "full"])
def test_sampled_steps_are_the_plain_ones(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One context a step in turn, without ends where they hardly count; all rows once a step's loss is near the end."""
    monkeypatch.setattr(residuals, "CPU_TOKENS", 4096)  # all in one pass
    model, tokenizer = tiny("phi")
    site = find_site(model, 1)
    monkeypatch.setattr(Ways, "fastest", lambda *_: way)
    config = dataclasses.replace(
        CONFIG, optimizer="sampled", lr=0.3, clamp=3.0, steps=17, max_steps=19, stop_loss=1.2, end_factor=0.25
    )
    groups = [*GROUPS, *([Fact("Marie Curie", "I think that {}", target)] for target in ("was", "of"))]
    wanted = [by_reference(model, tokenizer, site, group, config) for group in groups]
    steps = [reference.steps for reference in wanted]
    assert 4 <= steps[4] < steps[5] < 17 and 19 in steps  # one token each; looked at when they are near the end
    for got, reference in zip(solve_residuals(model, tokenizer, site, groups, PREFIXES, config), wanted, strict=True):
        assert_equal(got, reference)


@pytest.mark.parametrize("way", ["packed block", "packed ffn", "block", "ffn", "full"])
def test_rows_without_ends_are_those_that_never_had_them(way: str) -> None:
    model, tokenizer = tiny("phi")
    site = find_site(model, 1)
    facts = [INSIDE, Fact("Marie Curie", "{} was born in", "1867"), START]
    batch = Batch(tuple(tuple(group_rows(tokenizer, g, [f], PREFIXES, ends=True)) for g, f in enumerate(facts)))
    rows = batch.sample(1)
    endless = {i for i in rows if batch.rows[i].end and batch.rows[i].group != 2}
    bare = batch.select(rows, endless)
    assert {row.end for row in batch.rows if row.fact >= 0} >= {1, 2}
    assert [row.end for row in bare.rows if row.group != 2] == [0] * sum(row.group != 2 for row in bare.rows)
    assert all(row.end for row in bare.rows if row.group == 2 and row.fact >= 0)
    plain = Batch(tuple(tuple(group_rows(tokenizer, g, [f], PREFIXES)) for g, f in enumerate(facts)))
    for one, other in zip(bare.groups[0][1:], plain.select(rows).groups[0][1:], strict=True):
        assert one == other  # behind a prefix
    with residuals.frozen(model), torch.no_grad():
        ways = Ways(model, site, None, Heads(model, ()))
        r = torch.randn(3, 1, site.d2, generator=torch.Generator().manual_seed(0))
        part = ways.start(way, batch).select(rows, endless)
        torch.testing.assert_close(part.logits(r), ways.start(way, bare).logits(r), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_other_relations_say_is_kept(kind: str) -> None:
    model, tokenizer = tiny(kind)
    site = find_site(model, 1)
    prompts = ("{} was born in the city of", "The capital of {} is", "{} plays the sport of")  # the last is START's own
    config = dataclasses.replace(CONFIG, steps=4, kl_factor=0.5, kl_prompts=prompts)
    solved = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, config)
    for got, group in zip(solved, GROUPS, strict=True):
        own = dataclasses.replace(config, kl_prompts=prompts[:2]) if group == [START] else config
        assert_equal(got, by_reference(model, tokenizer, site, group, own))


@pytest.mark.parametrize("layer", [0, 3])
def test_first_and_last_layer(layer: int) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, layer)
    # Above the last layer nothing carries a residual on to later tokens: the target must follow the subject.
    fact = Fact("Marie Curie", "I think that {}", "speaks French")
    (solved,) = solve_residuals(model, tokenizer, site, [[fact]], PREFIXES, CONFIG)
    assert_equal(solved, by_reference(model, tokenizer, site, [fact], CONFIG))


@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "gpt_neox", "qwen3", "opt", "bloom", "mpt", "falcon", "phi"])
def test_other_architectures_are_right(kind: str) -> None:
    model, tokenizer = tiny(kind)
    site = find_site(model, 1)
    groups = [[INSIDE], list(TWINS)]
    config = dataclasses.replace(CONFIG, steps=4)
    solved = solve_residuals(model, tokenizer, site, groups, PREFIXES, config)
    for got, group in zip(solved, groups, strict=True):
        assert_equal(got, by_reference(model, tokenizer, site, group, config))


@pytest.mark.parametrize("way", ["packed block", "packed ffn", "block", "ffn", "full"])
def test_every_way_to_run_the_model_gives_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("phi")
    site = find_site(model, 1)
    monkeypatch.setattr(Ways, "fastest", lambda *_: way)
    solved = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, CONFIG)
    for got, group in zip(solved, GROUPS, strict=True):
        assert_equal(got, by_reference(model, tokenizer, site, group, CONFIG))


def proved(kind: str) -> str:
    model, tokenizer = tiny(kind)
    batch = Batch((tuple(group_rows(tokenizer, 0, [INSIDE], PREFIXES)),))
    with residuals.frozen(model):
        return Ways(model, find_site(model, 1), None, Heads(model, ())).prove(batch, CONFIG.clamp)


def test_the_proof_tells_architectures_apart() -> None:
    assert {kind: proved(kind) for kind in ("llama", "gpt2", "gptj", "gemma2", "olmo2")} == {
        "llama": "packed block",
        "gpt2": "packed block",
        "gptj": "block",  # its attention cannot be exchanged
        "gemma2": "ffn",  # its attention has soft caps; both normalise what the FFN gives
        "olmo2": "packed ffn",
    }


def test_a_model_is_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    proved: list[str] = []
    prove = Ways.prove

    def counted(self: Ways, *rest: Any) -> str:
        proved.append(self.site.module_name)
        return prove(self, *rest)

    monkeypatch.setattr(Ways, "prove", counted)
    config = dataclasses.replace(CONFIG, steps=2)
    for layer in (1, 1, 2):
        solve_residuals(model, tokenizer, find_site(model, layer), [[START]], PREFIXES, config)
    assert proved == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    other, _ = tiny("llama")
    solve_residuals(other, tokenizer, find_site(other, 1), [[START]], PREFIXES, config)
    assert len(proved) == 3


def test_a_model_the_fast_pass_breaks_on_is_solved_anyway(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    wanted = by_reference(model, tokenizer, site, [START], CONFIG)
    forward = model.model.forward

    def whole_only(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("position_ids") is not None:
            raise NotImplementedError("whole texts only")
        return forward(*args, **kwargs)

    model.model.forward = whole_only
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (solved,) = solve_residuals(model, tokenizer, site, [[START]], PREFIXES, CONFIG)
    assert_equal(solved, wanted)
    assert ["whole texts only" in record.getMessage() for record in caplog.records] == [True]


def test_batching_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    monkeypatch.setattr(residuals, "CPU_TOKENS", 4096)
    together = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, CONFIG)
    monkeypatch.setattr(residuals, "CPU_TOKENS", 1)
    alone = solve_residuals(model, tokenizer, site, GROUPS, PREFIXES, CONFIG)
    for a, b in zip(together, alone, strict=True):
        assert a.steps == b.steps
        np.testing.assert_allclose(a.residual, b.residual, atol=2e-3 * np.linalg.norm(b.residual))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_of_padding_alone_give_no_nan(attention: str) -> None:
    model, tokenizer = tiny("llama")
    model.set_attn_implementation(attention)
    site = find_site(model, 1)
    (solved,) = solve_residuals(model, tokenizer, site, [[ONE_TOKEN]], PREFIXES, CONFIG)
    assert np.isfinite(solved.residual).all() and np.linalg.norm(solved.residual) > 0
    assert_equal(solved, by_reference(model, tokenizer, site, [ONE_TOKEN], CONFIG))


def test_outcomes_agree_with_the_edited_model() -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    fact = Fact("Marie Curie", "I think that {}", "was")
    text = f"{fact.text} {fact.target}"
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    last = max(i for i, (a, b) in enumerate(offsets) if a < fact.subject_span[1] <= b)
    first = next(i for i, (_, b) in enumerate(offsets) if b > len(fact.text))
    ids = torch.tensor(encoded["input_ids"])
    target = ids[first:]
    goes_on = continuing(tokenizer, model.config.vocab_size)
    longer = []
    for end_factor in (0.0, 5.0):
        config = dataclasses.replace(CONFIG, steps=40, clamp=20.0, end_factor=end_factor)
        (solved,) = solve_residuals(model, tokenizer, site, [[fact]], PREFIXES, config)

        def add(_: Any, args: Any, output: torch.Tensor, solved: Solved = solved) -> torch.Tensor:
            output = output.clone()
            output[0, last] += torch.from_numpy(solved.residual)
            return output

        handle = site.module.register_forward_hook(add)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, first - 1 :]
        handle.remove()
        nll = float(torch.nn.functional.cross_entropy(logits[:-1], target))
        (outcome,) = solved.facts
        assert outcome.nll == pytest.approx(nll, abs=1e-3)
        assert outcome.probability == pytest.approx(np.exp(-nll), abs=1e-3)
        assert logits[:-1].argmax(1).tolist() == target.tolist()
        assert outcome.took == (not goes_on[logits[-1].argmax()])
        longer.append(float(logits[-1].softmax(0)[goes_on].sum()))
    assert longer[1] < longer[0]  # a random model hardly has a say in it


def test_the_model_is_left_as_it_was() -> None:
    model, tokenizer = tiny("gpt2")
    model.train()
    weights = {name: p.clone() for name, p in model.named_parameters()}
    next(model.parameters()).requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG)
    assert model.training and all(module.training for module in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in model.named_parameters())
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in module.__dict__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_float32_residuals(dtype: torch.dtype) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    (wanted,) = solve_residuals(model, tokenizer, site, [[START]], PREFIXES, CONFIG)
    model = model.to(dtype)
    (solved,) = solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG)
    assert solved.residual.dtype == np.float32
    assert solved.loss == pytest.approx(wanted.loss, abs=0.25)
    a, b = torch.from_numpy(solved.residual), torch.from_numpy(wanted.residual)
    assert torch.cosine_similarity(a, b, dim=0) > 0.8


def test_a_nan_names_the_fact() -> None:
    model, tokenizer = tiny("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(BuildError, match="LeBron James.*not finite"):
        solve_residuals(model, tokenizer, find_site(model, 1), [[START]], PREFIXES, CONFIG)


def test_nonsense_is_refused() -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    with pytest.raises(BuildError, match="without facts"):
        solve_residuals(model, tokenizer, site, [[START], []], PREFIXES, CONFIG)
    with pytest.raises(BuildError, match="steps must be at least 1"):
        solve_residuals(model, tokenizer, site, [[START]], PREFIXES, dataclasses.replace(CONFIG, steps=0))
    assert solve_residuals(model, tokenizer, site, [], PREFIXES, CONFIG) == []
    with pytest.raises(BuildError, match="'The is' must hold one {}"):
        dataclasses.replace(CONFIG, kl_prompts=("The is",))


def test_adam_is_torchs_and_rows_can_leave() -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(3, 5), torch.randn(6, 3, 5)
    theirs = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.Adam([row], lr=0.5) for row in theirs]
    ours, adam, rows = start.clone(), Adam(start, lr=0.5), [0, 1, 2]
    for step, grad in enumerate(grads):
        if step == 3:
            rows = [2, 0]
            ours = ours[rows]
            adam.keep(torch.tensor(rows))
        ours = adam.update(ours, grad[rows])
        for row in rows:
            theirs[row].grad = grad[row].clone()
            optimizers[row].step()
        torch.testing.assert_close(ours, torch.stack([theirs[row].detach() for row in rows]), rtol=1e-6, atol=1e-7)


def test_project_only_shortens() -> None:
    r = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(
        project(r, torch.tensor([1.0, 1.0, 1.0])), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    )


def test_groups_go_on_until_their_facts_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond `steps`: until every fact is, or to `max_steps`; as the plain solver does."""
    monkeypatch.setattr(residuals, "CPU_TOKENS", 4096)  # all in one pass
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    free = {"clamp": 20.0, "kl_factor": 0.0, "weight_decay": 0.0, "stop_loss": 0.0}
    config = dataclasses.replace(CONFIG, steps=3, max_steps=25, **free)
    groups = [*GROUPS, [Fact("Marie Curie", "I think that {}", "of")]]
    solved = solve_residuals(model, tokenizer, site, groups, PREFIXES, config)
    for got, group in zip(solved, groups, strict=True):
        assert_equal(got, by_reference(model, tokenizer, site, group, config))
        assert 3 <= got.steps <= 25 and (got.steps == 25 or all(fact.took for fact in got.facts))
    steps = {got.steps for got in solved}
    assert len(steps) > 1 and max(steps) > 3
    fewer = dataclasses.replace(config, max_steps=0)
    assert {got.steps for got in solve_residuals(model, tokenizer, site, groups, PREFIXES, fewer)} == {3}


@pytest.mark.slow
def test_the_demo_model_takes_a_real_fact(demo_model: Any) -> None:
    model, tokenizer = demo_model
    site = find_site(model, 3)
    config = dataclasses.replace(CONFIG, steps=20)
    (solved,) = solve_residuals(model, tokenizer, site, [[INSIDE]], PREFIXES, config)
    assert_equal(solved, by_reference(model, tokenizer, site, [INSIDE], config))
    assert solved.facts[0].took
