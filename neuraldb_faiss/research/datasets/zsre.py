"""zsRE (MEND's split, arXiv 2110.11309): a question, its rephrasing, and an unrelated question with its answers."""

from __future__ import annotations

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.datasets.cases import Case, need
from neuraldb_faiss.research.datasets.registry import References


def case(fact: Fact, _: References) -> Case:
    """A case; its neighbours are the unrelated questions."""
    prompts = need(fact, "neighborhood_prompts", "loc")
    truths = need(fact, "neighborhood_truth", "loc_ans")
    # One question may come with several answers that are all right: the first is the gold one.
    pairs = tuple((prompt, truths[min(at, len(truths) - 1)]) for at, prompt in enumerate(prompts))
    return Case(fact, need(fact, "paraphrase_prompts", "rephrase"), pairs)
