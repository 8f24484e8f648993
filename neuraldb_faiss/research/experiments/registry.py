"""Experiments by name. A module has DEFAULTS (its settings beside `lab.COMMON`) and `run(lab) -> Result`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.registry import Registry, load

if TYPE_CHECKING:
    from neuraldb_faiss.research.experiments.lab import Lab, Result


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment: `name` as in `neuraldb experiment NAME`, `help` in one line, and `place`, its module."""

    name: str
    help: str
    place: str

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Its settings, with the values they have where nobody sets them."""
        defaults: Mapping[str, Any] = load(f"{self.place}:DEFAULTS")
        return defaults

    @property
    def run(self) -> Callable[[Lab], Result]:
        """What does it."""
        function: Callable[[Any], Any] = load(f"{self.place}:run")
        return function

    def draw(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
        """Plots of its rows as SVG, by name; None where its module has no `draw`, for its rows are figures."""
        function = getattr(import_module(self.place), "draw", None)
        return None if function is None else function(rows)


def drawn(name: str, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str] | None:
    """Plots of the rows of the experiment of this name; None where there is no such one."""
    kind = EXPERIMENTS.kinds.get(name)
    return None if kind is None else kind.draw(rows)


_HERE = "neuraldb_faiss.research.experiments"
EXPERIMENTS = Registry(
    "experiment",
    "neuraldb_faiss.experiments",
    (
        Experiment(
            "gate",
            "False fires in ordinary text against recall, with the subject guard and with the plain gate.",
            f"{_HERE}.gate",
        ),
        Experiment(
            "gate-variants",
            "The plain gate with keys of another layer, one or several keys a fact, centred or whitened cosines.",
            f"{_HERE}.gate_variants",
        ),
        Experiment(
            "bare-names",
            "Names of one word at a text's beginning, behind one word, in lists, questions and chats, and false fires.",
            f"{_HERE}.bare_names",
        ),
        Experiment(
            "many-facts",
            "Subjects with several facts: facts of one key solved together, against the plain gate "
            "with an entry a fact.",
            f"{_HERE}.many_facts",
        ),
        Experiment(
            "answers",
            "Facts asked as people ask, by residuals, in the context, by weight editors and by plain retrieval.",
            f"{_HERE}.answers",
        ),
        Experiment(
            "contexts",
            "Facts asked alone, behind long text, in the chat template and late in a conversation: "
            "cosines and answers.",
            f"{_HERE}.contexts",
        ),
        Experiment(
            "perplexity",
            "Perplexity of ordinary text with the facts attached, where a subject is named and where none is.",
            f"{_HERE}.perplexity",
        ),
        Experiment("table1", "Every method on the same facts: all metrics, with intervals.", f"{_HERE}.table1"),
        Experiment("budgets", "Quality and general ability against the number of facts.", f"{_HERE}.budgets"),
        Experiment("ablation-gamma", "The gate: quality against gamma, for each guard.", f"{_HERE}.ablation_gamma"),
        Experiment("ablation-layer", "The layer: quality against the one that is edited.", f"{_HERE}.ablation_layer"),
        Experiment(
            "ablation-residual",
            "How residuals are solved: quality, and what an edit does to its subject's other relations.",
            f"{_HERE}.ablation_residual",
        ),
        Experiment(
            "multilayer",
            "One layer against several: algorithm 1 (new), and MEMIT's spreading of one residual (old).",
            f"{_HERE}.multilayer",
        ),
        Experiment(
            "weights",
            "The weights a linear editor gives to every fact's residual, for edited, paraphrased and "
            "neighbour prompts.",
            f"{_HERE}.weights",
        ),
        Experiment(
            "overhead",
            "Time an attached database costs, per evaluated case and per generated token.",
            f"{_HERE}.overhead",
        ),
        Experiment(
            "scaling",
            "From 1,000 to 1,000,000 entries: false fires, cost of a lookup, opening, memory, merging.",
            f"{_HERE}.scaling",
        ),
    ),
    EvaluationError,
)
