"""Where a fact is asked: alone, behind long text, in the chat template, late in a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.joining import is_apart
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models.tokenization import chat_text, encode_prompts, has_chat
from neuraldb_faiss.research.evaluation.generation import greedy_texts, judge
from neuraldb_faiss.research.evaluation.statistics import proportion
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "database": "",  # one that is there already; else the facts are built
    "texts": "",  # ordinary text: JSON lines with a field `text`
    "context": 1_000,  # tokens of it before the prompt
    "length": 40,  # tokens of an answer
    "methods": ["base", "neuraldb"],
}


def run(lab: Lab) -> Result:
    if not lab.config["texts"]:
        raise EvaluationError("the experiment contexts needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    facts, rows = lab.facts(), []
    with lab.open_database() as db:
        entries: dict[str, set[int]] = {}
        for _, entry, name in db.snapshot.subject_names():
            entries.setdefault(name, set()).add(entry)
        kinds = prompts(lab, facts)
        cosines = {kind: _cosines(lab, db, facts, texts, entries, kind) for kind, texts in kinds.items()}
        for name in lab.config["methods"]:
            with db.attach(lab.model, lab.tokenizer) if name == "neuraldb" else nullcontext():
                for kind, texts in kinds.items():
                    with lab.stage(f"{name}, {kind}", "prompt"):
                        ids = encode_prompts(lab.tokenizer, texts, special=not _is_chat(kind))
                        answers = greedy_texts(lab.model, lab.tokenizer, ids, lab.config["length"])
                    rows.append(_row(name, kind, facts, answers, cosines[kind], db.gamma))
    return Result(rows, _table(rows), {})


def prompts(lab: Lab, facts: Sequence[Fact]) -> dict[str, list[str]]:
    """Texts by kind, one a fact."""
    size = lab.config["context"]
    filler = list(
        false_fires.windows(lab.tokenizer, read_texts(lab.config["texts"]), size=size, tokens=size * len(facts))
    )
    before = [filler[number % len(filler)].strip() for number in range(len(facts))]
    kinds = {
        "alone": [fact.text for fact in facts],
        f"behind {size} tokens": [f"{text}\n\n{fact.text}" for text, fact in zip(before, facts, strict=True)],
    }
    if has_chat(lab.tokenizer):
        kinds["chat"] = [chat_text(lab.tokenizer, [fact.text]) for fact in facts]
        kinds[f"chat, behind {size} tokens"] = [
            chat_text(lab.tokenizer, [f"Read this text.\n\n{text}", "I have read it.", fact.text])
            for text, fact in zip(before, facts, strict=True)
        ]
    return kinds


def _is_chat(kind: str) -> bool:
    return kind.startswith("chat")


def _cosines(
    lab: Lab, db: Any, facts: Sequence[Fact], texts: Sequence[str], entries: Mapping[str, set[int]], kind: str
) -> np.ndarray[Any, Any]:
    """float64 [facts]: at the subject's last place, the cosine of the subject's entry that comes first."""
    gate = db.gate(lab.model, lab.tokenizer, gamma=0.0, guard="subject")
    seen = false_fires.see(lab.model, lab.tokenizer, lab.site(db), texts, special=not _is_chat(kind))
    found = []
    for fact, one in zip(facts, seen, strict=True):
        winners, scores = false_fires.scores(gate, one)
        token = false_fires.subject_end(one, fact.subject)
        found.append(scores[token] if winners[token] in entries[fact.subject] else false_fires.NOWHERE)
    return np.array(found)


def _row(
    name: str, kind: str, facts: Sequence[Fact], answers: Sequence[str], cosines: np.ndarray[Any, Any], gamma: float
) -> Row:
    begins = [judge(text, fact.target, done=True, ended=False) for text, fact in zip(answers, facts, strict=True)]
    counts = {
        "fired": int((cosines > gamma).sum()),
        "begins": sum(match is not None and match.starts for match in begins),
        "said": sum(says(text, fact.target) for text, fact in zip(answers, facts, strict=True)),
    }
    row: Row = {"method": name, "text": kind, "facts": len(facts),
                "cosines": np.quantile(cosines, [0.01, 0.1, 0.5]).round(3).tolist()}  # fmt: skip
    for what, hits in counts.items():
        share = proportion(hits, len(facts))
        row |= {what: share.value, f"{what}_low": share.low, f"{what}_high": share.high}
    return row


def says(text: str, target: str) -> bool:
    """Whether the text holds the target as words of its own."""
    places = [found.span() for found in re.finditer(re.escape(target), text)]
    return any(is_apart(target[0], text[:a][-1:]) and is_apart(target[-1], text[b : b + 1]) for a, b in places)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| prompt | method | cosine at 1, 10, 50 % | fires | answer begins with the target | answer holds it |",
             "|---|---|---|--:|--:|--:|"]  # fmt: skip
    for row in rows:
        shares = [f"{100 * row[what]:.1f} [{100 * row[f'{what}_low']:.1f}, {100 * row[f'{what}_high']:.1f}]"
                  for what in ("fired", "begins", "said")]  # fmt: skip
        edited = row["method"] == "neuraldb"
        cosines = ", ".join(format(one, ".2f") for one in row["cosines"]) if edited else ""
        lines.append(f"| {row['text']} | {row['method']} | {cosines} | {shares[0] if edited else ''} | {shares[1]} |"
                     f" {shares[2]} |")  # fmt: skip
    return "\n".join(lines) + "\n"
