"""Prompts with the statements of the facts whose subjects they name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.metadata import kind_of
from neuraldb_faiss.facts.statement import stopped
from neuraldb_faiss.facts.topics import last_sentence, own_topics
from neuraldb_faiss.grounding import chats
from neuraldb_faiss.grounding.limits import MAX_FACTS, MAX_TOKENS
from neuraldb_faiss.grounding.mentions import Mentions
from neuraldb_faiss.grounding.relevance import relevant
from neuraldb_faiss.grounding.wording import Wording, plain_text
from neuraldb_faiss.guard.entry_facts import EntryFacts, FactSource
from neuraldb_faiss.guard.named import ANOTHER, NEARER, STATED, WAITS
from neuraldb_faiss.store.records import StoredFact, subject_key

Conversation = Sequence[Mapping[str, Any]]
_BYTES = 4  # of UTF-8, that count as a token where there is no tokenizer
_LONGEST = 64  # characters that one token holds, at most: longer statements are not even counted
_FULL = 4  # tokens in which no statement has room


@dataclass(frozen=True, slots=True)
class Grounded:
    """A prompt as it is to be sent.

    Attributes:
        prompt: a text, or a conversation's messages, as it was given but for `text`.
        facts: those that went in, as they stand there.
        text: the words that were added; "" where nothing was.
    """

    prompt: Any
    facts: tuple[StoredFact, ...] = ()
    text: str = ""


class _View:
    """One generation: its names, and the facts of its entries as far as they were asked for."""

    def __init__(self, source: FactSource, before: Mentions | None = None) -> None:
        self.source, self._facts = source, EntryFacts(source)
        self.mentions = Mentions(self._facts, before)
        self._whole: tuple[str, list[tuple[str, list[StoredFact]]]] = "", []

    def all_of(self, text: str) -> list[tuple[str, list[StoredFact]]]:
        """All `subjects` of one text, remembered for whoever asks for them next."""
        known, found = self._whole
        if known != text:
            found = list(self._named([text]))
            self._whole = text, found
        return found

    def subjects(self, texts: Sequence[str]) -> Iterable[tuple[str, list[StoredFact]]]:
        """The live facts of each subject that the texts name, the one named nearest to the end first, with the last
        text that names it."""
        known, found = self._whole
        return found if list(texts) == [known] else self._named(texts)

    def _named(self, texts: Sequence[str]) -> Iterator[tuple[str, list[StoredFact]]]:
        seen: set[str] = set()
        for text in reversed(texts):
            covered: int | None = None  # from here on everything lies behind, or inside of a longer mention
            for mention in self.mentions.in_text(text):
                if covered is not None and covered <= mention.start:
                    continue
                facts = sorted((fact for entry in mention.entries for fact in self._facts.of(entry)), key=_row)
                if not facts:
                    continue
                covered = mention.start
                groups: dict[str, dict[str, StoredFact]] = {}
                for fact in facts:
                    groups.setdefault(subject_key(fact.subject), {}).setdefault(fact.identity, fact)
                for name, group in groups.items():
                    if name not in seen:
                        seen.add(name)
                        yield text, list(group.values())


class Grounder:
    """Finds the live facts of one generation that prompts name, and puts their statements in; threads may share it."""

    def __init__(self, source: FactSource, wording: Wording | None = None) -> None:
        self._view = _View(source)
        self.wording = wording or Wording()

    @property
    def source(self) -> FactSource:
        """The snapshot whose facts are stated."""
        return self._view.source

    def refresh(self, source: FactSource) -> None:
        """State another generation's facts; only its new names are read while the lineage is the same."""
        if source is not self._view.source:
            self._view = _View(source, self._view.mentions)

    def at(self, source: FactSource) -> Grounder:
        """The same of another generation; this one stays as it is."""
        other = copy.copy(self)
        other.refresh(source)
        return other

    def is_own_prompt(self, prompt: str | Conversation) -> bool:
        """Whether it is a text that ends with the prompt of a fact whose residual fires, and says the target."""
        if not isinstance(prompt, str):
            return False
        end = prompt.rstrip()
        return any(
            fact.state == "live" and fact.took is not False and end.endswith(fact.text)
            for _, facts in self._view.all_of(prompt)
            for fact in facts
        )

    def asked(self, prompt: str | Conversation) -> list[StoredFact]:
        """The facts that the prompt asks for, the one whose subject is named nearest to its end first.

        Raises:
            FactError: the prompt is neither a text nor a conversation.
        """
        system, texts = _said(prompt)
        subjects = self._view.subjects([*system, *texts]) if texts else ()
        found = (relevant(facts, _asking(named, system, texts), len(facts)) for named, facts in subjects)
        return [fact for facts in found for fact, is_asked in facts if is_asked]

    def named(self, prompt: str | Conversation) -> list[tuple[StoredFact, str | None]]:
        """The facts whose subjects the prompt names, the last one first, with a key of `guard.named.WHY` for those that
        do not fire where its answer begins: that is the first live one of `asked`.

        Raises:
            FactError: the prompt is neither a text nor a conversation.
        """
        system, texts = _said(prompt)
        asked = self.asked(prompt)
        wanted = {fact.identity for fact in asked}
        fires = next((fact.identity for fact in asked if fact.state == "live"), None)
        found: list[tuple[StoredFact, str | None]] = []
        for fact in (one for _, facts in self._view.subjects([*system, *texts]) for one in facts):
            reason: str | None = ANOTHER
            if fact.identity in wanted:
                reason = None if fact.identity == fires else WAITS if fact.state != "live" else NEARER
            elif own_topics().is_stated(texts[-1], fact, fact.metadata.get("aliases", ())):
                reason = STATED
            found.append((fact, reason))
        return found

    def ground(
        self, prompt: str | Conversation, *, tokenizer: Any = None, max_facts: int = MAX_FACTS,
        max_tokens: int = MAX_TOKENS,
    ) -> Grounded:  # fmt: skip
        """See `NeuralDB.ground`."""
        system, texts = _said(prompt)
        chat = not isinstance(prompt, str)
        room = _Room(self.wording, "" if chat else last_sentence(texts[-1]), chat, tokenizer, (max_facts, max_tokens))
        for named, subject in self._view.subjects([*system, *texts]) if texts and not room.is_full else ():
            for fact, asked in relevant(subject, _asking(named, system, texts), room.facts):
                if asked or named not in system:
                    room.take(fact, asked)
            if room.is_full:
                break
        facts, text, turn = room.chosen()
        if isinstance(prompt, str):
            return Grounded(text + prompt, facts, text)
        return Grounded(chats.grounded(prompt, text, chats.system_role(tokenizer), turn), facts, text + turn)


def _said(prompt: Any) -> tuple[list[str], list[str]]:
    """What system messages say, and what is said in a prompt, one text a turn. Raises FactError for what is neither a
    text nor a conversation."""
    if isinstance(prompt, str):
        return [], [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise FactError(f"the prompt is {kind_of(prompt)}; give a text, or a list of messages with role and content")
    return chats.said(prompt)


def _asking(named: str, system: Sequence[str], texts: Sequence[str]) -> Sequence[str]:
    """The texts that may ask for facts about a subject which `named` names, the last one first.

    "Really?" asks for whatever was asked before. What a system message names counts only where it is asked for: "You
    help the customers of Acme." makes "Who is your boss?" a question about Acme.
    """
    return [texts[-1]] if named in system else list(dict.fromkeys((texts[-1], named)))


def _row(fact: StoredFact) -> int:
    return -1 if fact.row is None else fact.row


class _Taken(NamedTuple):
    fact: StoredFact
    statement: str
    lines: list[str]  # in front
    asked: bool


class _Room:
    """Facts as they are chosen, within the limits."""

    def __init__(self, wording: Wording, last: str, chat: bool, tokenizer: Any, limits: tuple[int, int]) -> None:
        """last: the last sentence of a text that is continued. limits: facts and tokens."""
        self._wording, self._last, self._chat, self._count = wording, last, chat, _counter(tokenizer)
        self._specials = [str(token) for token in getattr(tokenizer, "all_special_tokens", ())]
        self._taken: list[_Taken] = []
        self.facts, self._most = limits
        self._left = self._most - self._count(wording.text([""], chat=chat))

    @property
    def is_full(self) -> bool:
        return self.facts < 1 or self._left < _FULL

    def take(self, fact: StoredFact, asked: bool) -> None:
        """Take a fact in, where what it adds has room. asked: whether the prompt asks for it."""
        statement = plain_text(fact.statement, self._specials)
        if self.facts < 1 or len(statement) > _LONGEST * max(self._left, 0):
            return
        echo = ""
        if asked and not self._chat:
            echo = stopped(plain_text(f"{self._last} {fact.target}", self._specials))
        lines = self._wording.lines(statement, chat=self._chat, echo=echo)
        more = self._wording.behind([statement]) if asked and self._chat else ""
        cost = self._count("\n".join(lines) + "\n" + more)
        if cost <= self._left:
            self._taken.append(_Taken(fact, statement, lines, asked))
            self.facts, self._left = self.facts - 1, self._left - cost

    def chosen(self) -> tuple[tuple[StoredFact, ...], str, str]:
        """The facts in an order that depends on them alone, those of one subject together; what states them in front,
        and what goes behind the user's last message."""
        while True:
            groups: dict[str, list[_Taken]] = {}
            for one in sorted(self._taken, key=lambda taken: _row(taken.fact)):
                groups.setdefault(subject_key(one.fact.subject), []).append(one)
            ordered = [one for group in groups.values() for one in group]
            text = self._wording.front([line for one in ordered for line in one.lines], chat=self._chat)
            turn = self._wording.behind([one.statement for one in ordered if one.asked]) if self._chat else ""
            # What was counted line by line may be a token more as a whole.
            if not self._taken or self._count(text + turn) <= self._most:
                return tuple(one.fact for one in ordered), text, turn
            self._taken.pop()


def _counter(tokenizer: Any) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: -(-len(text.encode("utf-8", "replace")) // _BYTES)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count
