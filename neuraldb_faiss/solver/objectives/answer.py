"""Residuals for the place where an answer begins: one vector, in an upper layer, at the last token of what asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.models import EditDefaults
from neuraldb_faiss.models.sites import layer_count
from neuraldb_faiss.solver.answer_rows import answer_rows
from neuraldb_faiss.solver.batch import Row
from neuraldb_faiss.solver.objectives.base import Evaluation, Objective, Step
from neuraldb_faiss.solver.objectives.memit import group_mean

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

_HEIGHT = 2 / 3  # of the layers: below, chats follow less; above, the fact's own prompt (docs/results/answers-place)


class Answer(Objective):
    """Mean NLL of the answers in `answer_rows`. It needs no term that keeps the subject as it is: nothing is added
    where a text asks for something else."""

    sampled: ClassVar = {"steps": 32, "lr": 0.6, "stop_loss": 0.1}
    unused: ClassVar = ("weight_decay", "kl_factor", "kl_prompts", "end_factor")

    def defaults(self, model: Any, ffn_module: str | None = None) -> EditDefaults:
        layer = round(layer_count(model, ffn_module) * _HEIGHT)
        known = super().defaults(model, ffn_module)
        return replace(known, layer=layer, steps=32, weight_decay=0.0, clamp=1.2, kl_factor=0.0)

    def layer_hint(self, model: Any, ffn_module: str | None = None) -> str | None:
        return None

    def rows(
        self, model: Any, tokenizer: Any, group: int, facts: Sequence[Fact], prefixes: Sequence[str],
        config: ResidualConfig,
    ) -> list[Row]:  # fmt: skip
        return [
            row
            for number, fact in enumerate(facts)
            for row in answer_rows(model, tokenizer, group, number, fact, prefixes)
        ]

    def evaluate(self, step: Step, config: ResidualConfig) -> Evaluation:
        picks, n_groups = step.picks, len(step.r)
        logits = step.logits.float()
        nll = F.cross_entropy(logits, picks.target, reduction="none")
        fact_nll = nll.new_zeros(len(picks.group_of_fact)).index_add(0, picks.fact, nll * picks.share)
        with torch.no_grad():
            worst = fact_nll.new_full((n_groups,), float("-inf"))
            worst = worst.scatter_reduce(0, picks.group_of_fact, fact_nll, "amax")
            wrong = logits.argmax(1) != picks.target
            missed = torch.bincount(picks.group_of_fact[picks.fact[wrong]], minlength=n_groups)
        mean = group_mean(fact_nll, picks.group_of_fact, n_groups)
        return Evaluation(mean, worst, torch.zeros_like(worst), missed == 0)
