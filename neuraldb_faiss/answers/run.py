"""Answers of the base model and of a delivery to every ask, in run files that a killed run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.answers.asks import READ, Ask, Case
from neuraldb_faiss.answers.deliveries import Delivery, Placed, Prompt
from neuraldb_faiss.answers.judge import target_place
from neuraldb_faiss.answers.scoring import Told, losses
from neuraldb_faiss.models.decoding import greedy_texts
from neuraldb_faiss.models.tokenization import encode_prompts, has_chat
from neuraldb_faiss.runs import Row, RunWriter, base_path, surroundings

if TYPE_CHECKING:
    from neuraldb_faiss.edits.pipeline import Report

    # Given what is done and what is counted ("fact"), a context that takes progress.
    Stage = Callable[[str, str], AbstractContextManager[Report]]

LENGTH = 40  # tokens of an answer
_CASES = 8  # asked at once; rows are on disk after so many


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to one case, by the asks' names.

    Attributes:
        base, edited: texts. losses: of `base` and `edited` without the target, and of `whole`, the edited answer with
            it: mean nats a token under the base model behind the base's prompt; None where nothing is left to count.
        truths, targets: mean nats a token of the true answer and of the target behind asks with a truth, of "base" and
            "edited".
        sent: what the model got where that was not the ask itself.
    """

    base: Mapping[str, str]
    edited: Mapping[str, str]
    losses: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    truths: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    sent: Mapping[str, Any] = field(default_factory=dict)


class Asker:
    """A model that is asked greedily.

    Attributes:
        length: tokens of an answer, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, *, length: int = LENGTH, stage: Stage | None = None) -> None:
        self.length = length
        self._model, self._tokenizer, self._stage = model, tokenizer, stage or _silent
        self._texts = PromptTexts(tokenizer)

    def answer(
        self, cases: Sequence[Case], delivery: Delivery, out: Path | None, about: Mapping[str, Any]
    ) -> dict[str, Answered]:
        """Ask every case of the base model and of `delivery`.

        Args:
            out: file of the run; None keeps nothing. The base model's answers lie beside it, shared by all deliveries.
            about: JSON values that say which model it is.

        Returns:
            Answers by the cases' names.

        Raises:
            EvaluationError: `out` is another run's.
        """
        asked = hashlib.sha256(json.dumps([asdict(case) for case in cases], sort_keys=True).encode()).hexdigest()
        common = {"measure": "answers", **about, "length": self.length, "cases": len(cases), "asks": asked}
        told = {**common, "method": delivery.name, **delivery.identity}
        with _writer(out and base_path(out, common), {**common, "method": "base"}) as base, _writer(out, told) as run:
            self._ask_base(cases, base)
            self._ask(cases, delivery, run)
            self._read(cases, run)
            return {case.name: _joined(base.rows[case.name], run.rows[case.name]) for case in cases}

    def _ask_base(self, cases: Sequence[Case], run: RunWriter | _Memory) -> None:
        for chunk in self._chunks("asking the base model", cases, run.rows):
            rows = self._rows(chunk, Placed())
            told = [self._texts.told(ask.prompt, row["answers"][ask.name])
                    for case, row in zip(chunk, rows, strict=True) for ask in _read_asks(case)]  # fmt: skip
            found = iter(losses(self._model, self._tokenizer, told))
            for case, row in zip(chunk, rows, strict=True):
                row["losses"] = {ask.name: next(found) for ask in _read_asks(case)}
            run.add(rows)

    def _ask(self, cases: Sequence[Case], delivery: Delivery, run: RunWriter | _Memory) -> None:
        if any(case.name not in run.rows for case in cases):
            with delivery.place() as placed:
                for chunk in self._chunks(f"asking with delivery {delivery.name}", cases, run.rows):
                    run.add(self._rows(chunk, placed))

    def _read(self, cases: Sequence[Case], run: RunWriter | _Memory) -> None:
        """How likely the base model finds the edited answers, without the target and with it."""
        unread = [case for case in cases if "losses" not in run.rows[case.name]]
        for chunk in self._chunks("reading the answers", unread, ()):
            rows, told = [dict(run.rows[case.name]) for case in chunk], []
            for case, row in zip(chunk, rows, strict=True):
                for ask in _read_asks(case):
                    text = row["answers"][ask.name]
                    # The whole target, of which an answer may only need to hold a part ("Lee" of "Ann Lee").
                    place = target_place(text, _target(case), case.answer)
                    told += [self._texts.told(ask.prompt, text, place), self._texts.told(ask.prompt, text)]
            found = iter(losses(self._model, self._tokenizer, told))
            for case, row in zip(chunk, rows, strict=True):
                row["losses"], row["whole"] = {}, {}
                for ask in _read_asks(case):
                    row["losses"][ask.name], row["whole"][ask.name] = next(found), next(found)
            run.add(rows)

    def _chunks(self, doing: str, cases: Sequence[Case], done: Any) -> Iterator[list[Case]]:
        from neuraldb_faiss.edits.pipeline import Progress

        left = [case for case in cases if case.name not in done]
        if not left:
            return
        with self._stage(doing, "fact") as report:
            report(Progress(0, len(left), 0, None))
            for at in range(0, len(left), _CASES):
                yield left[at : at + _CASES]
                report(Progress(min(at + _CASES, len(left)), len(left), 0, None))

    def _rows(self, chunk: Sequence[Case], placed: Placed) -> list[Row]:
        """One row a case: the model's answers, and how likely it finds truths and targets behind asks that have
        one."""
        asks = [(case, ask) for case in chunk for ask in case.asks]
        sent = {id(ask): placed.send(ask.prompt) for _, ask in asks}
        answers: dict[int, str] = {}
        scores: dict[int, tuple[float | None, float | None]] = {}
        for edited in (True, False):
            some = [(case, ask) for case, ask in asks if placed.edits(ask.prompt) == edited]
            if not some:
                continue
            with nullcontext() if edited else placed.disabled():
                ids = [self._texts.encode(sent[id(ask)]) for _, ask in some]
                said = greedy_texts(self._model, self._tokenizer, ids, self.length)
                answers |= {id(ask): text for (_, ask), text in zip(some, said, strict=True)}
                known = [(case, ask) for case, ask in some if ask.truth is not None and case.fact is not None]
                told = [self._texts.told(sent[id(ask)], text, spaced=True) for case, ask in known
                        for text in (str(ask.truth), _target(case))]  # fmt: skip
                found = losses(self._model, self._tokenizer, told)
                scores |= {id(ask): (found[2 * n], found[2 * n + 1]) for n, (_, ask) in enumerate(known)}
        return [_row(case, answers, scores, sent) for case in chunk]


class _Memory:
    """Rows of a run that no file keeps."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, rows: Sequence[Row]) -> None:
        self.rows |= {row["case"]: row for row in rows}

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _writer(path: Path | None, identity: Mapping[str, Any]) -> RunWriter | _Memory:
    return _Memory() if path is None else RunWriter(path, identity, surroundings())


def _silent(doing: str, noun: str) -> AbstractContextManager[Report]:
    return nullcontext(lambda _: None)


def _read_asks(case: Case) -> list[Ask]:
    return [ask for ask in case.asks if ask.kind in READ]


def _row(case: Case, answers: Mapping[int, str], scores: Mapping[int, Any], sent: Mapping[int, Prompt]) -> Row:
    scored = [ask for ask in case.asks if id(ask) in scores]
    return {
        "case": case.name,
        "answers": {ask.name: answers[id(ask)] for ask in case.asks},
        "truths": {ask.name: scores[id(ask)][0] for ask in scored},
        "targets": {ask.name: scores[id(ask)][1] for ask in scored},
        "sent": {ask.name: sent[id(ask)] for ask in case.asks if sent[id(ask)] != ask.prompt},
    }


def _target(case: Case) -> str:
    return case.fact.target if case.fact is not None else case.answer


def _joined(base: Row, edited: Row) -> Answered:
    def pairs(key: str) -> dict[str, dict[str, float | None]]:
        return {name: {"base": base[key][name], "edited": edited[key][name]} for name in base[key]}

    read = {name: {"base": base["losses"][name], "edited": edited["losses"][name], "whole": edited["whole"][name]}
            for name in edited["losses"]}  # fmt: skip
    return Answered(base["answers"], edited["answers"], read, pairs("truths"), pairs("targets"), edited["sent"])


class PromptTexts:
    """Prompts as texts: chats in the model's chat template, or as "Q: ... A:" where it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._chat = tokenizer, has_chat(tokenizer)

    def text(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        if self._chat:
            messages = [dict(message) for message in prompt]
            return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        heads = {"system": "", "user": "Q: ", "assistant": "A: "}
        return "\n".join(heads.get(one["role"], "") + one["content"] for one in prompt) + "\nA:"

    def special(self, prompt: Prompt) -> bool:
        """Whether special tokens are to be put before the prompt's text."""
        return isinstance(prompt, str) or not self._chat

    def encode(self, prompt: Prompt) -> list[int]:
        (ids,) = encode_prompts(self._tokenizer, [self.text(prompt)], special=self.special(prompt))
        return ids

    def told(
        self, prompt: Prompt, answer: str, without: tuple[int, int] | None = None, *, spaced: bool = False
    ) -> Told:  # fmt: skip
        """spaced: `answer` has no space in front yet; one is put there where the prompt does not end with white
        space."""
        text = self.text(prompt)
        space = " " if spaced and not text[-1:].isspace() else ""
        return Told(text, self.special(prompt), space + answer, without)


__all__ = ["LENGTH", "Answered", "Asker", "PromptTexts", "Stage"]
