"""Equation 21 written down plainly, one fact (or one group of facts) at a time: what the fast solver must
equal.

Whole prompts, one row at a time, all layers, all steps, full logits; torch's own Adam; a hook adds r at the
down-projection's output at the subject's last token. Tokens are found here anew, from the tokenizer's
offsets. It shares no code with the package and is meant to be read beside the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Reference:
    """The residual float32 [d2], last loss, number of loss evaluations, each fact's NLL on its raw prompt."""

    residual: Tensor
    loss: float
    steps: int
    nll: list[float]


def _ids(tokenizer: Any, text: str, subject_end: int) -> tuple[list[int], int, list[tuple[int, int]]]:
    """Token ids, the index of the token with the subject's last character, and all offsets."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    last = max(i for i, (a, b) in enumerate(offsets) if a < subject_end <= b)
    return encoded["input_ids"], last, offsets


def reference_residual(
    model: Any,
    tokenizer: Any,
    module: nn.Module,
    block: nn.Module,
    facts: Sequence[tuple[str, str, str]],
    prefixes: Sequence[str],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    clamp: float,
    kl_factor: float,
    stop_loss: float = 0.05,
    kl_prompts: Sequence[str] = (),
    max_steps: int = 0,
    end_factor: float = 0.0,
    optimizer: str = "adam",
) -> Reference:
    """Solve for `facts`, given as (subject, text with the subject in it, target); `block` holds `module`."""
    subject = facts[0][0]
    rows = []  # (fact, ids, the subject's last token, target ids, raw, number of its prefix or 0)
    for number, (_, text, target) in enumerate(facts):
        for context, prefix in enumerate(["", *(f"{x}. " for x in prefixes)]):
            whole = f"{prefix}{text} {target}"
            start = len(prefix) + text.index(subject)
            ids, last, offsets = _ids(tokenizer, whole, start + len(subject))
            first = next(i for i, (_, end) in enumerate(offsets) if end > len(prefix) + len(text))
            rows.append((number, ids, last, ids[first:], not prefix, context))
    ids, last, _ = _ids(tokenizer, f"{subject} is a", len(subject))
    about = [(ids, last, last)]  # ids, subject's last token, the token where the KL is taken
    for template in kl_prompts:
        ids, last, _ = _ids(tokenizer, template.format(subject), template.index("{}") + len(subject))
        about.append((ids, last, len(ids) - 1))

    # Tokens of a byte-level or a metaspace vocabulary that go on with a word.
    texts = [tokenizer.convert_ids_to_tokens(i) or "" for i in range(model.config.get_text_config().vocab_size)]
    begins = [chr(int(text[3:5], 16)) if text.startswith("<0x") else text[:1] for text in texts]
    goes_on = torch.tensor([(x.isascii() and (x.isalnum() or x == "_")) or "\xc3" <= x <= "\xdb" for x in begins])

    state: dict[str, Any] = {"r": None, "at": 0, "hidden": None}

    def add(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        extra = torch.zeros_like(output)
        extra.view(-1, extra.shape[-1])[state["at"]] = 1.0  # OPT's FFN works on [tokens, width]
        return output + extra * state["r"].to(output.dtype)

    def look(_: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        state["hidden"] = hidden[0, state["at"]].detach().float()

    def logits(ids: list[int], at: int, r: Tensor) -> Tensor:
        state["at"], state["r"] = at, r
        tokens = torch.tensor([ids], device=r.device)
        return model(input_ids=tokens, use_cache=False).logits[0].float()

    handles = [module.register_forward_hook(add), block.register_forward_hook(look)]
    try:
        r = torch.zeros(model.config.get_text_config().hidden_size, device=model.device, requires_grad=True)
        with torch.no_grad():
            hidden = []
            for _, tokens, last, _, raw, _ in rows:
                logits(tokens, last, r)
                hidden.append((raw, state["hidden"]))
            others = [one for raw, one in hidden if not raw]
            h_init = hidden[0][1] if rows[0][2] > 0 else torch.stack(others).mean(0)
            base = [logits(ids, last, r)[at].log_softmax(0) for ids, last, at in about]
        h = float(h_init.norm())

        def losses(rows: Sequence[Any], ends: str = "all") -> tuple[Tensor, float, bool, list[float], float]:
            """Over these rows, and the ends of all, "raw" ones or "none": the loss, that with the worst fact's NLL,
            whether all facts are said, each one's NLL on its raw prompt, the largest NLL of a fact's ends."""
            row_nll: list[Tensor] = []
            row_end: list[tuple[int, Tensor]] = []
            said = True
            for f, ids, last, wanted, raw, _ in rows:
                out, behind = logits(ids, last, r)[-len(wanted) - 1 :].split([len(wanted), 1])
                said = said and (not raw or (out.argmax(1).tolist() == wanted and not goes_on[behind.argmax()]))
                if ends == "all" or (ends == "raw" and raw):
                    row_end.append((f, -behind[0].softmax(0)[~goes_on].sum().log()))
                row_nll.append(F.cross_entropy(out, torch.tensor(wanted, device=r.device)))
            edited = [logits(ids, last, r)[at].log_softmax(0) for ids, last, at in about]
            kl = torch.stack([(e.exp() * (e - b)).sum() for e, b in zip(edited, base, strict=True)]).mean()
            rest = kl_factor * kl + weight_decay * r.norm() / h**2
            if row_end:
                rest = rest + end_factor * torch.stack([end for _, end in row_end]).mean()
            of_fact = [
                torch.stack([n for n, row in zip(row_nll, rows, strict=True) if row[0] == f]).mean()
                for f in range(len(facts))
            ]
            worst = float((max(of_fact) + rest).detach())
            alone = [float(n.detach()) for n, row in zip(row_nll, rows, strict=True) if row[4]]
            end = max(
                float(torch.stack([end for one, end in row_end if one == f] or [torch.zeros(())]).mean().detach())
                for f in range(len(facts))
            )
            return torch.stack(row_nll).mean() + rest, worst, said, alone, end

        def limited() -> None:
            with torch.no_grad():
                if r.norm() > clamp * h:
                    r.mul_(clamp * h / r.norm())

        adam = torch.optim.Adam([r], lr=lr)
        mean = torch.zeros_like(r)
        found: list[tuple[tuple[bool, float], Reference]] = []
        most = max(steps, max_steps)
        if optimizer == "adam":
            for step in range(1, most + 1):
                loss, worst, said, alone, _ = losses(rows)
                if step >= steps or worst < stop_loss:
                    solved = Reference(r.detach().cpu().clone(), float(loss.detach()), step, alone)
                    found.append(((not said, worst), solved))
                    if said or step == most or worst < stop_loss:
                        break
                (r.grad,) = torch.autograd.grad(loss, r)
                adam.step()
                limited()
            return min(found, key=lambda one: one[0])[1]
        ends = any(len(row[3]) > 1 for row in rows)  # whether they count in steps, on raw rows
        earliest = 4
        for step in range(1, most + 1):
            turn = step - 1
            mine = [row for row in rows if row[5] in (0, turn % len(prefixes) + 1)]
            loss, near, *_ = losses(mine, "raw" if ends else "none")
            (grad,) = torch.autograd.grad(loss, r)
            mean = mean / 2 + grad / grad.norm() / 2
            with torch.no_grad():
                r -= lr * (0.75**turn + 1 / 12) * h * mean / mean.norm()
            limited()
            forced = step in (steps, most) or (step > steps and step % 8 == 0)
            if forced or (step >= earliest and near < 0.6 * stop_loss):
                loss, worst, said, alone, end = losses(rows)
                solved = Reference(r.detach().cpu().clone(), float(loss.detach()), step, alone)
                found.append(((not said, worst), solved))
                if (said and step >= steps) or step == most or worst < stop_loss:
                    break
                earliest, ends = step + 2, ends or end_factor * end > 0.01
        return min(found, key=lambda one: one[0])[1]
    finally:
        for handle in handles:
            handle.remove()
