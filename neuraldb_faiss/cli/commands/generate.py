"""`neuraldb generate`: a prompt continued with a database attached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import console, emit_json, fact_summaries, plain, say

if TYPE_CHECKING:
    from neuraldb_faiss.config import DatabaseConfig
    from neuraldb_faiss.inference.ask import Answer, Fired
    from neuraldb_faiss.store import StoredFact


@dataclass(frozen=True)
class _Answering:
    """What is generated and shown: also the base model's answer, in the chat template, and marks where facts fired;
    delivery: how facts reach the model, where not as the database says."""

    compare: bool
    chat: bool
    max_new_tokens: int
    mark: bool
    delivery: str | None

    def deliver(self, config: DatabaseConfig) -> str:
        """What is asked for, or what the database says; "auto" is for conversations."""
        wanted = self.delivery or config.delivery
        if wanted == "auto" and not self.chat and self.delivery is None and config.has_residuals:
            return "residual"
        return wanted


@click.command(epilog=opt.example("neuraldb generate db 'The Eiffel Tower is in the city of' --compare"))
@opt.db
@click.argument("prompt")
@opt.model
@opt.bundle(
    "answering",
    _Answering,
    click.option("--compare", is_flag=True, help="Also print the answer of the model without the database."),
    click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template."),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        metavar="N",
        help="Maximum length of the answer.",
    ),
    click.option("--explain", "mark", is_flag=True, help="Mark in the text where a fact fired."),
    opt.delivery,
)
@opt.gate_choice
@opt.as_json
def generate(
    db: Path, prompt: str, model: ModelChoice, answering: _Answering, gate: opt.GateChoice, as_json: bool
) -> None:  # fmt: skip
    """Continue PROMPT greedily with a database attached, and list the facts that fired or were stated in the prompt.

    How facts reach the model is the database's setting, or --delivery; "auto" states them in chats and lets them fire
    elsewhere.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        loaded, tokenizer = model.load_for(database)
        from neuraldb_faiss.inference.ask import ask

        how = answering.deliver(database.config)
        with database.attach(
            loaded, tokenizer, gamma=gate.gamma, guard=gate.guard, search=gate.index, delivery=how
        ) as handle:
            answer = ask(
                database,
                handle,
                loaded,
                tokenizer,
                prompt,
                compare=answering.compare,
                chat=answering.chat,
                max_new_tokens=answering.max_new_tokens,
                delivery=None,
            )
    if as_json:
        emit_json(_answer_json(answer))
    else:
        _print_answer(answer, answering.mark)


def _answer_json(answer: Answer) -> dict[str, Any]:
    base = {} if answer.base is None else {"base": answer.base}
    fired = [
        {
            "entry": one.entry,
            "positions": list(one.positions),
            "score": round(one.score, 6),
            "facts": fact_summaries(one.facts),
        }
        for one in answer.fired
    ]
    return {
        "prompt": answer.prompt,
        **base,
        "edited": answer.edited,
        "delivery": answer.delivery,
        "stated": fact_summaries(answer.stated),
        "fired": fired,
        "tokens": list(answer.tokens),
    }


def _print_answer(answer: Answer, mark: bool) -> None:
    from rich.text import Text

    out = console()
    if answer.base is not None:
        out.print(
            Text.assemble(("base    ", "dim"), f"{_shown(answer.prompt)}{_shown(answer.base)}"),
            soft_wrap=True,
        )
    label = ("edited  ", "dim") if answer.base is not None else ""
    text = _marked(answer) if mark else Text.assemble(_shown(answer.prompt), (_shown(answer.edited), "bold"))
    out.print(Text.assemble(label, text), soft_wrap=True)
    for one in answer.fired:
        out.print(Text.assemble(("fired   ", "dim"), _fired_line(one)), soft_wrap=True)
    for fact in answer.stated:
        out.print(Text.assemble(("stated  ", "dim"), plain(fact.statement)), soft_wrap=True)
    if not answer.fired and not answer.stated:
        what = {"residual": "fired", "text": "was stated", "both": "fired or was stated"}[answer.delivery]
        say(f"no fact {what}: the answer is the model's own")


def _shown(text: str) -> str:
    return "\n".join(plain(line) for line in text.split("\n"))


def _marked(answer: Answer) -> Any:
    """Prompt and answer, with [fact cosine] behind every token where a fact fired."""
    from rich.text import Text

    at = {position: one for one in answer.fired for position in one.positions}
    text = Text()
    for position, token in enumerate(answer.tokens):
        if position in at:
            one = at[position]
            text.append(_shown(token), "bold green")
            text.append(f"[→ {_targets(one.facts)} {one.score:.2f}]", "green")
        else:
            text.append(_shown(token))
    return text


def _targets(facts: tuple[StoredFact, ...]) -> str:
    return " | ".join(plain(fact.target) for fact in facts)


def _fired_line(one: Fired) -> str:
    where = ", ".join(map(str, one.positions))
    facts = "; ".join(f"{plain(fact.subject)}: {plain(fact.template)} → {plain(fact.target)}" for fact in one.facts)
    return f"{facts} (cosine {one.score:.3f}, at token {where})"
