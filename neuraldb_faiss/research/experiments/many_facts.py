"""Subjects with several facts: one entry for all that share a key, against an entry a fact."""

from __future__ import annotations

from collections import Counter

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import key_ids
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.research.experiments.table1 import report

DEFAULTS = {"metrics": ["efficacy", "efficacy_acc", "generalization", "ar_acc", "target_nll"]}


def run(lab: Lab) -> Result:
    """Where entries have equal keys, a top-1 lookup finds one of them: the first, here and in FAISS.

    So the plain gate's database is built of the first fact of every key, and asked about all facts.
    """
    facts, first = lab.facts(), dict[str, Fact]()
    keys = key_ids(lab.tokenizer, facts)
    for key, fact in zip(keys, facts, strict=True):
        first.setdefault(key, fact)
    alone = list(first.values())
    with lab.database() as db:
        runs = [lab.evaluate("neuraldb", lab.method("neuraldb", db), facts)]
    with lab.database(facts=alone, name="plain", keys="paper", guard="none", gamma=0.65) as db:
        runs.append(lab.evaluate("plain top-1", lab.method("neuraldb", db), alone))
    made = report([*runs, lab.base()])
    subjects = Counter(fact.subject for fact in facts)
    about = (
        f"{len(facts)} facts of {len(subjects)} subjects, {min(subjects.values())} to {max(subjects.values())} each;"
        f" {sum(n for n in Counter(keys).values() if n > 1)} facts share a key with another one.\n\n"
    )
    return Result(made.rows, about + made.table, made.plots)
