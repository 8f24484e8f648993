"""KnowEdit (arXiv 2401.01286): other relations of the subject, what follows from the edit, sometimes paraphrases."""

from __future__ import annotations

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.datasets.cases import Case, probes, strings
from neuraldb_faiss.research.datasets.registry import References


def case(fact: Fact, _: References) -> Case:
    """A case; it has no neighbours."""
    kinds = {name: fact.metadata.get(name) or {} for name in ("locality", "portability")}
    for name, value in kinds.items():
        if not isinstance(value, dict):
            raise FactError(f"field {name!r} must be an object of lists of probes")
    found = [probe for own in kinds["portability"].values() for probe in own]
    return Case(
        fact,
        strings(fact, "paraphrase_prompts"),
        relations=probes(kinds["locality"].get("Relation_Specificity") or [], "prompt", "ground_truth"),
        portability=probes(found, "prompt", "ground_truth"),
        compared=fact.target_true is not None,
    )
