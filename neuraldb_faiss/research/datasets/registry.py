"""Datasets by name: what their files look like, and which metrics their cases can be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.registry import Registry, load

if TYPE_CHECKING:
    from neuraldb_faiss.facts import Fact
    from neuraldb_faiss.research.datasets.cases import Case

# (relation, object) -> texts about it
References = Mapping[tuple[str, str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset.

    Attributes:
        name: as in `--dataset NAME`.
        help: one line.
        title: as tables print it.
        format: of its records, one of `facts.FORMATS`.
        place: "module:function" that makes a `Case` of a `Fact` and the references; it raises FactError for a record
            without what the dataset's metrics need.
        has: what its cases have beside a prompt and a target, which decides their metrics (`Metric.needs`): "old" (the
            old object), "neighbours", "relations", "portability", "generation".
    """

    name: str
    help: str
    title: str
    format: str
    place: str
    has: frozenset[str]

    def make(self) -> Callable[[Fact, References], Case]:
        """Import the function at `place`."""
        made: Callable[[Any, References], Any] = load(self.place)
        return made


_HERE = "neuraldb_faiss.research.datasets"
DATASETS = Registry(
    "dataset",
    "neuraldb_faiss.datasets",
    (
        Dataset(
            "counterfact", "CounterFact, nested or flat records.", "CounterFact", "counterfact",
            f"{_HERE}.counterfact:case", frozenset({"old", "neighbours", "relations", "generation"}),
        ),
        Dataset(
            "zsre", "zsRE's questions, their rephrasings and an unrelated question.", "zsRE", "zsre",
            f"{_HERE}.zsre:case", frozenset({"neighbours"}),
        ),
        Dataset(
            "knowedit", "KnowEdit's ZsRE, wikidata_counterfact and wikidata_recent: relations and portability.",
            "KnowEdit", "counterfact", f"{_HERE}.knowedit:case", frozenset({"old", "relations", "portability"}),
        ),
    ),
    EvaluationError,
)  # fmt: skip
