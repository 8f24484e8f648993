"""MEMIT's residual (arXiv 2210.07229), which is equation 21: one vector, added to the FFN's output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.solver.objectives.base import Evaluation, Objective, Step


class Memit(Objective):
    """Mean NLL of the targets and of their ends, KL(edited || base) behind the subject, and weight decay."""

    def evaluate(self, step: Step, config: ResidualConfig) -> Evaluation:
        """Equation 21, plus `end_factor` times the NLL of the targets' ends. The weight decay is that of all S vectors.

        Everything is computed in float32.
        """
        picks, n_groups = step.picks, len(step.r)
        n, n_facts = len(picks.target), len(picks.group_of_fact)
        logits = step.logits.float()
        nll = F.cross_entropy(logits[:n], picks.target, reduction="none")
        fact_nll = nll.new_zeros(n_facts).index_add(0, picks.fact, nll * picks.share)
        mean_nll = group_mean(fact_nll, picks.group_of_fact, n_groups)
        edited = F.log_softmax(logits[n:], dim=1)
        kl = group_mean((edited.exp() * (edited - step.base)).sum(1), picks.group_of_kl, n_groups)
        decay = (step.r.norm(dim=2) / step.h_norm.square()).sum(1)
        rest = config.kl_factor * kl + config.weight_decay * decay
        if config.end_factor:
            rest = rest + config.end_factor * group_mean(step.end_nll, picks.group_of_fact, n_groups)
        with torch.no_grad():
            worst = fact_nll.new_full((n_groups,), float("-inf"))
            worst = worst.scatter_reduce(0, picks.group_of_fact, fact_nll, "amax")
            wrong = logits[:n].argmax(1) != picks.target
            missed = torch.bincount(picks.group_of_fact[picks.fact[wrong]], minlength=n_groups)
            stop = step.nll_scale * worst + rest
        return Evaluation(step.nll_scale * mean_nll + rest, stop, kl.detach(), missed == 0)


def group_mean(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """float32 [n_groups]: the mean of each group's `values` [n]; `group` int64 [n] names every group."""
    total = values.new_zeros(n_groups).index_add(0, group, values)
    return total / torch.bincount(group, minlength=n_groups)
