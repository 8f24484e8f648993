"""Interface of an objective: what residuals minimise, at which modules, with which settings, until when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from neuraldb_faiss.config import SAMPLED, ResidualConfig
from neuraldb_faiss.models import AttentionSite, EditDefaults, FFNSite, edit_defaults
from neuraldb_faiss.models.defaults import guessed_layer
from neuraldb_faiss.solver.batch import Picks, Row, group_rows

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact


@dataclass(frozen=True, slots=True)
class Step:
    """One evaluation of G groups, each with S vectors: the FFN's, and where there is a second site the attention's.

    Attributes:
        logits: [N + K, vocab] at `picks`, differentiable in `r`.
        base: float32 [K, vocab], the unedited log-probabilities at the KL places.
        r: float32 [G, S, d2], the vectors.
        h_norm: float32 [G, S], length of what each vector is added to.
        picks: the places whose logits these are.
        end_nll: float32 [F], differentiable in `r`: -log of the probability that the target's last word ends, the mean
            over the fact's rows; zeros where the settings do not ask for it.
        nll_scale: float32 [G], what `Objective.next_nll_scale` gave after the step before; ones at first.
    """

    logits: Tensor
    base: Tensor
    r: Tensor
    h_norm: Tensor
    picks: Picks
    nll_scale: Tensor
    end_nll: Tensor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses of G groups."""

    loss: Tensor  # float32 [G], differentiable
    stop: Tensor  # float32 [G]: the loss with the largest fact's NLL in place of the mean one
    kl: Tensor  # float32 [G]
    hit: Tensor  # bool [G]: every target token of every row is the arg-max


class Objective(ABC):
    """How the residuals of one kind are found; it holds no state."""

    solves = True  # False: residuals are zeros, and the model is not run for them
    # What the optimizer "sampled" takes unless the user says otherwise, in place of `defaults`.
    sampled: ClassVar[Mapping[str, float]] = SAMPLED
    unused: ClassVar[tuple[str, ...]] = ()  # settings that have no part in it

    def second_site(self, model: Any, site: FFNSite) -> AttentionSite | None:
        """Where a second vector is added that is optimised and not kept; None for none.

        Raises:
            ModelError: the model does not have what the objective needs. It is asked before anything slow.
        """
        return None

    def defaults(self, model: Any, ffn_module: str | None = None) -> EditDefaults:
        """Layer and settings for this model. Raises ModelError where nothing in it can be edited."""
        return edit_defaults(model, ffn_module)[0]

    def layer_hint(self, model: Any, ffn_module: str | None = None) -> str | None:
        """What to tell people who named no layer; None where the default one is known to do."""
        return guessed_layer(model, ffn_module)

    def rows(
        self, model: Any, tokenizer: Any, group: int, facts: Sequence[Fact], prefixes: Sequence[str],
        config: ResidualConfig,
    ) -> list[Row]:  # fmt: skip
        """The texts that a group's residual is solved on. Raises FactError where the tokenizer leaves no token for a
        target."""
        return group_rows(tokenizer, group, facts, prefixes, config.kl_prompts, config.end_factor > 0)

    @abstractmethod
    def evaluate(self, step: Step, config: ResidualConfig) -> Evaluation:
        """The losses now; `step.r` is moved along the gradient of their sum."""

    def ends(self, now: Evaluation, config: ResidualConfig) -> Tensor:
        """bool [G]: which groups are done before their steps are."""
        return now.stop < config.stop_loss

    def next_nll_scale(self, now: Evaluation) -> Tensor:
        """float32 [G]: the factor on the next step's NLL term."""
        return torch.ones_like(now.stop)
