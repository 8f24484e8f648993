"""Residuals: what must be added to the FFN's output at a subject for the model to say the new object.

Facts that share a key are one group and get one residual. Groups are independent of each other; they run
together in batches because a model computes many rows at little more than the price of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.models.memory import in_parts, places_with_gradients
from neuraldb_faiss.models.sites import FFNSite, input_device, unwrap
from neuraldb_faiss.solver.batch import Batch, Row, prefix_tokens
from neuraldb_faiss.solver.forward.base import Forward
from neuraldb_faiss.solver.forward.packed import Heads
from neuraldb_faiss.solver.forward.strategy import Ways, is_packed
from neuraldb_faiss.solver.objectives.base import Objective, Step
from neuraldb_faiss.solver.objectives.registry import DEFAULT, REGISTRY
from neuraldb_faiss.solver.optimizer import Adam, gradient_scale, project
from neuraldb_faiss.solver.outcome import Solved, end_nll, kept_alone, told
from neuraldb_faiss.solver.reporting import tell_solved
from neuraldb_faiss.solver.sampled import GUESSED_CONTEXTS, solve_sampled
from neuraldb_faiss.solver.target_end import continuing

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

# Suffix places in one pass, where memory allows: on a CPU more gain nothing, a GPU they fill.
CPU_TOKENS = 512
GPU_TOKENS = 4096
PASS_COST = 0.125


def solve_residuals(
    model: Any,
    tokenizer: Any,
    site: FFNSite,
    groups: Sequence[Sequence[Fact]],
    prefixes: Sequence[str],
    config: ResidualConfig,
    *,
    kind: str = DEFAULT,
) -> list[Solved]:
    """One residual for every group of facts that share a key, in the groups' order.

    Minimises, for each group, the mean over all its rows (each fact's prompt, raw and behind each prefix) of the NLL
    per target token, plus end_factor times the NLL of the last word's end (of any token behind the target but one that
    continues the word), plus kl_factor * KL(edited || base) at the subject's last token of "{subject} is a" (and at the
    ends of config.kl_prompts: the mean of all), plus weight_decay *
    ||r|| / ||h_init||^2, with Adam from zeros and ||r|| <= clamp * ||h_init|| after each step (equation 21 with the
    reference code's settings). A group stops once the loss, with its worst fact's NLL in the place of the mean, is
    below stop_loss, and after config.steps once every fact is said (see `ResidualConfig`); if they never are, the
    vector with the lowest such loss from there on is taken.
    That is the optimizer "adam"; "sampled" takes fewer and cheaper steps to the same objective: see `sampled`.
    That is `kind` "memit"; "pmet" adds a second vector, bounds both otherwise, and may stop earlier; "answer" adds the
    vector at the last token of what asks, and solves it on other texts: see `objectives`.

    The model may be of any dtype; residuals and losses are float32. Weights are never changed. Groups
    are split into passes by length, of as many places as the free memory holds (`places_with_gradients`); a pass that
    does not fit all the same is halved. Raises BuildError where a group has no facts, its loss is not finite, or the
    model has no gradient, and ModelError where the objective needs what the model does not have (PMET an attention).
    """
    return Solver(model, tokenizer, site, config, kind).solve(groups, prefixes)


@dataclass(frozen=True, slots=True)
class Solver:
    """`solve_residuals` with these settings, for one set of groups after the other."""

    model: Any
    tokenizer: Any
    site: FFNSite
    config: ResidualConfig
    kind: str = DEFAULT

    def solve(
        self, groups: Sequence[Sequence[Fact]], prefixes: Sequence[str], guesses: np.ndarray | None = None
    ) -> list[Solved]:
        """`solve_residuals`; the optimizer "sampled" begins at `guesses`, float32 [groups, d2], if there are any.

        Then the prompts behind the first `GUESSED_CONTEXTS` prefixes are all that the loss is the mean of.
        """
        model, tokenizer, site, config = self.model, self.tokenizer, self.site, self.config
        sampled = config.optimizer == "sampled"
        if sampled and guesses is not None:
            prefixes = prefixes[:GUESSED_CONTEXTS]
        if any(not group for group in groups):
            raise BuildError("cannot solve a residual for a group without facts: leave empty groups out")
        if config.steps < 1:
            raise BuildError(f"steps must be at least 1, not {config.steps}: the loss is never evaluated otherwise")
        if not groups:
            return []
        model = unwrap(model)
        if any(p.is_inference() for p in model.parameters()):
            raise BuildError(
                "the model was loaded under torch.inference_mode, so nothing can be solved with it: load it outside"
            )
        objective = REGISTRY[self.kind].load()
        attention = objective.second_site(model, site)
        fill = CPU_TOKENS if input_device(model).type == "cpu" else GPU_TOKENS
        max_tokens = places_with_gradients(model, site, fill)
        rows = [tuple(objective.rows(model, tokenizer, g, group, prefixes, config)) for g, group in enumerate(groups)]
        solved: dict[int, Solved] = {}
        with torch.inference_mode(False), torch.enable_grad(), frozen(model):
            ways = Ways(model, site, attention, Heads(model, prefix_tokens(tokenizer, prefixes)))
            way = ways.fastest(Batch((tuple(row for row in rows[0] if row.context <= 1),)), config.clamp)
            if len(groups) == 1:  # no two rows begin alike: to read what they begin with first is one pass more
                ways = replace(ways, heads=Heads(model, ()))

            def solve(members: Sequence[int]) -> list[Solved | None]:
                batch, start = Batch(tuple(rows[g] for g in members)), partial(ways.start, way)
                if not sampled:
                    return _solve_batch(start, batch, config, site, objective, tokenizer)
                first = None if guesses is None else torch.from_numpy(guesses[list(members)])
                return solve_sampled(start, batch, config, site, objective, tokenizer, first)

            # What passes with a gradient have: of the rows behind prefixes one a fact, where they take turns.
            passed = [tuple(row for row in mine if not (sampled and row.context > 1)) for mine in rows]
            batches = _split(passed, max_tokens, is_packed(way))
            for members, results in in_parts(batches, lambda members: _places(passed, members, is_packed(way)), solve):
                for g, result in zip(members, results, strict=True):
                    if result is None:
                        names = ", ".join(f"{fact.id} ({fact.subject!r})" for fact in groups[g][:3])
                        raise BuildError(
                            f"the loss of fact {names} is not finite at layer {site.layer}: "
                            "load the model in another dtype (--dtype float32) or leave the fact out"
                        )
                    solved[g] = result
                tell_solved(sum(len(groups[g]) for g in members))
        return [solved[g] for g in range(len(groups))]


def _places(rows: Sequence[tuple[Row, ...]], groups: Sequence[int], packed: bool) -> int:
    """Of one pass with these groups."""
    if packed:
        return sum(len(row.ids) - row.last for g in groups for row in rows[g])
    return sum(len(rows[g]) for g in groups) * max(_width(rows[g]) for g in groups)


def _width(group: Sequence[Row]) -> int:
    return max(len(row.ids) - row.last for row in group)


def _split(rows: Sequence[tuple[Row, ...]], max_tokens: int, packed: bool) -> list[list[int]]:
    """Groups of like length together, each batch within max_tokens (or one group that alone exceeds it).

    A pass costs its places and, besides, about as much as PASS_COST of max_tokens; padding beyond that is
    dearer than another pass. Packed rows have none.
    """
    width = [_width(group) for group in rows]
    batches: list[list[int]] = []
    for g in sorted(range(len(rows)), key=lambda g: (width[g], g)):
        joined = [*batches[-1], g] if batches else []
        padding = 0
        if joined and not packed:
            padding = _places(rows, joined, packed) - sum(len(rows[one]) * width[one] for one in joined)
        if not joined or _places(rows, joined, packed) > max_tokens or padding > PASS_COST * max_tokens:
            batches.append([g])
        else:
            batches[-1].append(g)
    return batches


def _solve_batch(
    start: Callable[[Batch], Forward],
    batch: Batch,
    config: ResidualConfig,
    site: FFNSite,
    objective: Objective,
    tokenizer: Any,
) -> list[Solved | None]:
    """Run one batch to its end; None stands for a group whose loss is not finite."""
    forward, whole = start(batch), batch
    h_norm = forward.h_norm
    device = h_norm.device
    r = torch.zeros(*h_norm.shape, site.d2, device=device)
    adam = Adam(r, config.lr)
    picks = batch.picks(device)
    results: list[Solved | None] = [None] * len(batch.groups)
    best: dict[int, tuple[tuple[bool, float], Solved]] = {}
    active = list(range(len(batch.groups)))
    nll_scale = torch.ones(len(batch.groups), device=device)
    base: Tensor | None = None
    most = max(config.steps, config.max_steps)
    for step in range(1, most + 1):
        r.requires_grad_(True)
        logits = forward.logits(r)
        if base is None:
            base = picks.split(logits)[1].detach().float().log_softmax(1)
            continues = continuing(tokenizer, logits.shape[1]).to(device)
        known = logits[: len(logits) - len(picks.end_fact)]
        ends_nll = end_nll(logits, picks, continues, config.end_factor)
        now = objective.evaluate(Step(known, base, r, h_norm, picks, nll_scale, ends_nll), config)
        stop = now.stop.tolist()
        end = objective.ends(now, config)
        nll_scale = objective.next_nll_scale(now)
        ended = [ends or step == most or not math.isfinite(stop[i]) for i, ends in enumerate(end.tolist())]
        late = step >= config.steps
        facts = told(logits, picks, continues, len(active)) if late or any(ended) else []
        said = [all(fact.took for fact in mine) for mine in facts]
        ended = [ends or (late and said[i]) for i, ends in enumerate(ended)]
        for i, ends in enumerate(ended):
            if (ends or late) and math.isfinite(stop[i]):
                rank = not said[i], stop[i]
                if active[i] not in best or rank < best[active[i]][0]:  # later is not always better
                    residual = r[i, 0].detach().cpu().numpy().astype(np.float32, copy=True)  # the FFN's vector
                    best[active[i]] = rank, Solved(residual, float(now.loss[i].detach()), step, facts[i])
            if ends:
                results[active[i]] = best[active[i]][1] if active[i] in best else None
        kept = [i for i, ends in enumerate(ended) if not ends]
        if not kept:
            break
        scale = gradient_scale(logits)
        (grad,) = torch.autograd.grad(now.loss[kept].sum() * scale, r)
        r = r.detach()
        if len(kept) < len(active):
            index = torch.tensor(kept, device=device)
            r, grad, h_norm = r[index], grad[index], h_norm[index]
            base = base[torch.isin(picks.group_of_kl, index)]
            nll_scale = nll_scale[index]
            adam.keep(index)
            forward = forward.keep(kept)
            batch = batch.keep(kept)
            picks = batch.picks(device)
            active = [active[i] for i in kept]
        r = project(adam.update(r, grad / scale), config.clamp * h_norm)
    return results if h_norm.shape[1] == 1 else kept_alone(results, start(whole), whole, continues)
