"""MEMIT, AlphaEdit, RECT and PMET: one target a fact at the last layer, reached by a share of it in each layer.

With z the value that the model should have at the subject's last token (base value plus residual), layer by layer:
the keys are read with the earlier layers' edits in place, what is still missing to z is divided by the layers left
(PMET: by the square root of that), and the method's kernel turns it into the layer's Δ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import FFNSite
from neuraldb_faiss.models.interventions import on_output
from neuraldb_faiss.research.baselines import kernels
from neuraldb_faiss.research.baselines.kernels import Kernel, NullSpace
from neuraldb_faiss.research.baselines.reading import outputs_at
from neuraldb_faiss.research.baselines.settings import AlphaEdit, Memit, Pmet, Rect, Solving
from neuraldb_faiss.research.baselines.statistics import Moment
from neuraldb_faiss.research.baselines.weights import Weights
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.keys import compute_keys


class Spread:
    """MEMIT (arXiv 2210.07229). `editor` stands at the last of `sites`."""

    def __init__(
        self,
        editor: Editor,
        sites: Sequence[FFNSite],
        weights: Weights,
        moments: Mapping[int, Moment],
        settings: Solving,
    ) -> None:
        self.editor, self.sites, self.weights, self.settings = editor, list(sites), weights, settings
        self.moments = moments
        self._target_module = self.editor.site.block

    def kernel(self, layer: int, keys: Tensor) -> Kernel:
        """The layer's kernel of `keys` [m, d1]."""
        assert isinstance(self.settings, Memit)
        return kernels.memit(keys, self._c0(layer), self.settings.c0_weight)

    def share(self, left: int) -> float:
        """What a layer takes of the missing part with `left` layers to go, itself counted."""
        return 1 / left

    def values(self, facts: Sequence[Fact]) -> Tensor:
        """What targets are compared with, on the model as it is: float32 [len(facts), d2]."""
        places = [(fact.text, fact.subject_span) for fact in facts]
        return outputs_at(self.editor.model, self.editor.tokenizer, self._target_module, places)

    def write(self, facts: Sequence[Fact], targets: Tensor) -> None:
        """Write one batch: `targets` [len(facts), d2] is z of each fact."""
        for number, site in enumerate(self.sites):
            keys = self.keys(site, facts)
            missing = (targets - self.values(facts)).double() * self.share(len(self.sites) - number)
            self.weights.add(site.layer, self.kernel(site.layer, keys).delta(missing))

    def keys(self, site: FFNSite, facts: Sequence[Fact]) -> Tensor:
        """Keys (eq. 20, the reference codes' one average a fact) on the model as it is: float32 [len(facts), d1]."""
        editor = self.editor
        rows = compute_keys(editor.model, editor.tokenizer, site, facts, editor.prefixes, "paper")
        return torch.from_numpy(rows.keys)

    def _c0(self, layer: int) -> Tensor:
        # Read anew each time: those of all layers of an 8B model would take 8 GB.
        return self.moments[layer].on(self.weights.device(layer))

    def check(self, fact: Fact) -> None:
        """Raises BuildError where a norm or a scale follows the FFN, so that no share of z can be handed to W_out."""
        site = self.editor.site
        push = torch.randn(site.d2, generator=torch.Generator().manual_seed(0))
        push *= self.values([fact]).norm() / push.norm()
        before = self.values([fact])
        with on_output(site.module, lambda output: output + push.to(output)):
            after = self.values([fact])
        if (after - before - push).norm() > 0.1 * push.norm():
            raise BuildError(
                f"{site.block_name} does not add its FFN's output to the residual stream as it is (a norm follows), "
                "so MEMIT's spreading over layers does not apply to this model: use pmet, rome or ft"
            )


class AlphaEditSpread(Spread):
    """AlphaEdit (arXiv 2410.02355): projected onto what C0 hardly uses, and sparing the keys of earlier batches."""

    def __init__(
        self,
        editor: Editor,
        sites: Sequence[FFNSite],
        weights: Weights,
        moments: Mapping[int, Moment],
        settings: AlphaEdit,
    ) -> None:
        super().__init__(editor, sites, weights, moments, settings)
        self.spaces = {
            site.layer: NullSpace(self._c0(site.layer), settings.null_threshold, settings.l2) for site in sites
        }

    def kernel(self, layer: int, keys: Tensor) -> Kernel:
        return self.spaces[layer].kernel(keys)

    def write(self, facts: Sequence[Fact], targets: Tensor) -> None:
        super().write(facts, targets)
        for site in self.sites:  # keys of the finished edit, as in the reference code
            self.spaces[site.layer].remember(self.keys(site, facts))


class RectSpread(Spread):
    """RECT (arXiv 2401.04700): MEMIT, and at the end of a batch each layer keeps a part of its Δ."""

    def write(self, facts: Sequence[Fact], targets: Tensor) -> None:
        assert isinstance(self.settings, Rect)
        before = {site.layer: self.weights.current(site.layer).clone() for site in self.sites}
        super().write(facts, targets)
        for layer, weight in before.items():
            delta = self.weights.current(layer) - weight
            self.weights.put(layer, weight + kernels.rect(delta, weight, self.settings.keep))


class PmetSpread(Spread):
    """PMET (arXiv 2308.08742): targets are FFN outputs, and shares go by the square root."""

    def __init__(
        self,
        editor: Editor,
        sites: Sequence[FFNSite],
        weights: Weights,
        moments: Mapping[int, Moment],
        settings: Pmet,
    ) -> None:
        super().__init__(editor, sites, weights, moments, settings)
        self._target_module = self.editor.site.module

    def share(self, left: int) -> float:
        return 1 / math.sqrt(left)

    def check(self, fact: Fact) -> None:
        """Whatever follows the FFN: its own output is the target."""
