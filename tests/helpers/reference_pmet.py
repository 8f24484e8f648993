"""PMET's residual written down plainly, one fact (or one group of facts) at a time: what the fast solver must
equal.

Two vectors from zero, one at the attention's output projection and one at the FFN's, at the subject's last token
of every row. Whole prompts, one row at a time, all layers, full logits, torch's own Adam. It shares no code with
the package and is meant to be read beside the method's description.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.reference_residual import Reference, _ids


def reference_pmet(
    model: Any,
    tokenizer: Any,
    ffn: nn.Module,
    attention: nn.Module,
    facts: Sequence[tuple[str, str, str]],
    prefixes: Sequence[str],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    clamp: float,
    kl_factor: float,
    stop_loss: float = 0.05,
) -> Reference:
    """Solve for `facts`, given as (subject, text with the subject in it, target); `nll` is of the FFN's vector
    alone, `loss` of both."""
    subject = facts[0][0]
    rows = []  # (fact, ids without the target's last token, subject's last token, target ids)
    for number, (_, text, target) in enumerate(facts):
        for prefix in ["", *(f"{x}. " for x in prefixes)]:
            whole = f"{prefix}{text} {target}"
            start = len(prefix) + text.index(subject)
            ids, last, offsets = _ids(tokenizer, whole, start + len(subject))
            first = next(i for i, (_, end) in enumerate(offsets) if end > len(prefix) + len(text))
            rows.append((number, ids[:-1], last, ids[first:]))
    about, about_last, _ = _ids(tokenizer, f"{subject} is a", len(subject))

    modules = {"ffn": ffn, "attention": attention}
    vector = {name: torch.zeros(model.config.get_text_config().hidden_size, requires_grad=True) for name in modules}
    added = dict(vector)  # what the hooks add
    clean: dict[str, Tensor] = {}  # what the sublayers gave before that
    place = 0

    def hook(name: str) -> Any:
        def add(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            flat = output.reshape(-1, output.shape[-1])
            clean[name] = flat[place].detach()
            at = (torch.arange(len(flat)) == place)[:, None]
            return (flat + at * added[name]).reshape(output.shape)

        return add

    def logits(ids: list[int], at: int) -> Tensor:
        nonlocal place
        place = at
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    def nll_of(row: tuple[int, list[int], int, list[int]]) -> tuple[Tensor, bool]:
        _, ids, last, target = row
        out = logits(ids, last)[-len(target) :]
        return F.cross_entropy(out, torch.tensor(target)), out.argmax(1).tolist() == target

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        init: dict[str, list[Tensor]] = {name: [] for name in modules}
        with torch.no_grad():
            for _, ids, last, _ in rows[: 1 + len(prefixes)]:
                logits(ids, last)
                for name in modules:
                    init[name].append(clean[name])
            base = logits(about, about_last)[about_last].log_softmax(0)
        norm = {
            name: (found[0] if rows[0][2] > 0 or not prefixes else torch.stack(found[1:]).mean(0)).norm()
            for name, found in init.items()
        }
        optimizer = torch.optim.Adam(list(vector.values()), lr=lr)
        nll_factor = 1.0
        for step in range(1, steps + 1):
            told = [nll_of(row) for row in rows]
            edited = logits(about, about_last)[about_last].log_softmax(0)
            kl = (edited.exp() * (edited - base)).sum()
            decay = sum(vector[name].norm() / norm[name] ** 2 for name in modules)
            rest = kl_factor * kl + weight_decay * decay
            loss = nll_factor * torch.stack([n for n, _ in told]).mean() + rest
            of_fact = [
                torch.stack([n for (n, _), row in zip(told, rows, strict=True) if row[0] == f]).mean()
                for f in range(len(facts))
            ]
            said = all(hit for _, hit in told)
            small = float((nll_factor * max(of_fact) + rest).detach()) < stop_loss
            if small or step == steps or (said and float(kl.detach()) <= 0.01):
                break
            nll_factor = 0.1 if said else 1.0
            gradients = torch.autograd.grad(loss, list(vector.values()))
            for one, gradient in zip(vector.values(), gradients, strict=True):
                one.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for name, one in vector.items():
                    if one.norm() > clamp * norm[name]:
                        one.mul_(clamp * norm[name] / one.norm())
        added["attention"] = torch.zeros_like(vector["attention"])
        with torch.no_grad():
            raw = [float(nll_of(row)[0]) for row in rows[:: 1 + len(prefixes)]]
        return Reference(vector["ffn"].detach(), float(loss.detach()), step, raw)
    finally:
        for handle in handles:
            handle.remove()
