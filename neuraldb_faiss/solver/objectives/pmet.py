"""PMET's residual (arXiv 2308.08742): a second vector at the attention's output takes part, and is not kept.

One vector is added to the FFN's output and one to the attention's output of the same layer, both at the
subject's last token, and both are optimised. The attention's takes up what no FFN should learn; only the FFN's
is the residual. Each is bounded, and decays, by the length of its own sublayer's output.

The rules here are the reference code's: a run may end before its loss is small, and a fact that is said
already weighs less against what must not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuraldb_faiss.solver.optimizer import Evaluation

_SAID_SCALE = 0.1
_KL_END = 0.01


def next_nll_scale(now: Evaluation) -> Tensor:
    """float32 [G]: the factor on the next step's NLL term, 0.1 where all rows say the target already."""
    return torch.where(now.hit, _SAID_SCALE, 1.0)


def may_end(now: Evaluation) -> Tensor:
    """bool [G]: all rows say the target, and what the subject is has hardly changed (KL <= 0.01)."""
    return now.hit & (now.kl <= _KL_END)
