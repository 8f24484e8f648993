"""CounterFact (ROME, arXiv 2202.05262): paraphrases, neighbours, other relations, texts to continue."""

from __future__ import annotations

from collections.abc import Iterable

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.joining import separator
from neuraldb_faiss.research.datasets.cases import Case, need, probes, strings
from neuraldb_faiss.research.datasets.registry import References


def case(fact: Fact, texts: References) -> Case:
    """A case; `texts` of its relation and target, or its attribute prompts continued, are its references."""
    if fact.target_true is None:
        raise FactError("field 'target_true' (flat form: 'ground_truth') is missing; the metrics need the old object")
    prompts = need(fact, "neighborhood_prompts", "locality_prompt")
    truths = strings(fact, "neighborhood_truth") or (fact.target_true,) * len(prompts)
    if len(truths) != len(prompts):
        raise FactError(
            f"field 'locality_ground_truth' has {len(truths)} answers for {len(prompts)} prompts; give one a prompt"
        )
    references = tuple(texts.get((fact.relation or "", fact.target), ()))
    return Case(
        fact,
        need(fact, "paraphrase_prompts", "rephrase_prompt"),
        tuple(zip(prompts, truths, strict=True)),
        probes([other], "question", "object") if (other := fact.metadata.get("unrelated_relation")) else (),
        generation=strings(fact, "generation_prompts"),
        references=references or _continued(strings(fact, "attribute_prompts"), fact.target),
        compared=True,
    )


def _continued(prompts: Iterable[str], target: str) -> tuple[str, ...]:
    return tuple(prompt + separator(prompt, target) + target for prompt in prompts)
