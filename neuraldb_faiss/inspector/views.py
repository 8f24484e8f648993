"""What the page shows: a prompt token by token with both answers, and how near texts come to the gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.hook import attach
from neuraldb_faiss.inference.ask import Fired, ask
from neuraldb_faiss.inference.explain import Nearest, nearest_of, site_inputs, tokens_of
from neuraldb_faiss.models.identity import check_model
from neuraldb_faiss.models.tokenization import encode, encode_prompt
from neuraldb_faiss.serving.detokenizer import Words
from neuraldb_faiss.store import StoredFact

# Text about nothing in particular, for databases whose facts bring no other prompts.
ORDINARY = (
    "The train was late again this morning, and by the time it came the platform was full of people with wet coats.",
    "To make a simple soup, cut two onions and a carrot, fry them slowly, add water and salt, and wait half an hour.",
    "Most of the changes in this release are small, but please read the notes before you upgrade your own server.",
    "She closed the book, looked out of the window for a while, and then wrote a short letter to her brother.",
    "Prices rose by two per cent in the second quarter, which was less than many in the industry had expected.",
)


@dataclass(frozen=True)
class Look:
    """A prompt continued greedily, with the database and without it.

    Attributes:
        prompt: its tokens. edited: those of the answer with the database; texts are pieces that join to the whole.
        base: the answer without the database. fired: the entries that fired in prompt and edited answer, the first
            in the text first.
    """

    generation: int
    gamma: float
    guard: str
    prompt: tuple[Nearest, ...]
    edited: tuple[Nearest, ...]
    base: str
    fired: tuple[Fired, ...]

    @property
    def tokens(self) -> tuple[Nearest, ...]:
        return self.prompt + self.edited


@dataclass(frozen=True)
class Series:
    """Cosines of one kind of text. fired: at how many of them the fact's own entry fires (`own`), or any entry."""

    name: str
    about: str
    scores: tuple[float, ...]
    fired: int
    own: bool


class Looker:
    """Looks at texts through one database; keeps its gate and its index from one text to the next.

    One thread at a time, and nothing else may run the model meanwhile.
    """

    def __init__(
        self, db: NeuralDB, model: Any, tokenizer: Any, *, gamma: float | None = None, guard: str | None = None,
        search: str = "auto",
    ) -> None:  # fmt: skip
        """Raises FingerprintError: the database was built with another model; BuildError as `db.attach`."""
        self._db, self._model, self._tokenizer = db, model, tokenizer
        self._site = check_model(db.config, model)
        self._gate = db.gate(model, tokenizer, gamma=gamma, guard=guard, search=search)
        self._matcher = db.matcher(search)

    @property
    def gamma(self) -> float:
        return self._gate.gamma

    @property
    def guard(self) -> str:
        return self._gate.guard

    @property
    def generation(self) -> int:
        return self._db.generation

    def refresh(self) -> None:
        """Show the newest generation."""
        before = self._db.generation
        if self._db.refresh() != before:
            self._gate.refresh(self._db.snapshot)
            self._matcher.refresh(self._db.snapshot)

    def close(self) -> None:
        self._db.close()

    def look(self, prompt: str, *, max_new_tokens: int = 20, chat: bool = False) -> Look:
        """Continue a prompt with and without the database. Raises FactError and ModelError as `answers.ask`."""
        with attach(self._gate, self._model, site=self._site) as handle:
            answer = ask(
                self._db, handle, self._model, self._tokenizer, prompt, compare=True, chat=chat,
                max_new_tokens=max_new_tokens,
            )  # fmt: skip
        found = [
            replace(one, token=word)
            for one, word in zip(self._nearest(answer.ids), pieces(self._tokenizer, answer.ids), strict=True)
        ]
        begin = len(answer.ids) - answer.new
        return Look(
            self.generation, self.gamma, self.guard, tuple(found[:begin]), tuple(found[begin:]), answer.base or "",
            _fired(found),
        )  # fmt: skip

    def cosines(self, limit: int = 40) -> list[Series]:
        """How near to the gate come the prompts of `limit` facts, their paraphrases, prompts about others (both from
        the facts' metadata), and ordinary text."""
        facts = self._db.facts(limit=limit)
        own = [(fact, fact.fact()) for fact in facts]
        others = [(fact, same) for fact in facts for same in _prompts(fact, "paraphrase_prompts")[:1]]
        unrelated = [text for fact in facts for text in _texts(fact, "neighborhood_prompts")[:1]]
        every = [
            self._at_subjects("own prompts", "at the subject's last token, to the fact's own keys", own),
            self._at_subjects("paraphrases", "the same subjects in other words, to the fact's own keys", others),
            self._anywhere("other subjects", "every token of prompts about others, to the nearest key", unrelated),
            self._anywhere("ordinary text", "every token of a few plain sentences, to the nearest key", ORDINARY),
        ]
        return [series for series in every if series.scores]

    def _nearest(self, ids: Sequence[int]) -> list[Nearest]:
        return nearest_of(self._db, self._model, self._tokenizer, self._site, ids, self._gate, self._matcher)

    def _at_subjects(self, name: str, about: str, prompts: Iterable[tuple[StoredFact, Fact]]) -> Series:
        scores, fired = [], 0
        for stored, fact in prompts:
            every_row = self._db.facts(identities=[stored.identity], every_row=True)
            entries = {one.entry for one in every_row}  # one for a text's beginning, one for elsewhere
            try:
                encoded = encode(self._tokenizer, fact.text, fact.subject_span)
            except FactError:
                continue  # its subject has no token of its own there
            keys = site_inputs(self._model, self._site, encoded.ids)
            scores.append(self._own_cosine(entries, keys[encoded.last].float().cpu().numpy()))
            found = self._gate.fired(keys, tokens_of(encoded.ids))
            fired += any(
                place == encoded.last and entry in entries
                for place, entry in zip(found.places.tolist(), found.entries.tolist(), strict=True)
            )
        return Series(name, about, tuple(scores), fired, own=True)

    def _own_cosine(self, entries: Set[int], key: np.ndarray) -> float:
        """Of the nearest of the entries' keys."""
        snapshot = self._db.snapshot
        stored = snapshot.keys(np.flatnonzero(np.isin(snapshot.key_entries, list(entries)))).astype(np.float32)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        return float((stored @ (key / np.linalg.norm(key))).max(initial=-1.0))

    def _anywhere(self, name: str, about: str, texts: Iterable[str]) -> Series:
        found = [one for text in texts for one in self._nearest(encode_prompt(self._tokenizer, text))]
        compared = [one for one in found if one.entry is not None]
        return Series(name, about, tuple(one.score for one in compared), sum(one.fired for one in compared), own=False)


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that all joined are the text; of a character in several tokens the last one has it.
    Special tokens are named."""
    words, special = Words(tokenizer), set(tokenizer.all_special_ids)
    named = tokenizer.convert_ids_to_tokens(list(ids))
    return [name if token in special else words.push(token) for token, name in zip(ids, named, strict=True)]


def _fired(found: Sequence[Nearest]) -> tuple[Fired, ...]:
    firing: dict[int, list[Nearest]] = {}
    for one in found:
        if one.fired and one.entry is not None:
            firing.setdefault(one.entry, []).append(one)
    return tuple(
        Fired(entry, tuple(one.position for one in ones), max(one.score for one in ones), ones[0].facts)
        for entry, ones in firing.items()
    )


def _texts(fact: StoredFact, name: str) -> list[str]:
    """Texts in a fact's metadata, which may be anything."""
    given = fact.metadata.get(name)
    return [text for text in given if isinstance(text, str) and text.strip()] if isinstance(given, list) else []


def _prompts(fact: StoredFact, name: str) -> list[Fact]:
    """Those of them that hold the fact's subject once."""
    found = []
    for text in _texts(fact, name):
        try:
            found.append(Fact(fact.subject, text, fact.target))
        except FactError:
            continue
    return found
