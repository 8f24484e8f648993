"""Facts asked as people ask, with every way of putting them in place: completions, chats, what else changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.answers.asks import cases_of, facts_of, read_asks
from neuraldb_faiss.answers.deliveries import Delivery, Placed, Prompt, of_database
from neuraldb_faiss.answers.report import Figure, judge, lights, summarise
from neuraldb_faiss.answers.run import Asker
from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.extras import extra
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.relations import own_relations, read_relations
from neuraldb_faiss.grounding import Wording
from neuraldb_faiss.grounding.chats import grounded, system_role
from neuraldb_faiss.research.baselines.settings import METHODS as EDITORS
from neuraldb_faiss.research.evaluation.methods import facts_identity, make_method
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB

RETRIEVAL = "retrieval"
DEFAULTS = {
    "asks": "",  # file of asks (docs/answers.md), whose facts are edited; else the cases, asked by their own words
    "templates": "",  # wordings of relations, for facts that bring none
    "database": "",  # one that is there already; else the facts are built
    "methods": ["residual", "text", "both", "auto", RETRIEVAL, "memit", "alphaedit", "ft"],
    "length": 40,  # tokens of an answer
    "top": 3,  # statements that plain retrieval puts into a prompt
}


def run(lab: Lab) -> Result:
    config = lab.config
    facts = facts_of(config["asks"])[: config["facts"]] if config["asks"] else lab.facts()
    relations = read_relations(config["templates"]) if config["templates"] else own_relations()
    rows: list[Row] = []
    tables: dict[str, list[Figure]] = {}
    counts: dict[str, Mapping[str, int]] = {}
    with lab.open_database() if config["database"] else lab.database(facts=facts) as db:
        stored = db.facts()
        cases, _ = read_asks(config["asks"], stored, relations) if config["asks"] else (cases_of(stored, relations), 0)
        about = {"model": db.config.model.describe(), **facts_identity(stored)}
        asker = Asker(lab.model, lab.tokenizer, length=config["length"], stage=lab.stage)
        for name in config["methods"]:
            delivery = _delivery(lab, name, db, facts)
            answers = asker.answer(cases, delivery, lab.out / "runs" / f"{name}.jsonl", about)
            reports = [judge(case, answers[case.name]) for case in cases]
            tables[name], counts[name] = summarise(reports, answers), lights(reports)
            rows += [{"method": name, "measure": one.name, "value": one.edited, "base": one.base, "of": one.of}
                     for one in tables[name]]  # fmt: skip
            rows.append({"method": name, "measure": "lights", **counts[name]})
    return Result(rows, _table(tables, counts), {})


def _delivery(lab: Lab, name: str, db: NeuralDB, facts: Sequence[Fact]) -> Delivery:
    if name in DELIVERIES:
        return of_database(db, lab.model, lab.tokenizer, name)
    if name == RETRIEVAL:
        return retrieval(facts, lab.tokenizer, lab.config["top"])
    if name not in EDITORS:
        known = ", ".join((*DELIVERIES, RETRIEVAL, *EDITORS))
        raise EvaluationError(f"unknown method {name!r}: choose one of {known}")
    given = dict(lab.config["method_settings"].get(name, {}))
    if name != "ft":
        given = {"statistics": lab.config["statistics"], "cache": lab.out / "residuals", **given}
    method = make_method(name, db, lab.model, lab.tokenizer, given, facts)

    @contextmanager
    def place() -> Iterator[Placed]:
        with lab.stage(f"{name}: putting facts in place", "fact") as report, method.inside(report):
            yield Placed()

    return Delivery(name, dict(method.identity), place)


def retrieval(facts: Sequence[Fact], tokenizer: Any, top: int) -> Delivery:
    """Plain retrieval: the `top` statements most like a prompt by TF-IDF go before it, whatever it names, in the words
    that the delivery "text" has. A chat is searched by its last message."""
    with extra("eval"):
        from sklearn.feature_extraction.text import TfidfVectorizer
    statements = [fact.statement for fact in facts]
    vectorizer, wording = TfidfVectorizer(stop_words="english"), Wording()
    known = vectorizer.fit_transform(statements)

    def best(asked: str) -> list[str]:
        likeness = (known @ vectorizer.transform([asked]).T).toarray()[:, 0]
        return [statements[number] for number in (-likeness).argsort(kind="stable")[:top]]

    def send(prompt: Prompt) -> Prompt:
        if isinstance(prompt, str):
            return wording.text(best(prompt), chat=False) + prompt
        text = wording.text(best(prompt[-1]["content"]), chat=True)
        return tuple(grounded(prompt, text, system_role(tokenizer)))

    @contextmanager
    def place() -> Iterator[Placed]:
        yield Placed(send, lambda _: False)

    return Delivery(RETRIEVAL, {"top": top, "likeness": "tf-idf"}, place)


def _table(tables: Mapping[str, Sequence[Figure]], counts: Mapping[str, Mapping[str, int]]) -> str:
    """Measures down, methods across; the base model's figures first."""
    every: dict[str, Figure] = {one.name: one for figures in tables.values() for one in figures}
    head = ["measure", "base", *tables, "asks"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for name, figure in every.items():
        values = [next((one.edited for one in figures if one.name == name), None) for figures in tables.values()]
        cells = [_cell(value, figure.share) for value in (figure.base, *values)]
        lines.append(f"| {figure.help} | {' | '.join(cells)} | {figure.of} |")
    shown = ["/".join(map(str, counts[name].values())) for name in tables]
    lines.append(f"| facts green/yellow/red |  | {' | '.join(shown)} |  |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, share: bool) -> str:
    return "" if value is None else f"{100 * value:.0f} %" if share else f"{value:.2f}"
