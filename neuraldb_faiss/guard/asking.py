"""Whether a text asks for what an entry says, so that its residual may fire where the subject is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from neuraldb_faiss.facts.topics import Asked, Bearing, own_topics, sentence_of
from neuraldb_faiss.guard.entry_facts import EntryFacts, FactSource
from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.guard.named import ANOTHER, LONGER, SAID, STATED, WORD
from neuraldb_faiss.guard.row_texts import RowTexts
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.turns import Turn, Turns

_OTHERS: tuple[Bearing, ...] = ("another", "indirect")  # a residual says a city, and not its country
_ROLE = re.compile(r"\s*\w*\s*")  # what stands between two marks and is no message: "assistant"
_END = re.compile(r"[.!?][\"')\]]*\s|\n")  # of a sentence, or of a line

HoldsBack = Callable[[int, int], str | None]  # (token, entry) -> a key of `named.WHY`, None where it may fire
Subjects = Callable[[Sequence[int]], list[tuple[int, int]]]  # of a text's ids: (token, entry) where a subject ends


class Stored(Asked, Protocol):
    """A fact, with the names of its subject among its `metadata`."""

    @property
    def text(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


class Asking:
    """Holds entries back where the text names their subjects and does not ask for them (`facts.topics`).

    - A text to be continued: where the sentence that names the subject, as far as it is known, asks for something else
      about it.
    - A message of a chat: where it asks for something else, or for nothing in particular ("Tell me about Nokia."). One
      that does not say is judged by the last message behind it, where that is known.
    - An answer: where its own sentence, up to the name, asks for something else; one that does not say is judged by the
      message before it. So it is in a forward of one token, with a KV cache, as in a forward of the whole text.
    - A text to be continued, and a message: where digits go on behind the name, as behind "Apollo 1" in "Apollo 13".
    - Anywhere, where the text itself says in an earlier sentence what the fact is about: the context wins.
    - Anywhere, where the name is a part of the target or the subject of another fact, which the text asks for and is
      saying: "Toronto" in "Toronto Raptors", or "Xbox" where a question named "Xbox 360".

    Of several facts of an entry one that may be asked for is enough. Threads may share it.
    """

    def __init__(self, texts: Texts, turns: Turns, subjects: Subjects) -> None:
        """subjects: finds the entries that a text names."""
        self._texts, self._turns, self._subjects = texts, turns, subjects
        self._facts: EntryFacts | None = None

    def reading(self, tokens: Tokens, source: FactSource) -> HoldsBack:
        """What holds the entries of a snapshot back in the texts of one forward.

        Args:
            tokens: with ids.
            source: the snapshot.
        """
        facts = self._facts  # another thread may read another generation
        if facts is None or facts.source is not source:
            facts = self._facts = EntryFacts(source)
        rows: dict[int, RowTexts] = {}
        named: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by row, and the column that its text begins at
        found: dict[tuple[int, int], str | None] = {}

        def holds_back(place: int, entry: int) -> str | None:
            if (place, entry) not in found:
                row, column = divmod(place, tokens.positions.shape[1])
                if row not in rows:
                    rows[row] = RowTexts(tokens, row)
                ids, at = rows[row].around(column)
                reason = self._why(ids, at, facts.of(entry))
                if reason is None:
                    if (row, column - at) not in named:
                        named[row, column - at] = self._subjects(ids)
                    there = named[row, column - at]
                    here = {entry, *(other for token, other in there if token == at)}  # an alias is no longer name
                    before = [(token, other) for token, other in there if token < at and other not in here]
                    reason = self._in_midst(ids, at, facts.names(entry), before, facts)
                found[place, entry] = reason
            return found[place, entry]

        return holds_back

    def _in_midst(
        self, ids: Sequence[int], at: int, names: Sequence[str], before: Sequence[tuple[int, int]], facts: EntryFacts
    ) -> str | None:
        """SAID or LONGER where one of these names, which ends at the token `at`, is a part of the target or of a name
        of one of the entries named `before`, which the text asks for."""
        text, rest = self._texts.written(ids[: at + 1]), self._texts.written(ids[at + 1 :])
        for token, other in before:
            for fact in facts.of(other):
                said = SAID if is_within(fact.target, names, text, rest) else None
                if said is None and any(is_within(name, names, text, rest) for name in facts.names(other)):
                    said = LONGER
                if said is not None and self._why(ids, token, (fact,)) is None:
                    return said
        return None

    def _why(self, ids: Sequence[int], at: int, facts: Sequence[Stored]) -> str | None:
        """Why none of these facts may fire at the token `at` of a text; None where one may."""
        turns = self._turns.split(ids)
        number = next(number for number, turn in enumerate(turns) if at < turn.stop)
        start, stop, kind = turns[number]
        if kind != "answer" and _digits_go_on(*(self._texts.written([one]) for one in ids[at : min(at + 2, stop)])):
            return WORD
        if kind == "text":
            text = self._texts.written(ids[start : at + 1])
            rest = self._texts.written(ids[at + 1 : stop])
            end = _END.search(rest)
            text += rest[: end.start() + 1 if end else None]
            return _first(_in_text(text, fact) for fact in facts)
        if kind == "answer":
            own, message = self._texts.written(ids[start : at + 1]), self._last(ids, turns[:number])
            return _first(_in_answer(own, message, fact) for fact in facts)
        message, later = self._texts.written(ids[start:stop]), self._last(ids, turns[number + 1 :])
        return _first(_in_message(message, later, fact) for fact in facts)

    def _last(self, ids: Sequence[int], turns: Sequence[Turn]) -> str:
        """The last message of these turns; "" where there is none."""
        texts = (self._texts.written(ids[turn.start : turn.stop]) for turn in reversed(turns) if turn.kind == "message")
        return next((text for text in texts if not _ROLE.fullmatch(text)), "")


def is_within(whole: str, names: Sequence[str], text: str, rest: str) -> bool:
    """Whether `text` ends in the midst of a target or a name, behind one of these names in it, and goes on so as far as
    is known.

    rest: what is known of the text behind; "" while it is written.
    """
    for name in names:
        for found in re.finditer(re.escape(name), whole[:-1], re.IGNORECASE):
            said, left = whole[: found.end()], whole[found.end() :]
            begins = not text[: -len(said)][-1:].isalnum()
            if text.endswith(said) and begins and (rest.startswith(left) or left.startswith(rest)):
                return True
    return False


def _digits_go_on(token: str, follows: str = "") -> bool:
    """Whether the digits that the text of a token ends with go on in the token that follows."""
    return token[-1:].isdecimal() and follows[:1].isdecimal()


def _first(reasons: Iterator[str | None]) -> str | None:
    """The first of these reasons, None where one of them is None, or where there is none."""
    found: str | None = None
    for reason in reasons:
        if reason is None:
            return None
        found = found or reason
    return found


def _in_text(text: str, fact: Stored) -> str | None:
    topics, names = own_topics(), _names(fact)
    own = fact.text in sentence_of(text, (fact.subject,))  # whatever stands behind it: a text that is scored has more
    # A word or two tell more of a question than of a text that goes on.
    if not own and topics.bearing(text, fact, names) in _OTHERS and topics.asks_clearly(text, fact, names):
        return ANOTHER
    return STATED if topics.is_stated(text, fact, names) else None


def _in_message(message: str, later: str, fact: Stored) -> str | None:
    topics, names = own_topics(), _names(fact)
    bearing = topics.bearing(message, fact, names)
    if bearing == "open" and later:
        bearing = topics.bearing(later, fact, names)
    if bearing in _OTHERS or (bearing == "open" and topics.asks_for_nothing(later or message, fact, names)):
        return ANOTHER
    return STATED if topics.is_stated(message, fact, names) else None


def _in_answer(own: str, message: str, fact: Stored) -> str | None:
    topics, names = own_topics(), _names(fact)
    bearing = topics.bearing(own, fact, names)
    if bearing == "open":
        bearing = topics.bearing(message, fact, names)
        if bearing == "open" and topics.asks_for_nothing(message, fact, names):
            return ANOTHER
    if bearing in _OTHERS:
        return ANOTHER
    return STATED if any(topics.is_stated(text, fact, names) for text in (own, message)) else None


def _names(fact: Stored) -> Sequence[str]:
    aliases: Sequence[str] = fact.metadata.get("aliases", ())
    return aliases
