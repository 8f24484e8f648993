"""Residuals at the answer's own place: at a prompt's last token, in an upper layer, where it asks for the fact.

The text decides what is added, so there are no keys and no cosines: `Grounder.asked` finds the facts that a prompt asks
for, by the names and the words in it. Nothing is added while the model writes its answer. What was tried, and what came
out: docs/results/answers-place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuraldb_faiss.answers.deliveries import Delivery, Placed, Prompt
from neuraldb_faiss.answers.run import PromptTexts
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.relations import Relation, own_relations
from neuraldb_faiss.facts.statement import fill, stopped
from neuraldb_faiss.facts.topics import own_topics
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.interventions import frozen, on_output
from neuraldb_faiss.models.sites import FFNSite, find_site, layer_count
from neuraldb_faiss.models.tokenization import chat_text, encode_prompt, has_chat, tokenize
from neuraldb_faiss.solver.batch import Batch, Row
from neuraldb_faiss.solver.forward.base import Forward
from neuraldb_faiss.solver.forward.packed import Heads
from neuraldb_faiss.solver.forward.strategy import Ways
from neuraldb_faiss.solver.optimizer import Normalised, project
from neuraldb_faiss.solver.sampled import ROUND

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.edits.pipeline import Report
    from neuraldb_faiss.research.evaluation.methods import Stage

NAME = "answer-place"
_QUESTIONS = 4  # that the fact's relation and its prompt give, at most
_PARAPHRASES = 2
_ASKS = re.compile(r"The (?P<what>.+) (?P<be>is|are|was|were)(?: (?:at|in|on))?(?: the (?:city|country|year) of)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """How residuals are solved: `method_settings` under the method's name.

    Attributes:
        layer: to whose output they are added, from 0; -1 for two thirds of the way up.
        lr: length of the first step, in units of ||h||, the length of that output behind the raw prompt.
        clamp: bound on a residual's length in the same unit.
        steps: at most.
        stop_loss: mean nats a token of all rows, below which no more steps are made.
    """

    layer: int = -1
    lr: float = 0.6
    clamp: float = 1.2
    steps: int = 32
    stop_loss: float = 0.1


def delivery(
    db: NeuralDB, facts: Sequence[Fact], model: Any, tokenizer: Any, given: Mapping[str, Any], stage: Stage
) -> Delivery:
    """Facts of a database at the answer's place; its own keys and residuals have no part in it.

    Args:
        given: fields of `Settings`.

    Raises:
        EvaluationError: another setting than these. ModelError: no such layer.
    """
    try:
        settings = Settings(**given)
    except TypeError:
        names = ", ".join(asdict(Settings()))
        raise EvaluationError(f"the settings of {NAME} are {names}, not {', '.join(given)}") from None
    if settings.layer < 0:
        settings = replace(settings, layer=round(layer_count(model) * 2 / 3))
    site = find_site(model, settings.layer)

    @contextmanager
    def place() -> Iterator[Placed]:
        with stage(f"{NAME}: putting facts in place", "fact") as report:
            residuals = solve(model, tokenizer, site, facts, db.config.prefixes, settings, report)
        solved = {fact.identity: one for fact, one in zip(facts, residuals, strict=True)}
        with AtPromptEnds(Grounder(db.snapshot), solved, model, tokenizer, site) as ends:
            yield Placed(ends.expect, lambda _: True, ends.disabled)

    return Delivery(NAME, asdict(settings), place)


class AtPromptEnds:
    """Adds, in forwards over a prompt that was expected, the residual of the fact that it asks for at its last token.

    Where a prompt asks for several facts, that of the one named nearest to its end.
    """

    def __init__(
        self, grounder: Grounder, residuals: Mapping[str, Tensor], model: Any, tokenizer: Any, site: FFNSite
    ) -> None:
        """residuals: float32 [d2] by the facts' identities. site: where they are added, as the FFN's output."""
        self._grounder, self._residuals, self._d2 = grounder, residuals, site.d2
        self._model, self._module, self._texts = model, site.module, PromptTexts(tokenizer)
        self._expected: dict[tuple[int, ...], Tensor] = {}  # by a prompt's token ids
        self._added: Tensor | None = None  # [B, T, d2], in the forward that runs
        self._off = False
        self._hooks = ExitStack()

    def expect(self, prompt: Prompt) -> Prompt:
        """The same prompt; the next forwards over it add what it asks for."""
        asked = self._grounder.asked(prompt)
        found = next((self._residuals[one.identity] for one in asked if one.identity in self._residuals), None)
        if found is not None:
            self._expected[tuple(self._texts.encode(prompt))] = found
        return prompt

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Add nothing inside the block."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

    def __enter__(self) -> AtPromptEnds:
        begun = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._hooks.callback(begun.remove)
        self._hooks.enter_context(on_output(self._module, self._add))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find the prompts that rows begin with; a row of one token goes on behind a cache."""
        ids: Tensor = kwargs["input_ids"]
        self._added = None
        if self._off or ids.shape[1] < 2:
            return
        mask = kwargs["attention_mask"].bool().cpu()
        for row, tokens in enumerate(ids.cpu()):
            places = mask[row].nonzero()[:, 0]
            text = tuple(tokens[places].tolist())
            for size in range(len(text), 0, -1):
                if (residual := self._expected.get(text[:size])) is not None:
                    if self._added is None:
                        self._added = torch.zeros(*ids.shape, self._d2)
                    self._added[row, places[size - 1]] = residual
                    break

    def _add(self, output: Tensor) -> Tensor | None:
        return None if self._added is None else output + self._added.to(output.device, output.dtype)


def solve(
    model: Any, tokenizer: Any, site: FFNSite, facts: Sequence[Fact], prefixes: Sequence[str], settings: Settings,
    report: Report,
) -> list[Tensor]:  # fmt: skip
    """A residual a fact, float32 [d2]: in steps, each over the raw prompt, a message and one more text in turn.

    Minimises the mean negative log-likelihood of the answers in `rows_of`. Every `ROUND` steps all rows judge, and
    the best of these looks is kept.
    """
    residuals: list[Tensor] = []
    ways = Ways(model, site, None, Heads(model, []))
    with frozen(model):
        for number, fact in enumerate(facts):
            report(Progress(number, len(facts), 0, None))
            batch = Batch((tuple(rows_of(model, tokenizer, fact, prefixes)),))
            forward = ways.start(ways.fastest(batch, settings.clamp), batch)
            residuals.append(_solved(forward, batch, settings, site.d2))
    report(Progress(len(facts), len(facts), 0, None))
    return residuals


def _solved(forward: Forward, batch: Batch, settings: Settings, d2: int) -> Tensor:
    device = forward.h_norm.device
    r = best = torch.zeros(1, 1, d2, device=device)
    least = float("inf")
    optimizer = Normalised(r, settings.lr)
    for step in range(settings.steps):
        rows = batch.sample(step)
        r.requires_grad_(True)
        loss = _loss(forward.select(rows), batch.select(rows), r)
        (grad,) = torch.autograd.grad(loss, r)
        r = project(optimizer.update(r.detach(), grad, forward.h_norm), settings.clamp * forward.h_norm)
        if (step + 1) % ROUND == 0 or step + 1 == settings.steps:
            with torch.no_grad():
                now = float(_loss(forward, batch, r))
            if now < least:
                least, best = now, r
            if now < settings.stop_loss:
                break
    return best[0, 0].cpu()


def _loss(forward: Forward, batch: Batch, r: Tensor) -> Tensor:
    picks = batch.picks(r.device)
    nll = F.cross_entropy(forward.logits(r).float(), picks.target, reduction="none")
    return (nll * picks.share).sum()


def rows_of(model: Any, tokenizer: Any, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """What a fact is solved on. `last` is the prompt's last token.

    Without its own `questions` and `paraphrases`, by which it may be judged: its prompt, raw, behind prefixes and in
    general frames, and the wordings of a relation. The target follows; in messages and behind "A:" the statement.
    Messages end with their turn.
    """
    relation = _relation_of(fact)
    asks = _questions(fact, relation)
    target, statement = fact.separator + stopped(fact.target), f" {fact.statement}"
    low = f"the {fact.text[4:]}" if fact.text.startswith("The ") else fact.text
    told = [(fact.text, target), *((f"{prefix}. {fact.text}", target) for prefix in prefixes)]
    told += [(f"As is well known, {low}", target), (f"Q: {asks[0]}\nA:", statement)]
    told += [(f"Q: {ask}\nA:", f" {stopped(fact.target)}") for ask in asks[1:2]]
    said = relation.paraphrases[:_PARAPHRASES] if relation is not None else ()
    told += [(fill(one, fact.subject), target) for one in said]
    rows = [_row(tokenizer, (prompt, answer), number, True, None) for number, (prompt, answer) in enumerate(told)]
    if has_chat(tokenizer):
        ends = end_ids(model, tokenizer)
        for number, ask in enumerate([*asks, fact.text]):
            context = len(told) + number - 1 if number else 0
            text = chat_text(tokenizer, [ask]), fact.statement + _turn_end(tokenizer, ask, fact.statement)
            rows.append(_row(tokenizer, text, context, False, ends))
    return [row for row in rows if row is not None]


def _row(
    tokenizer: Any, text: tuple[str, str], context: int, special: bool, ends: Collection[int] | None
) -> Row | None:
    """A prompt and its answer; None where tokens do not part them. ends: the answer's tokens stop behind one of
    these; None keeps all."""
    prompt = encode_prompt(tokenizer, text[0], special=special)
    ((ids, _),) = tokenize(tokenizer, ["".join(text)], special=special)
    if list(ids[: len(prompt)]) != prompt or len(ids) == len(prompt):
        return None
    stop = next((at + 1 for at in range(len(prompt), len(ids)) if ends and ids[at] in ends), len(ids))
    return Row(0, 0, not context, ids[: stop - 1], len(prompt) - 1, ids[len(prompt) : stop], context=context)


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
    return asks[:_QUESTIONS] or [f'Fill in the blank: "{fact.text} ____."', f"Complete: {fact.text}"]
