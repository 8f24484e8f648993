"""Texts that a residual at the answer's place is solved on: a fact's prompt, other ways of asking for it, and chats."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.relations import Relation, own_relations
from neuraldb_faiss.facts.statement import fill, stopped
from neuraldb_faiss.facts.topics import own_topics
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.tokenization import chat_text, encode_prompt, has_chat, tokenize
from neuraldb_faiss.solver.batch import Row

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

QUESTIONS = 4  # of a fact, at most
PARAPHRASES = 2
_ASKS = re.compile(r"The (?P<what>.+) (?P<be>is|are|was|were)(?: (?:at|in|on))?(?: the (?:city|country|year) of)?")


def answer_rows(
    model: Any, tokenizer: Any, group: int, number: int, fact: Fact, prefixes: Sequence[str]
) -> list[Row]:  # fmt: skip
    """Rows of one fact, the raw prompt first; `last` is the last token of what asks.

    The prompt stands alone, behind prefixes and in general frames, beside wordings of the relation that the fact names,
    or else that its words are of. What follows is the target and a full stop, and behind "A:" and in chats the
    statement; a chat's answer ends with its turn. The fact's own `questions` and `paraphrases` are left out: how it is
    judged by them shall tell how it does on words that nobody gave.

    Raises:
        FactError: the tokens of the prompt and of the target cannot be told apart.
    """
    relation = _relation_of(fact)
    asks = _questions(fact, relation)
    target, statement = fact.separator + stopped(fact.target), f" {fact.statement}"
    low = f"the {fact.text[4:]}" if fact.text.startswith("The ") else fact.text
    told = [(fact.text, target), *((f"{prefix}. {fact.text}", target) for prefix in prefixes)]
    told += [(f"As is well known, {low}", target), (f"Q: {asks[0]}\nA:", statement)]
    told += [(f"Q: {ask}\nA:", f" {stopped(fact.target)}") for ask in asks[1:2]]
    said = relation.paraphrases[:PARAPHRASES] if relation is not None else ()
    told += [(fill(one, fact.subject), target) for one in said]
    texts = [(prompt, answer, at, True) for at, (prompt, answer) in enumerate(told)]
    ends: Collection[int] = ()
    if has_chat(tokenizer):
        ends = end_ids(model, tokenizer)
        for at, ask in enumerate([*asks, fact.text]):
            answer = fact.statement + _turn_end(tokenizer, ask, fact.statement)
            texts.append((chat_text(tokenizer, [ask]), answer, len(told) + at - 1 if at else 0, False))
    rows: list[Row] = []
    for prompt, answer, context, special in texts:
        ids = encode_prompt(tokenizer, prompt, special=special)
        ((whole, _),) = tokenize(tokenizer, [prompt + answer], special=special)
        parted = list(whole[: len(ids)]) == ids and 0 < len(ids) < len(whole)
        if not parted and rows:
            continue
        if not parted:
            raise FactError(f"the tokens of {fact.text!r} and of its target {fact.target!r} run into each other")
        stop = next((at + 1 for at in range(len(ids), len(whole)) if not special and whole[at] in ends), len(whole))
        rows.append(Row(
            group, number, not rows, whole[: stop - 1], len(ids) - 1, whole[len(ids) : stop], context=context
        ))  # fmt: skip
    return rows


def _turn_end(tokenizer: Any, ask: str, answer: str) -> str:
    """What the chat template writes behind an answer; "" where it changes the answer."""
    turns = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    begun = chat_text(tokenizer, [ask]) + answer
    return whole.removeprefix(begun) if whole.startswith(begun) else ""


def _relation_of(fact: Fact) -> Relation | None:
    """The wording of the relation that a fact names, else of the one whose words its prompt has."""
    relations = own_relations()
    named = relations.find(fact.relation)
    likest = own_topics().likest(fact)
    return named or (relations.by_id[likest] if likest is not None else None)


def _questions(fact: Fact, relation: Relation | None) -> list[str]:
    turned = _ASKS.fullmatch(fact.text)
    asks = [f"What {turned['be']} the {turned['what']}?"] if turned else []
    asks += [fill(one, fact.subject) for one in relation.questions] if relation is not None else []
    return asks[:QUESTIONS] or [f'Fill in the blank: "{fact.text} ____."', f"Complete: {fact.text}"]
