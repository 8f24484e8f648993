"""Editing against retrieval-augmented prompting (RAG), on the same facts and the same small model.

    python examples/rag_comparison.py --model models/SmolLM2-135M-Instruct --facts examples/facts.jsonl --limit 8

Both are given the facts and nothing else. Retrieval keeps each fact as a sentence, finds the one most like the prompt
by TF-IDF (scikit-learn, in the extra `eval`), and puts it before the prompt (--wording: the small model hardly listens
to a bare sentence; this wording was the best of six). Editing builds a database and attaches it.
Answers are decoded greedily; an answer is right where it begins with the new object, and a neighbour (a prompt about
another subject) is unchanged where its eight tokens are the unedited model's.

Retrieval wins where facts change by the minute (nothing is solved: a sentence is indexed at once), where the model is
behind somebody's API, where the answer should cite its source, where one answer needs several facts, and with large
models that read well. Editing wins where a prompt's tokens are dear (it adds none), where the wrong sentence might be
found, and where other prompts must stay as they were. The plain retriever here always adds a sentence; one that adds
none below some likeness would leave more neighbours alone, and miss more paraphrases.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuraldb_faiss import Fact, NeuralDBError, build
from neuraldb_faiss.cli.demonstration import says
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.extras import extra
from neuraldb_faiss.facts import read_facts
from neuraldb_faiss.models import encode_prompts
from neuraldb_faiss.research.evaluation.generation import greedy_texts

ANSWER = 8  # tokens
WORDING = "Context: {fact}\nAccording to the context: {prompt}"


@dataclass(frozen=True)
class Figures:
    """One way of answering. own, paraphrases: right answers; unchanged: neighbours (None for the model as it is);
    tokens: of a prompt, mean; seconds: to answer a prompt, mean; preparing: seconds before the first answer."""

    method: str
    own: int
    paraphrases: int
    unchanged: int | None
    tokens: float
    seconds: float
    preparing: float


class Retriever:
    """The fact's sentence that is most like a prompt, by TF-IDF."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.sentences = [f"{fact.text}{fact.separator}{fact.target}." for fact in facts]
        self._vectorizer = _vectorizer()
        self._rows = self._vectorizer.fit_transform(self.sentences)

    def best(self, prompt: str) -> str:
        likeness = (self._rows @ self._vectorizer.transform([prompt]).T).toarray()[:, 0]
        return self.sentences[int(likeness.argmax())]


def _vectorizer() -> Any:
    with extra("eval"):
        from sklearn.feature_extraction.text import TfidfVectorizer
    return TfidfVectorizer(stop_words="english")


def compare(
    model: Any, tokenizer: Any, facts: Sequence[Fact], folder: Path, wording: str = WORDING
) -> tuple[list[Figures], int, int]:
    """The unedited model, retrieval and editing; and how many paraphrases and neighbours were asked.

    Args:
        folder: where the database is built.
        wording: of a prompt with what was retrieved, with {fact} and {prompt}.
    """
    own = [(fact.text, fact.target) for fact in facts]
    paraphrases = [(text, fact.target) for fact in facts for text in fact.metadata.get("paraphrase_prompts", [])]
    neighbours = [text for fact in facts for text in fact.metadata.get("neighborhood_prompts", [])]
    prompts = [*(text for text, _ in (*own, *paraphrases)), *neighbours]
    plain: list[str] = []

    def measure(method: str, preparing: float, before: Callable[[str], str] = str) -> Figures:
        started = time.perf_counter()
        rows = encode_prompts(tokenizer, [before(prompt) for prompt in prompts])
        answers = greedy_texts(model, tokenizer, rows, ANSWER)
        seconds = (time.perf_counter() - started) / len(prompts)
        right = [says(answer, target) for answer, (_, target) in zip(answers, own + paraphrases, strict=False)]
        others = answers[len(right) :]
        same = sum(a == b for a, b in zip(others, plain, strict=True)) if plain else None
        if not plain:
            plain.extend(others)
        tokens = sum(map(len, rows)) / len(rows)
        return Figures(method, sum(right[: len(own)]), sum(right[len(own) :]), same, tokens, seconds, preparing)

    figures = [measure("unedited", 0.0)]
    _vectorizer()  # so that loading the library does not count
    started = time.perf_counter()
    retriever = Retriever(facts)
    indexed = time.perf_counter() - started

    def augmented(prompt: str) -> str:
        return wording.replace("{fact}", retriever.best(prompt)).replace("{prompt}", prompt)

    figures.append(measure("retrieval", indexed, augmented))
    started = time.perf_counter()
    with build(facts, model, tokenizer, folder / "db") as db, db.attach(model, tokenizer):
        figures.append(measure("editing", time.perf_counter() - started))
    return figures, len(paraphrases), len(neighbours)


def show(figures: Sequence[Figures], facts: int, paraphrases: int, neighbours: int) -> str:
    """A table, and what it says in words."""
    header = ("", "own prompts", "paraphrases", "neighbours same", "tokens a prompt", "s a prompt", "s before")
    rows = [
        [
            one.method, f"{one.own}/{facts}", f"{one.paraphrases}/{paraphrases}",
            "" if one.unchanged is None else f"{one.unchanged}/{neighbours}",
            f"{one.tokens:.1f}", f"{one.seconds:.3f}", f"{one.preparing:.2f}",
        ]
        for one in figures
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    _, retrieval, editing = figures
    for name, better, worse in (("Retrieval", retrieval, editing), ("Editing", editing, retrieval)):
        said = [
            f"{what} ({a} against {b})"
            for what, a, b in (
                ("own prompts", better.own, worse.own),
                ("paraphrases", better.paraphrases, worse.paraphrases),
                ("unchanged neighbours", better.unchanged or 0, worse.unchanged or 0),
            )
            if a > b
        ]
        said += [
            f"{what} ({a:.3g} against {b:.3g})"
            for what, a, b in (
                ("tokens a prompt", better.tokens, worse.tokens),
                ("seconds a prompt", better.seconds, worse.seconds),
                ("seconds before the first answer", better.preparing, worse.preparing),
            )
            if a < b
        ]
        lines.append(f"{name} wins by {', '.join(said)}." if said else f"{name} wins nowhere here.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Editing against retrieval-augmented prompting on the same facts.")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct", help="folder or hub name")
    parser.add_argument("--facts", default="examples/facts.jsonl", metavar="FILE", help="as `neuraldb build` takes it")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N facts")
    parser.add_argument("--wording", default=WORDING, help="how retrieval puts {fact} and {prompt} together")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if "{fact}" not in given.wording or "{prompt}" not in given.wording:
        parser.error("--wording needs {fact} and {prompt}")
    try:
        facts = list(read_facts(given.facts, limit=given.limit))
        if not facts:
            raise FactError(f"{given.facts} holds no facts")
        from neuraldb_faiss.models import load_model

        model, tokenizer = load_model(given.model, device=given.device)
        with tempfile.TemporaryDirectory() as folder:
            figures, paraphrases, neighbours = compare(model, tokenizer, facts, Path(folder), given.wording)
    except NeuralDBError as error:
        sys.exit(f"error: {error}")
    if given.json:
        print(json.dumps([asdict(one) for one in figures], indent=2))
        return
    print(show(figures, len(facts), paraphrases, neighbours))


if __name__ == "__main__":
    main()
