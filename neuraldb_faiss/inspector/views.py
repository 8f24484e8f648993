"""What the page shows: a prompt token by token with both answers, and how near texts come to the gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.grounding.delivery import Delivery
from neuraldb_faiss.guard.gate import Gate
from neuraldb_faiss.hook import attach
from neuraldb_faiss.hook.text_handle import TextHandle
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.inference.ask import Fired, ask
from neuraldb_faiss.inference.explain import Held, Nearest, nearest_of, site_inputs, tokens_of
from neuraldb_faiss.models import FFNSite
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


TEXT = "text"  # why what would fire does not, where the facts are stated instead
_STATED = "facts reach this prompt as text, so nothing fires: see what is stated"


@dataclass(frozen=True)
class Look:
    """A prompt continued greedily, with the database and without it.

    Attributes:
        prompt: its tokens, as the model got them with the database. edited: those of the answer with the database;
            texts are pieces that join to the whole.
        base: the answer without the database. fired: the entries that fired in prompt and edited answer, the first
            in the text first.
        delivery: how the facts reached the prompt, "residual", "text" or "both".
        stated: the facts whose statements went into it; where none is delivered so, those that would.
        added: the words that went in with them.
    """

    generation: int
    gamma: float
    guard: str
    prompt: tuple[Nearest, ...]
    edited: tuple[Nearest, ...]
    base: str
    fired: tuple[Fired, ...]
    delivery: str = "residual"
    stated: tuple[StoredFact, ...] = ()
    added: str = ""

    @property
    def tokens(self) -> tuple[Nearest, ...]:
        return self.prompt + self.edited

    @property
    def states(self) -> bool:
        """Whether facts are stated in the prompt, if it names any."""
        return self.delivery != "residual"

    @property
    def held(self) -> list[tuple[Held, list[int]]]:
        """Entries that are named where they do not fire, each once a reason, with its highest cosine and all its
        places."""
        found: dict[tuple[int, str], tuple[Held, list[int]]] = {}
        for one in self.tokens:
            for held in one.held:
                known, places = found.get((held.entry, held.reason), (held, []))
                better = known if (known.score or 0.0) >= (held.score or 0.0) else held
                found[held.entry, held.reason] = (better, [*places, one.position])
        return list(found.values())


@dataclass(frozen=True)
class Series:
    """Cosines of one kind of text. fired: at how many of them the fact's own entry fires (`own`), or any entry."""

    name: str
    about: str
    scores: tuple[float, ...]
    fired: int
    own: bool


@dataclass(frozen=True)
class _Edits:
    """What finds the entries of a database that has residuals."""

    site: FFNSite
    gate: Gate
    matcher: Matcher


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
        self._edits: _Edits | None = None
        self._text = TextHandle(db.snapshot, lambda: db.snapshot, tokenizer, str(db.path))
        self._delivery = Delivery(db.config.delivery, db.config.has_residuals, lambda: db.snapshot, tokenizer)
        if db.config.has_model:
            gate = db.gate(model, tokenizer, gamma=gamma, guard=guard, search=search)
            self._edits = _Edits(check_model(db.config, model), gate, db.matcher(search))

    @property
    def gamma(self) -> float:
        return self._edits.gate.gamma if self._edits else self._db.gamma

    @property
    def guard(self) -> str:
        return self._edits.gate.guard if self._edits else self._db.guard

    @property
    def generation(self) -> int:
        return self._db.generation

    def refresh(self) -> None:
        """Show the newest generation."""
        before = self._db.generation
        if self._db.refresh() == before:
            return
        self._text.refresh()
        if self._edits:
            self._edits.gate.refresh(self._db.snapshot)
            self._edits.matcher.refresh(self._db.snapshot)

    def close(self) -> None:
        self._db.close()

    def look(
        self, prompt: str, *, max_new_tokens: int = 20, chat: bool = False, delivery: str | None = None
    ) -> Look:  # fmt: skip
        """Continue a prompt with and without the database.

        Args:
            delivery: how facts are to reach it; None: as the database says.

        Raises:
            FactError, ModelError: as `inference.ask`.
        """
        with self._attached() as handle:
            answer = ask(
                self._db, handle, self._model, self._tokenizer, prompt, compare=True, chat=chat,
                max_new_tokens=max_new_tokens, delivery=delivery,
            )  # fmt: skip
            stated = answer.stated
            if answer.delivery == "residual":
                asked: Any = [{"role": "user", "content": prompt}] if chat else prompt
                stated = handle.ground(asked, delivery="text", tokenizer=self._tokenizer).facts
        found = [
            replace(one, token=word)
            for one, word in zip(self._nearest(answer.ids), pieces(self._tokenizer, answer.ids), strict=True)
        ]
        if answer.delivery == "text":
            found = [_unfired(one, frozenset(fact.identity for fact in stated)) for one in found]
        begin = len(answer.ids) - answer.new
        return Look(
            self.generation, self.gamma, self.guard, tuple(found[:begin]), tuple(found[begin:]), answer.base or "",
            _fired(found), answer.delivery, stated, answer.added,
        )  # fmt: skip

    def _attached(self) -> Any:
        """A handle that states and fires as an attachment of the database would."""
        if self._edits is None:
            return self._text
        return attach(self._edits.gate, self._model, site=self._edits.site, delivery=self._delivery)

    def cosines(self, limit: int = 40) -> list[Series]:
        """How near to the gate come the prompts of `limit` facts, their paraphrases, prompts about others (both from
        the facts' metadata), and ordinary text."""
        if self._edits is None:
            return []
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
        if self._edits is None:
            return [Nearest(at, "", None, 0.0, False, ()) for at in range(len(ids))]
        site, gate, matcher = self._edits.site, self._edits.gate, self._edits.matcher
        return nearest_of(self._db, self._model, self._tokenizer, site, ids, gate, matcher)

    def _at_subjects(self, name: str, about: str, prompts: Iterable[tuple[StoredFact, Fact]]) -> Series:
        assert self._edits is not None
        scores, fired = [], 0
        for stored, fact in prompts:
            every_row = self._db.facts(identities=[stored.identity], every_row=True)
            entries = {one.entry for one in every_row}  # one for a text's beginning, one for elsewhere
            try:
                encoded = encode(self._tokenizer, fact.text, fact.subject_span)
            except FactError:
                continue  # its subject has no token of its own there
            keys = site_inputs(self._model, self._edits.site, encoded.ids)
            scores.append(self._own_cosine(entries, keys[encoded.last].float().cpu().numpy()))
            found = self._edits.gate.fired(keys, tokens_of(encoded.ids))
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
    """The text of each token, so that all joined are the text; of a character in several tokens the last one has it,
    and of one that the text's end cuts the last that is no special token. Special tokens are named."""
    words, special = Words(tokenizer), set(tokenizer.all_special_ids)
    named = tokenizer.convert_ids_to_tokens(list(ids))
    found = [name if token in special else words.push(token) for token, name in zip(ids, named, strict=True)]
    if rest := words.rest():
        found[max(at for at, token in enumerate(ids) if token not in special)] += rest
    return found


def _unfired(one: Nearest, stated: Set[str]) -> Nearest:
    """A token of a prompt in which facts are stated (by identity): what would fire there is held, and why is said."""
    firing = [Held(one.entry, one.facts, one.score, 0.0, TEXT, _STATED)] if one.fired and one.entry is not None else []
    held = [
        replace(other, reason=TEXT, why=_STATED) if any(fact.identity in stated for fact in other.facts) else other
        for other in one.held
    ]
    return replace(one, fired=False, held=(*firing, *held))


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
