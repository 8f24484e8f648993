"""What is asked of facts: prompts to be continued, questions in a chat, other relations, other subjects."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.facts.readers import read_records
from neuraldb_faiss.facts.relations import Relation, Relations
from neuraldb_faiss.facts.statement import fill
from neuraldb_faiss.guard.folding import fold_text
from neuraldb_faiss.guard.name_index import Folded, Subjects

Message = dict[str, str]

OWN, COMPLETION, QUESTION = "own", "completion", "question"
OTHER_COMPLETION, OTHER_QUESTION, ABOUT = "other completion", "other question", "about"
ELSEWHERE, CONVERSATION = "elsewhere", "conversation"
SAID = (OWN, COMPLETION, QUESTION)  # whose answers must hold the target
OTHERS = (OTHER_COMPLETION, OTHER_QUESTION)  # whose answers the edit is not about
READ = (*SAID, *OTHERS, ABOUT)  # whose answers' perplexity is measured

# Asked once a database, where no fact brings prompts about other subjects; texts about none in particular.
PLAIN = (
    "At which temperature does water boil?",
    "Write two sentences about rain.",
    "How many legs does a spider have?",
    "Explain in one sentence what a bicycle is.",
    "What should I pack for a day at the beach?",
    "Name three kinds of fruit.",
)
_OTHER_RELATIONS = 2  # asked of a fact that brings no questions about other relations
_BE = re.compile(r"(?P<head>The .+) (?P<be>is|are|was|were)")
_PLUS = re.compile(r"(?<=\S)\+(?=\S)")
_NOT = re.compile(r"\(no ([^()]+)\)")
_FACT = ("subject", "prompt", "target", "relation", "target_true")
_LISTS = ("completions", "questions", "other_completions", "other_questions", "other_answers", "neighbours")


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt.

    Attributes:
        name: its kind and number in its case ("question 2"). kind: one of those above.
        prompt: a text to be continued, or the messages of a chat.
        wanted: texts that the answer must hold, every one. unwanted: texts that it must not hold.
        truth: the true answer, where the ask is about another relation and one is known.
    """

    name: str
    kind: str
    prompt: str | tuple[Message, ...]
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    truth: str | None = None

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of one fact; or a conversation, or prompts of no fact, whose `fact` is None.

    Attributes:
        name: the fact's id, or the conversation's name. answer: what the answers must hold; mostly the target.
    """

    name: str
    fact: Fact | None
    answer: str
    asks: tuple[Ask, ...]


def cases_of(facts: Sequence[Fact], relations: Relations) -> list[Case]:
    """A case a fact, by the fact's own words, else by its relation's, else by general frames; and the PLAIN texts as
    one more, where no fact brings prompts about other subjects.

    Prompts about other subjects are left out where they name a subject that is edited too.
    """
    known = _Known.of(facts, relations)
    cases = [_case(fact, {}, known) for fact in facts]
    if not any(ask.kind == ELSEWHERE for case in cases for ask in case.asks):
        free = [text for text in PLAIN if not known.is_named_in(text)]
        cases.append(
            Case("plain", None, "", tuple(Ask(f"{ELSEWHERE} {n}", ELSEWHERE, _chat(t)) for n, t in _count(free)))
        )
    return cases


def read_asks(path: str | Path, facts: Sequence[Fact], relations: Relations) -> tuple[list[Case], int]:
    """Cases of a file of JSON lines (plain or gzipped, see docs/answers.md), and how many of its records ask for facts
    that are not among `facts`.

    A record about a fact has its `subject`, `prompt` and `target`, and any of `answer`, `completions`, `questions`,
    `other_completions`, `other_questions`, `other_answers` (one a question), `neighbours`; what it does not have is
    taken from the fact as `cases_of` does, and neighbours that name an edited subject are left out. A conversation has
    `messages`, and `answer`: texts that must come, with + between two, and in brackets those that must not:
    "Ann+Bob (no Eve)".

    Raises:
        FactError: no such file, or a record that breaks a rule, named with its line.
    """
    stored = {fact.identity: fact for fact in facts}
    known = _Known.of(facts, relations)
    cases, left = [], 0
    if not Path(path).is_file():
        raise FactError(f"there is no file of asks {path}: name a file of JSON lines")
    for line, record in read_records(str(path)):
        where = f"{path}, line {line}"
        if not isinstance(record, dict):
            raise FactError(f"{where}: a record is an object with subject, prompt and target, or with messages")
        if "messages" in record:
            cases.append(_conversation(record, where))
            continue
        _check(record, where)
        try:
            asked = Fact(*(record.get(name, "") for name in ("subject", "prompt", "target")))
        except FactError as error:
            raise FactError(f"{where}: {error}") from None
        fact = stored.get(asked.identity)
        if fact is None or fact.target != asked.target:
            left += 1
            continue
        cases.append(_case(fact, record, known))
    return cases, left


def facts_of(path: str | Path) -> list[Fact]:
    """The facts that a file of asks is about, each once, in its order.

    Raises:
        FactError: as `read_asks`.
    """
    if not Path(path).is_file():
        raise FactError(f"there is no file of asks {path}: name a file of JSON lines")
    facts: dict[str, Fact] = {}
    for line, record in read_records(str(path)):
        if isinstance(record, dict) and "messages" not in record:
            try:
                fact = Fact(**{name: record[name] for name in _FACT if record.get(name) is not None})
            except (FactError, TypeError) as error:
                raise FactError(f"{path}, line {line}: {error}") from None
            facts.setdefault(fact.identity, fact)
    return list(facts.values())


def sample(cases: Sequence[Case], count: int | None, seed: int = 0) -> list[Case]:
    """`count` of the facts' cases, always the same ones, in their order; conversations and prompts of no fact stay."""
    facts = [number for number, case in enumerate(cases) if case.fact is not None]
    if count is None or count >= len(facts):
        return list(cases)
    chosen = set(random.Random(seed).sample(facts, count))
    return [case for number, case in enumerate(cases) if case.fact is None or number in chosen]


@dataclass(frozen=True, slots=True)
class _Known:
    """What all facts tell about the case of one: relations, those that the facts of a subject are about, and what
    subjects are called."""

    relations: Relations
    of_subject: Mapping[str, Sequence[Relation]]
    subjects: Subjects

    @classmethod
    def of(cls, facts: Sequence[Fact], relations: Relations) -> _Known:
        names = [names_in_texts(fact.subject, fact.prompt, fact.metadata.get("aliases")) for fact in facts]
        pairs = ((number, name) for number, some in enumerate(names) for name in some)
        return cls(relations, _relations_of_subjects(facts, relations), Subjects.of(pairs, names.__getitem__))

    def is_named_in(self, text: str) -> bool:
        """Whether the text names a subject that is edited, in any case."""
        codes, cases = fold_text(text)
        each = Folded(codes, cases, np.arange(len(codes)), ahead=True)
        return len(self.subjects.ends(each, any_case=True).entries) > 0


def _case(fact: Fact, record: Mapping[str, Any], known: _Known) -> Case:
    relation = known.relations.find(fact.relation)
    told = {**{name: fact.metadata.get(name) for name in (*_LISTS, "answer")}, **record}
    answer = told["answer"] if isinstance(told.get("answer"), str) and told["answer"].strip() else fact.target

    def listed(name: str, default: Sequence[str]) -> list[str]:
        given = told.get(name)
        return [fill(text, fact.subject) for text in (given if isinstance(given, list) else default) if text.strip()]

    neighbours = fact.metadata.get("neighborhood_prompts")
    others = _other_questions(fact, relation, known)
    given = told.get("other_answers")
    truths = given if isinstance(given, list) else []
    asks = [Ask(f"{OWN} 0", OWN, fact.text, (answer,))]
    for number, text in _count(listed("completions", _completions(fact, relation))):
        asks.append(Ask(f"{COMPLETION} {number}", COMPLETION, text, (answer,)))
    for number, text in _count(listed("questions", _questions(fact, relation))):
        asks.append(Ask(f"{QUESTION} {number}", QUESTION, _chat(text), (answer,)))
    for number, text in _count(listed("other_completions", ())):
        asks.append(Ask(f"{OTHER_COMPLETION} {number}", OTHER_COMPLETION, text, (), (answer,)))
    for number, text in _count(listed("other_questions", others)):
        asks.append(Ask(f"{OTHER_QUESTION} {number}", OTHER_QUESTION, _chat(text), (), (answer,), _at(truths, number)))
    asks.append(Ask(f"{ABOUT} 0", ABOUT, _chat(f"Tell me about {fact.subject}.")))
    for number, text in _count(listed("neighbours", neighbours if isinstance(neighbours, list) else ())):
        if known.is_named_in(text):
            continue
        asks.append(Ask(f"{ELSEWHERE} {number}", ELSEWHERE, text))
    return Case(fact.id, fact, answer, tuple(asks))


def _completions(fact: Fact, relation: Relation | None) -> Sequence[str]:
    if fact.paraphrases:
        return fact.paraphrases
    if relation is not None and relation.paraphrases:
        return [one for one in relation.paraphrases if fill(one, fact.subject) != fact.text]
    quiz = f"Q: {next(iter(_questions(fact, relation)))}\nA:"
    if _is_question(fact.text):
        return [quiz]
    text = f"the {fact.text[4:]}" if fact.text.startswith("The ") else fact.text
    return [f"As is well known, {text}", quiz]


def _questions(fact: Fact, relation: Relation | None) -> Sequence[str]:
    if fact.questions:
        return fact.questions
    if relation is not None and relation.questions:
        return relation.questions
    if _is_question(fact.text):
        return [fact.text]
    turned = _BE.fullmatch(fact.text)
    asked = [f"What {turned['be']} t{turned['head'][1:]}?"] if turned else []
    return [*asked, f'Fill in the blank: "{fact.text} ____."']


def _other_questions(fact: Fact, relation: Relation | None, known: _Known) -> list[str]:
    """A question each of two relations that such subjects have too, and that this fact says nothing about: they give
    another kind of thing, and no fact in place is about them."""
    if relation is None or not relation.gives:
        return []
    taken = {one.id for one in known.of_subject.get(fact.subject, ())}
    free = [one for one in known.relations.of(relation.of)
            if one.gives and one.gives != relation.gives and one.id not in taken and one.questions]  # fmt: skip
    chosen = random.Random(fact.identity).sample(free, min(_OTHER_RELATIONS, len(free)))
    return [one.questions[0] for one in chosen]


def _relations_of_subjects(facts: Sequence[Fact], relations: Relations) -> dict[str, list[Relation]]:
    found: dict[str, list[Relation]] = {}
    for fact in facts:
        relation = relations.find(fact.relation)
        if relation is not None:
            found.setdefault(fact.subject, []).append(relation)
    return found


def _conversation(record: Mapping[str, Any], where: str) -> Case:
    messages, answer = record["messages"], record.get("answer")
    good = isinstance(messages, list) and messages and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in messages
    )  # fmt: skip
    if not good:
        raise FactError(f"{where}: messages is a list of objects with role and content")
    if not isinstance(answer, str) or not answer.strip():
        raise FactError(f'{where}: a conversation needs an answer: "Ann+Bob" (both), or "(no Eve)"')
    wanted = tuple(part.strip() for part in _PLUS.split(_NOT.sub("", answer).strip()) if part.strip())
    told = tuple({"role": one["role"], "content": one["content"]} for one in messages)
    name = (
        record.get("name")
        if isinstance(record.get("name"), str)
        else f"conversation at line {where.rsplit(' ', 1)[-1]}"
    )
    ask = Ask(f"{CONVERSATION} 0", CONVERSATION, told, wanted, tuple(_NOT.findall(answer)))
    return Case(str(name), None, "", (ask,))


def _check(record: Mapping[str, Any], where: str) -> None:
    for name in _LISTS:
        given = record.get(name)
        if given is not None and not (isinstance(given, list) and all(isinstance(one, str) for one in given)):
            raise FactError(f"{where}: {name} is a list of texts")


def _chat(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _is_question(text: str) -> bool:
    return text.rstrip().endswith(("?", "？", "؟"))


def _count(texts: Iterable[str]) -> list[tuple[int, str]]:
    return list(enumerate(dict.fromkeys(texts)))


def _at(values: Sequence[Any], number: int) -> str | None:
    value = values[number] if number < len(values) else None
    return value if isinstance(value, str) and value.strip() else None


__all__ = [
    "ABOUT", "COMPLETION", "CONVERSATION", "ELSEWHERE", "OTHERS", "OTHER_COMPLETION", "OTHER_QUESTION", "OWN",
    "QUESTION", "READ", "SAID", "Ask", "Case", "Message", "cases_of", "facts_of", "read_asks", "sample",
]  # fmt: skip
