"""Texts that a residual at the answer's place is solved on: a fact's prompt, other ways of asking for it, and chats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.facts.relations import Relation, own_relations
from neuraldb_faiss.facts.statement import fill, stopped
from neuraldb_faiss.facts.topics import own_topics
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.tokenization import chat_text, encode_pairs, encode_prompt, has_chat, tokenize
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
        FactError: the tokenizer leaves no token for the target.
    """
    relation = _relation_of(fact)
    asks = _questions(fact, relation)
    low = f"the {fact.text[4:]}" if fact.text.startswith("The ") else fact.text
    prompts = [fact.text, *(f"{prefix}. {fact.text}" for prefix in prefixes), f"As is well known, {low}"]
    said = [fill(one, fact.subject) for one in relation.paraphrases[:PARAPHRASES]] if relation is not None else []
    target = stopped(fact.target)
    told = [(prompt, target, fact.separator) for prompt in prompts]
    told.append((f"Q: {asks[0]}\nA:", fact.statement, " "))
    told += [(f"Q: {ask}\nA:", target, " ") for ask in asks[1:2]]
    told += [(prompt, target, fact.separator) for prompt in said]
    texts = encode_pairs(tokenizer, *map(list, zip(*told, strict=True)))
    rows = [_row(group, number, context, ids, start) for context, (ids, start) in enumerate(texts)]
    rows[0] = replace(rows[0], raw=True)
    if has_chat(tokenizer):
        ends = end_ids(model, tokenizer)
        for at, ask in enumerate([*asks, fact.text]):
            message = chat_text(tokenizer, [ask])
            prompt = encode_prompt(tokenizer, message, special=False)
            answer = fact.statement + _turn_end(tokenizer, ask, fact.statement)
            ((ids, _),) = tokenize(tokenizer, [message + answer], special=False)
            start = len(prompt)
            if list(ids[:start]) == prompt and start < len(ids):  # else the template's tokens join the answer's
                stop = next((end + 1 for end in range(start, len(ids)) if ids[end] in ends), len(ids))
                rows.append(_row(group, number, len(texts) + at - 1 if at else 0, ids[:stop], start))
    return rows


def _row(group: int, number: int, context: int, ids: tuple[int, ...], start: int) -> Row:
    """start: where in `ids` the answer begins."""
    return Row(group, number, False, ids[:-1], start - 1, ids[start:], context=context)


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
