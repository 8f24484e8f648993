"""Residuals: what must be added to the FFN's output at a subject for the model to say the new object (eq.
21).

Facts that share a key are one group and get one residual. Groups are independent of each other; they run
together in batches because a model computes many rows at little more than the price of one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.editing.forwards import FastForward, Forward, FullForward, agrees, input_device
from neuraldb_faiss.editing.objective import Adam, Evaluation, ResidualConfig, evaluate, project
from neuraldb_faiss.editing.passes import frozen
from neuraldb_faiss.editing.rows import Batch, Row, group_rows
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models.sites import FFNSite, unwrap

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

logger = logging.getLogger(__name__)

# Suffix places (rows times columns) in one pass. On a CPU more of them gain nothing; on a GPU they fill it,
# within the memory that the activations of an 8B model take.
CPU_TOKENS = 512
GPU_TOKENS = 4096
PASS_COST = 0.125

# float16 gradients underflow below 6e-8; the loss is scaled up by this before, and the gradient down after.
_HALF_SCALE = 1024.0

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class FactOutcome:
    """One fact under the final residual, on its raw prompt.

    `nll` is the mean negative log-likelihood per target token (nats), `probability` exp(-nll), `took`
    whether every target token is the arg-max.
    """

    nll: float
    probability: float
    took: bool


@dataclass(frozen=True, slots=True)
class Solved:
    """A group's residual (float32 [d2]), final loss, number of loss evaluations, and its facts' outcomes."""

    residual: np.ndarray
    loss: float
    steps: int
    facts: tuple[FactOutcome, ...]


def solve_residuals(
    model: Any,
    tokenizer: Any,
    site: FFNSite,
    groups: Sequence[Sequence[Fact]],
    prefixes: Sequence[str],
    config: ResidualConfig,
    *,
    max_tokens: int | None = None,
) -> list[Solved]:
    """One residual for every group of facts that share a key, in the groups' order.

    Minimises, for each group, the mean over all its rows (each fact's prompt, raw and behind each prefix)
    of the NLL per target token, plus kl_factor * KL(edited || base) at the subject's last token of
    "{subject} is a", plus weight_decay * ||r|| / ||h_init||^2, with Adam from zeros and ||r|| <= clamp *
    ||h_init|| after each step (equation 21 with the reference code's settings). A group stops once the
    loss, with its worst fact's NLL in the place of the mean, is below stop_loss.

    The model may be of any dtype; residuals and losses are float32. Weights are never changed. `max_tokens`
    bounds the places computed in one pass (memory); groups are split into passes by length. Raises
    BuildError where a group has no facts, or its loss is not finite.
    """
    if any(not group for group in groups):
        raise BuildError("cannot solve a residual for a group without facts: leave empty groups out")
    if config.steps < 1:
        raise BuildError(
            f"steps must be at least 1, not {config.steps}: the loss is never evaluated otherwise"
        )
    if not groups:
        return []
    model = unwrap(model)
    if max_tokens is None:
        max_tokens = CPU_TOKENS if input_device(model).type == "cpu" else GPU_TOKENS
    rows = [tuple(group_rows(tokenizer, g, group, prefixes)) for g, group in enumerate(groups)]
    solved: dict[int, Solved] = {}
    with frozen(model):
        mode = _proved_mode(model, site, Batch((rows[0],)), config)
        for members in _split(rows, max_tokens):
            batch = Batch(tuple(rows[g] for g in members))
            results = _solve_batch(_forward(model, site, batch, mode), batch, config, site)
            for g, result in zip(members, results, strict=True):
                if result is None:
                    names = ", ".join(f"{fact.id} ({fact.subject!r})" for fact in groups[g][:3])
                    raise BuildError(
                        f"the loss of fact {names} is not finite at layer {site.layer}: "
                        "load the model in another dtype (--dtype float32) or leave the fact out"
                    )
                solved[g] = result
    return [solved[g] for g in range(len(groups))]


def _split(rows: Sequence[tuple[Row, ...]], max_tokens: int) -> list[list[int]]:
    """Groups of like length together, each batch within max_tokens (or one group that alone exceeds it).

    A pass costs its places and, besides, about as much as PASS_COST of max_tokens; padding beyond that is
    dearer than another pass.
    """
    width = [max(len(row.ids) - row.last for row in group) for group in rows]
    batches: list[list[int]] = []
    count = tokens = 0
    for g in sorted(range(len(rows)), key=lambda g: (width[g], g)):
        places = (count + len(rows[g])) * width[g]
        padding = places - tokens - len(rows[g]) * width[g]
        if not batches or places > max_tokens or padding > PASS_COST * max_tokens:
            batches.append([])
            count = tokens = 0
        batches[-1].append(g)
        count += len(rows[g])
        tokens += len(rows[g]) * width[g]
    return batches


def _forward(model: Any, site: FFNSite, batch: Batch, mode: str) -> Forward:
    if mode == "full":
        return FullForward(model, site, batch)
    blocks = model.get_submodule(site.block_name.rpartition(".")[0])
    return FastForward(model, site, batch, blocks, mode)


def _proved_mode(model: Any, site: FFNSite, sample: Batch, config: ResidualConfig) -> str:
    """The fastest way to run this model that agrees with the plain one on `sample` and a random residual."""
    full = FullForward(model, site, sample)
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(1, site.d2, generator=generator).to(input_device(model))
    r *= 0.5 * config.clamp * full.h_norm[:, None] / r.norm(dim=1, keepdim=True)
    reason = "its results differ from a plain forward pass"
    for mode in ("block", "ffn"):
        try:
            fast = _forward(model, site, sample, mode)
            if isinstance(fast, FastForward) and agrees(fast, full, r, model.dtype):
                return mode
        except Exception as error:  # whatever an unknown architecture raises, the plain pass still serves it
            reason = f"{type(error).__name__}: {error}"
    seen = _warned.setdefault(model, set())
    if site.module_name not in seen:
        seen.add(site.module_name)
        logger.warning(
            "residuals at %s are solved with whole forward passes, several times slower: "
            "the fast pass does not serve this model (%s)",
            site.module_name,
            reason,
        )
    return "full"


def _solve_batch(
    forward: Forward, batch: Batch, config: ResidualConfig, site: FFNSite
) -> list[Solved | None]:
    """Run one batch to its end; None stands for a group whose loss is not finite."""
    device = forward.h_norm.device
    h_norm = forward.h_norm
    r = torch.zeros(len(batch.groups), site.d2, device=device)
    adam = Adam(r, config.lr)
    picks = batch.picks(device)
    results: list[Solved | None] = [None] * len(batch.groups)
    active = list(range(len(batch.groups)))
    base: Tensor | None = None
    for step in range(1, config.steps + 1):
        r.requires_grad_(True)
        logits = forward.logits(r)
        if base is None:
            base = logits[len(picks.target) :].detach().float().log_softmax(1)
        now = evaluate(logits, base, r, h_norm, picks, config)
        stop = now.stop.tolist()
        last = step == config.steps
        done = [
            i for i, value in enumerate(stop) if last or not math.isfinite(value) or value < config.stop_loss
        ]
        for i in done:
            if math.isfinite(stop[i]):
                results[active[i]] = _result(r, now, i, step, picks.group_of_fact)
        ended = set(done)
        kept = [i for i in range(len(active)) if i not in ended]
        if not kept:
            break
        scale = _HALF_SCALE if logits.dtype == torch.float16 else 1.0
        (grad,) = torch.autograd.grad(now.loss[kept].sum() * scale, r)
        r = r.detach()
        if len(kept) < len(active):
            index = torch.tensor(kept, device=device)
            r, grad, h_norm, base = r[index], grad[index], h_norm[index], base[index]
            adam.keep(index)
            forward.keep(kept)
            batch = batch.keep(kept)
            picks = batch.picks(device)
            active = [active[i] for i in kept]
        r = project(adam.update(r, grad / scale), config.clamp * h_norm)
    return results


def _result(r: Tensor, now: Evaluation, group: int, step: int, group_of_fact: Tensor) -> Solved:
    mine = group_of_fact == group
    outcomes = tuple(
        FactOutcome(nll, math.exp(-nll), took)
        for nll, took in zip(now.raw_nll[mine].tolist(), now.took[mine].tolist(), strict=True)
    )
    residual = r[group].detach().cpu().numpy().astype(np.float32, copy=True)
    return Solved(residual, float(now.loss[group].detach()), step, outcomes)
