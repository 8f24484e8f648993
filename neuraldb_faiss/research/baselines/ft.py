"""FT: fine-tune one layer's down-projection on the facts, no entry moving by more than a bound (FT-L of ROME)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from neuraldb_faiss.edits.pipeline import Progress, Report
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import FFNSite, encode_pairs
from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.interventions import frozen, gathered_head
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.research.baselines.settings import Ft
from neuraldb_faiss.research.baselines.weights import Weights


def write(
    model: Any,
    tokenizer: Any,
    site: FFNSite,
    weights: Weights,
    facts: Sequence[Fact],
    settings: Ft,
    report: Report | None,
) -> list[float]:
    """Minimise the mean NLL per target token of the facts' raw prompts by Adam, W kept within W0 ± bound after every
    step; the mean loss of each round over the facts.

    A batch with a loss below `stop_loss` makes no step, and a round with a mean below it is the last. The reference
    code reads all of a target's tokens off the prompt's last token; here each is predicted from those before it.
    """
    model = unwrap(model)
    rows = encode_pairs(tokenizer, *zip(*[(fact.text, fact.target, fact.separator) for fact in facts], strict=True))
    start = weights.current(site.layer).detach().clone()
    matrix = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([matrix], lr=settings.lr)
    batches = [rows[i : i + settings.batch_size] for i in range(0, len(rows), settings.batch_size)]
    means: list[float] = []
    with frozen(model):
        for step in range(1, settings.steps + 1):
            total = 0.0
            for batch in batches:
                loss = _loss(model, site, matrix, batch)
                total += float(loss.detach()) * len(batch)
                if not bool(loss.isfinite()):
                    raise BuildError(f"ft's loss is not finite in round {step}: lower lr, or use --dtype float32")
                if float(loss.detach()) < settings.stop_loss:
                    continue
                (matrix.grad,) = torch.autograd.grad(loss, matrix)
                adam.step()
                with torch.no_grad():
                    matrix.clamp_(start - settings.bound, start + settings.bound)
            means.append(total / len(rows))
            ends = means[-1] < settings.stop_loss or step == settings.steps
            if report is not None:
                done = len(rows) if ends else len(rows) * step // settings.steps
                report(Progress(done, len(rows), 0, means[-1]))
            if ends:
                break
    weights.put(site.layer, matrix.detach())
    return means


def _loss(model: Any, site: FFNSite, matrix: Tensor, batch: Sequence[tuple[tuple[int, ...], int]]) -> Tensor:
    """Mean over the facts of the mean NLL per target token, with `matrix` [d2, d1] as the site's weight."""
    ids, mask = pad([row[:-1] for row, _ in batch], left=False, device=input_device(model))
    places = [
        (number, at - 1, row[at], 1 / (len(row) - first) / len(batch))
        for number, (row, first) in enumerate(batch)
        for at in range(first, len(row))
    ]
    rows, columns, wanted, shares = (torch.tensor(values, device=ids.device) for values in zip(*places, strict=True))
    kept = matrix.T if isinstance(site.module, Conv1D) else matrix
    weight = {f"{site.module_name}.weight": kept.to(next(site.module.parameters()).dtype)}
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    with gathered_head(model, rows, columns) as read:
        logits = read(functional_call(model, weight, (), inputs)).float()
    nll = F.cross_entropy(logits, wanted.to(logits.device), reduction="none")
    return (nll * shares.to(nll.device)).sum()
