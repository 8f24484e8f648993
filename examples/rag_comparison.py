"""Editing against retrieval-augmented prompting (RAG), on the same facts and the same small model.

    python examples/rag_comparison.py --model models/SmolLM2-135M-Instruct --facts examples/facts.jsonl --limit 8

All are given the facts and nothing else. Retrieval keeps each fact as a sentence, finds the one most like the prompt
by TF-IDF (scikit-learn, in the extra `eval`), and puts it before the prompt (--wording: the small model hardly listens
to a bare sentence; this wording was the best of six). Editing builds a database and attaches it, and its facts fire as
residuals. "stated" is the same database with the delivery `text`: the sentences of the facts whose subjects the prompt
names come before it, or into the system message of a chat; nothing is solved for that.
Answers are decoded greedily; an answer is right where it begins with the new object, and a neighbour (a prompt about
another subject) is unchanged where its eight tokens are the unedited model's. In a chat, where the facts' questions are
asked in the model's chat template, an answer is right where its forty tokens hold the new object.

Which wins depends on the facts. Plainly untrue ones of famous subjects, as in examples/facts.jsonl, a small model says
best with a residual, or with retrieval's wording in the user's message. Facts that it has no memory of (a company's
prices, say) it says best when they stand in the prompt; with residuals it misspells their subjects (docs/answers.md).
Retrieval also wins where the model is behind somebody's API, where the answer should cite its source, and with large
models that read well; stating wins over it where names tell what is meant, for it adds nothing to any other prompt.
Residuals win where a prompt's tokens are dear (they add none), in prompts that the fact's own prompt is like, and where
a context must not talk the model out of the fact. The plain retriever here always adds a sentence; one that adds none
below some likeness would leave more neighbours alone, and miss more paraphrases.
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
from neuraldb_faiss.answers.asks import QUESTION, cases_of
from neuraldb_faiss.answers.judge import holds
from neuraldb_faiss.cli.demonstration import says
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.extras import extra
from neuraldb_faiss.facts import read_facts
from neuraldb_faiss.facts.relations import own_relations
from neuraldb_faiss.models import encode_prompts
from neuraldb_faiss.models.tokenization import has_chat
from neuraldb_faiss.research.evaluation.generation import greedy_texts

ANSWER, CHAT = 8, 40  # tokens
WORDING = "Context: {fact}\nAccording to the context: {prompt}"


@dataclass(frozen=True)
class Figures:
    """One way of answering. own, paraphrases: right answers; unchanged: neighbours (None for the model as it is);
    tokens: of a prompt, mean; seconds: to answer a prompt, mean; preparing: seconds before the first answer; chats:
    right answers in a chat (None where the model has no chat template)."""

    method: str
    own: int
    paraphrases: int
    unchanged: int | None
    tokens: float
    seconds: float
    preparing: float
    chats: int | None = None


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


Chat = list[dict[str, str]]
Prompt = str | Chat


def questions(facts: Sequence[Fact]) -> list[tuple[Chat, str]]:
    """What is asked of the facts in a chat, each with its answer."""
    asks = (ask for case in cases_of(facts, own_relations()) for ask in case.asks if ask.kind == QUESTION)
    return [([dict(message) for message in ask.prompt], ask.wanted[0]) for ask in asks]


def encode(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of texts, and of chats in the model's template."""
    return [
        encode_prompts(tokenizer, [prompt])[0]
        if isinstance(prompt, str)
        else encode_prompts(
            tokenizer,
            [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)],
            special=False,
        )[0]
        for prompt in prompts
    ]


def compare(
    model: Any, tokenizer: Any, facts: Sequence[Fact], folder: Path, wording: str = WORDING
) -> tuple[list[Figures], int, int, int]:
    """The unedited model, retrieval, editing, and the same facts stated; and how many paraphrases, neighbours and
    questions were asked.

    Args:
        folder: where the database is built.
        wording: of a prompt with what was retrieved, with {fact} and {prompt}.
    """
    own = [(fact.text, fact.target) for fact in facts]
    paraphrases = [(text, fact.target) for fact in facts for text in fact.metadata.get("paraphrase_prompts", [])]
    neighbours = [text for fact in facts for text in fact.metadata.get("neighborhood_prompts", [])]
    prompts = [*(text for text, _ in (*own, *paraphrases)), *neighbours]
    asked = questions(facts) if has_chat(tokenizer) else []
    plain: list[str] = []

    def measure(method: str, preparing: float, before: Callable[[Any], Any] = lambda prompt: prompt) -> Figures:
        started = time.perf_counter()
        rows = encode(tokenizer, [before(prompt) for prompt in prompts])
        answers = greedy_texts(model, tokenizer, rows, ANSWER)
        seconds = (time.perf_counter() - started) / len(prompts)
        right = [says(answer, target) for answer, (_, target) in zip(answers, own + paraphrases, strict=False)]
        others = answers[len(right) :]
        same = sum(a == b for a, b in zip(others, plain, strict=True)) if plain else None
        if not plain:
            plain.extend(others)
        tokens = sum(map(len, rows)) / len(rows)
        said = greedy_texts(model, tokenizer, encode(tokenizer, [before(chat) for chat, _ in asked]), CHAT)
        chats = sum(holds(answer, target) for answer, (_, target) in zip(said, asked, strict=True)) if asked else None
        return Figures(method, sum(right[: len(own)]), sum(right[len(own) :]), same, tokens, seconds, preparing, chats)

    figures = [measure("unedited", 0.0)]
    _vectorizer()  # so that loading the library does not count
    started = time.perf_counter()
    retriever = Retriever(facts)
    indexed = time.perf_counter() - started

    def augmented(prompt: Prompt) -> Prompt:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        text = wording.replace("{fact}", retriever.best(text)).replace("{prompt}", text)
        return text if isinstance(prompt, str) else [{"role": "user", "content": text}]

    figures.append(measure("retrieval", indexed, augmented))
    started = time.perf_counter()
    with build(facts, model, tokenizer, folder / "db") as db, db.attach(model, tokenizer, delivery="residual"):
        figures.append(measure("editing", time.perf_counter() - started))
    started = time.perf_counter()
    with build(facts, None, None, folder / "stated") as db:
        ready = time.perf_counter() - started
        figures.append(measure("stated", ready, lambda prompt: db.ground(prompt, tokenizer=tokenizer).prompt))
    return figures, len(paraphrases), len(neighbours), len(asked)


def show(figures: Sequence[Figures], facts: int, paraphrases: int, neighbours: int, chats: int) -> str:
    """A table, and what it says in words."""
    header = (
        "",
        "own prompts",
        "paraphrases",
        "neighbours same",
        "in chats",
        "tokens a prompt",
        "s a prompt",
        "s before",
    )
    rows = [
        [
            one.method, f"{one.own}/{facts}", f"{one.paraphrases}/{paraphrases}",
            "" if one.unchanged is None else f"{one.unchanged}/{neighbours}",
            "" if one.chats is None else f"{one.chats}/{chats}",
            f"{one.tokens:.1f}", f"{one.seconds:.3f}", f"{one.preparing:.2f}",
        ]
        for one in figures
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    for best in figures[1:]:
        rest = [one for one in figures[1:] if one is not best]
        said = [
            f"{what} ({mine} against {max(theirs)})"
            for what, mine, theirs in (
                ("own prompts", best.own, [one.own for one in rest]),
                ("paraphrases", best.paraphrases, [one.paraphrases for one in rest]),
                ("unchanged neighbours", best.unchanged or 0, [one.unchanged or 0 for one in rest]),
                ("chats", best.chats or 0, [one.chats or 0 for one in rest]),
            )
            if mine > max(theirs)
        ]
        said += [
            f"{what} ({mine:.3g} against {min(theirs):.3g})"
            for what, mine, theirs in (
                ("tokens a prompt", best.tokens, [one.tokens for one in rest]),
                ("seconds a prompt", best.seconds, [one.seconds for one in rest]),
                ("seconds before the first answer", best.preparing, [one.preparing for one in rest]),
            )
            if mine < min(theirs)
        ]
        name = best.method.capitalize()
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
            figures, *asked = compare(model, tokenizer, facts, Path(folder), given.wording)
    except NeuralDBError as error:
        sys.exit(f"error: {error}")
    if given.json:
        print(json.dumps([asdict(one) for one in figures], indent=2))
        return
    print(show(figures, len(facts), *asked))


if __name__ == "__main__":
    main()
