"""What making a fact's residual costs: this build, against the reference way of one fact at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.defaults import edit_defaults
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.research.benchmarks.timing import seconds_of
from neuraldb_faiss.solver.batch import Row, group_rows
from neuraldb_faiss.solver.editor import Editor

_STOP_LOSS = 0.05


def bench_build(editor: Editor, facts: Sequence[Fact], *, repeats: int) -> dict[str, Any]:
    """Facts per second, keys and residuals together, against the residuals alone of the reference way: one fact at a
    time, its prompts whole in one padded batch, through all layers at every step of Adam. Both take turns.

    "processor_reference_to_ours_ratio" compares the processor time of this process: what else runs on the machine
    hardly counts there. "loss" is the mean of equation 21 at the residuals, as whole passes over all prompts find it.
    """
    editor = replace(editor, config=replace(editor.config, max_steps=0, end_factor=0.0))  # equation 21
    distinct = list(dict(zip(editor.key_ids(facts), facts, strict=True)).values())
    made: dict[str, list[np.ndarray]] = {}

    def ours() -> None:
        editor.make_keys(distinct)
        made["ours"] = [one.residual for one in editor.make_residuals([[fact] for fact in distinct])]

    def reference() -> None:
        made["reference"] = [reference_residual(editor, fact) for fact in distinct]

    editor.make_residuals([[distinct[0]]])  # warm-up: the model's first passes are slow
    reference_residual(editor, distinct[0])
    pairs = [(_seconds(ours), _seconds(reference)) for _ in range(repeats)]
    wall, processor = (sorted(slow[kind] / fast[kind] for fast, slow in pairs) for kind in (0, 1))
    fast, slow = (median(one[0] for one in way) for way in zip(*pairs, strict=True))
    loss = {
        way: float(np.mean([loss_of(editor, fact, r) for fact, r in zip(distinct, residuals, strict=True)]))
        for way, residuals in made.items()
    }
    return {
        "facts": len(distinct),
        "repeats": repeats,
        "facts_per_second": {"ours": round(len(distinct) / fast, 4), "reference": round(len(distinct) / slow, 4)},
        "seconds": {"ours": round(fast, 3), "reference": round(slow, 3)},
        "reference_to_ours_ratio": round(median(wall), 3),
        "reference_to_ours_ratio_range": [round(wall[0], 3), round(wall[-1], 3)],
        "processor_reference_to_ours_ratio": round(median(processor), 3),
        "loss": {way: round(value, 4) for way, value in loss.items()},
    }


def _seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Of wall time and of processor time."""
    start = time.process_time()
    wall = seconds_of(action)
    return wall, time.process_time() - start


def reference_residual(editor: Editor, fact: Fact) -> np.ndarray:
    """float32 [d2]: equation 21 for one fact, as the published code of MEMIT does it, with its steps of Adam."""
    defaults = edit_defaults(editor.model, editor.ffn_module)[0]
    with _plain(editor, fact) as (loss_of, h_init):
        r = torch.zeros(editor.site.d2, device=h_init.device, requires_grad=True)
        optimizer = torch.optim.Adam([r], lr=defaults.lr)
        for step in range(1, defaults.steps + 1):
            loss = loss_of(r)
            if step == defaults.steps or float(loss.detach()) < _STOP_LOSS:
                break
            (r.grad,) = torch.autograd.grad(loss, r)
            optimizer.step()
            with torch.no_grad():
                r.mul_((editor.config.clamp * h_init / r.norm()).clamp(max=1))
    return r.detach().cpu().numpy()


def loss_of(editor: Editor, fact: Fact, residual: np.ndarray) -> float:
    """Equation 21 at this residual."""
    with _plain(editor, fact) as (loss, h_init), torch.no_grad():
        return float(loss(torch.from_numpy(residual).to(h_init.device)))


@contextmanager
def _plain(editor: Editor, fact: Fact) -> Iterator[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]:
    """Equation 21 of a residual [d2], all rows whole in one padded batch through all layers; and ||h_init||."""
    model, site, config = editor.model, editor.site, editor.config
    rows = group_rows(editor.tokenizer, 0, [fact], editor.prefixes, config.kl_prompts)
    device = next(model.parameters()).device
    ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long, device=device)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
    at = torch.tensor([row.last for row in rows], device=device)
    every = torch.arange(len(rows), device=device)
    state: dict[str, torch.Tensor] = {"r": torch.zeros(site.d2, device=device)}

    def add(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        flat = output.clone().view(len(rows), -1, output.shape[-1])
        flat[every, at] = flat[every, at] + state["r"].to(output.dtype)
        return flat.view_as(output)

    def keep(_module: Any, _args: Any, output: Any) -> None:
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        state["hidden"] = hidden.detach()[every, at].float()

    hooks = [site.module.register_forward_hook(add), site.block.register_forward_hook(keep)]
    try:
        with torch.enable_grad(), frozen(model):
            with torch.no_grad():
                base = _at_kl(model(input_ids=ids, use_cache=False).logits, rows).log_softmax(-1)
                h = state["hidden"]
                h_init = (h[0] if rows[0].last > 0 else h[1 : 1 + len(editor.prefixes)].mean(0)).norm()

            def loss(r: torch.Tensor) -> torch.Tensor:
                state["r"] = r
                logits = model(input_ids=ids, use_cache=False).logits
                edited = _at_kl(logits, rows).log_softmax(-1)
                kl = (edited.exp() * (edited - base)).sum(-1).mean()
                return _nll(logits, rows) + config.kl_factor * kl + config.weight_decay * r.norm() / h_init**2

            yield loss, h_init
    finally:
        for hook in hooks:
            hook.remove()


def _nll(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Mean over the rows with a target of its mean negative log-likelihood a token."""
    found = []
    for number, row in enumerate(rows):
        if row.targets:
            end = len(row.ids) - row.end
            places = logits[number, end - len(row.targets) : end].float()
            found.append(F.cross_entropy(places, torch.tensor(row.targets, device=logits.device)))
    return torch.stack(found).mean()


def _at_kl(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    return torch.stack([logits[number, place].float() for number, row in enumerate(rows) for place in row.kl])
