"""What making a fact's residual costs: this build, against the reference way of one fact at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.research.benchmarks.timing import seconds_of
from neuraldb_faiss.solver.batch import Row, group_rows
from neuraldb_faiss.solver.editor import Editor


def bench_build(editor: Editor, facts: Sequence[Fact], *, repeats: int) -> dict[str, Any]:
    """Facts per second, keys and residuals together, against the residuals alone of the reference way: one fact at a
    time, its prompts whole in one padded batch, through all layers at every step. Both take turns.

    "residual_cosine_min" is the lowest cosine between the two ways' residuals: they must be the same.
    """
    editor = replace(editor, config=replace(editor.config, max_steps=0, end_factor=0.0, chat=False))  # equation 21
    distinct = list(dict(zip(editor.key_ids(facts), facts, strict=True)).values())
    made: dict[str, list[np.ndarray]] = {}

    def ours() -> None:
        editor.make_keys(distinct)
        made["ours"] = [one.residual for one in editor.make_residuals([[fact] for fact in distinct])]

    def reference() -> None:
        made["reference"] = [reference_residual(editor, fact) for fact in distinct]

    editor.make_residuals([[distinct[0]]])  # warm-up: the model's first passes are slow
    reference_residual(editor, distinct[0])
    pairs = [(seconds_of(ours), seconds_of(reference)) for _ in range(repeats)]
    ratios = sorted(slow / fast for fast, slow in pairs)
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1)) if a.any() or b.any() else 1.0
        for a, b in zip(made["ours"], made["reference"], strict=True)
    ]
    fast, slow = (median(one) for one in zip(*pairs, strict=True))
    return {
        "facts": len(distinct),
        "repeats": repeats,
        "facts_per_second": {"ours": round(len(distinct) / fast, 4), "reference": round(len(distinct) / slow, 4)},
        "seconds": {"ours": round(fast, 3), "reference": round(slow, 3)},
        "reference_to_ours_ratio": round(median(ratios), 3),
        "reference_to_ours_ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "residual_cosine_min": round(min(cosines), 6),
    }


def reference_residual(editor: Editor, fact: Fact) -> np.ndarray:
    """float32 [d2]: equation 21 for one fact, as the published code of MEMIT does it."""
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
            r = state["r"] = state["r"].requires_grad_()
            optimizer = torch.optim.Adam([r], lr=config.lr)
            for step in range(1, config.steps + 1):
                logits = model(input_ids=ids, use_cache=False).logits
                edited = _at_kl(logits, rows).log_softmax(-1)
                kl = (edited.exp() * (edited - base)).sum(-1).mean()
                loss = _nll(logits, rows) + config.kl_factor * kl + config.weight_decay * r.norm() / h_init**2
                if step == config.steps or float(loss.detach()) < config.stop_loss:
                    break
                (r.grad,) = torch.autograd.grad(loss, r)
                optimizer.step()
                with torch.no_grad():
                    r.mul_((config.clamp * h_init / r.norm()).clamp(max=1))
    finally:
        for hook in hooks:
            hook.remove()
    return r.detach().cpu().numpy()


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
