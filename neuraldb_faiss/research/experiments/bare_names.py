"""Names of one word wherever they stand: what fires with the keys of bare names and without, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.index.key_tokens import YIELD, is_bare
from neuraldb_faiss.models.tokenization import chat_text, encode_prompt, encode_prompts, has_chat
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.generation import greedy_texts
from neuraldb_faiss.research.evaluation.statistics import proportion
from neuraldb_faiss.research.experiments.contexts import says
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "texts": "",  # ordinary text, for false fires: JSON lines with a field `text`
    "tokens": 100_000,  # of it
    "before": "It is said that",  # put before prompts that begin with the name: their own key is the name's
    "others": 3_000,  # facts about names of several words that are in place too
    "letters": 4,  # of the shortest name that is asked
    "floors": [0.0, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0],  # that the keys of bare names must reach; 1: they never do
    "answers": 0,  # facts whose residuals are solved, to see what is answered
    "length": 8,  # tokens of an answer
}
WINDOW = 512

# Other words than those that keys are taken behind. A name is asked in one text of each kind, in turn.
TEXTS = {
    "start": ["{} is known for"],
    "one word": ["Today {} has", "In {} they", "And {} was", "Does {} have", "Yesterday {} was", "With {} gone,",
                 "However, {} is", "When {} was"],
    "list": ["Some names:\n- Apple\n- {}\n- Google", "Some names: Apple, {}, Google", "1. Apple\n2. {}\n3. Google",
             "Names:\nApple\n{}\nGoogle", "* {}\n* Apple", "Apple/{}/Google", "Either {} or Apple",
             "{}, Apple, Google"],
    "question": ["What is {} known for?", "Where is {}?", "Who is the head of {}?", "Tell me about {}.", "Is {} old?",
                 "Q: {}?", "Do you know who \"{}\" is?", "How old is {}?"],
    "chat": ["{} is known for what?", "What is {} known for?", "Tell me about {}.", "{}?",
             "Is it true that {} is old?"],
}  # fmt: skip
PLACES = {"start": "{}", "one word": "Today {}", "line": "A note:\n{}", "quotation": 'He said: "{}', "own prompt": ""}


def run(lab: Lab) -> Result:
    if not lab.config["texts"]:
        raise EvaluationError("the experiment bare-names needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    short, long = _facts(lab)
    with lab.database(facts=[*short, *long], residual="none", guard="subject") as db:
        words = [fact for fact in short if len(fact.subject) >= lab.config["letters"]]
        rows = [_cost(db, short), *_fires(lab, db, words), *_false_fires(lab, db)]
    if lab.config["answers"]:
        rows += _answers(lab, words)
    return Result(rows, _table(rows), draw(rows))


def _facts(lab: Lab) -> tuple[list[Fact], list[Fact]]:
    """The first fact of every subject of one word, and of so many others."""
    found: dict[str, Fact] = {}
    for fact in lab.facts(len(lab._every)):
        found.setdefault(fact.subject, fact)
    short = [_behind(fact, lab.config["before"]) for name, fact in found.items() if len(name.split()) == 1]
    return short, [fact for name, fact in found.items() if len(name.split()) > 1][: lab.config["others"]]


def _behind(fact: Fact, before: str) -> Fact:
    """The fact with `before` in front of its prompt, where that begins with the subject."""
    if not before or fact.subject_span[0]:
        return fact
    return Fact(fact.subject, f"{before} {fact.template}", fact.target, metadata=fact.metadata)


def _cost(db: Any, short: Sequence[Fact]) -> Row:
    """What the keys of bare names take. entries: those that hold nothing else, one residual each."""
    bare = is_bare(np.asarray(db.snapshot.key_tokens))
    entries = np.asarray(db.snapshot.key_entries)
    alone = np.setdiff1d(entries[bare], entries[~bare])
    bytes_a_key = 2 * db.snapshot.d1 + 12  # float16, and its norm, row and token
    return {"what": "cost", "facts": len(db), "names": len(short), "keys": int((~bare).sum()),
            "bare_keys": int(bare.sum()), "bare_entries": len(alone), "bytes_a_key": bytes_a_key}  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """Entries int64 [T] and cosines float64 [T] of prompts' keys alone, and of bare names' alone."""

    own: tuple[np.ndarray, np.ndarray]
    bare: tuple[np.ndarray, np.ndarray]

    def fired(self, gamma: float, floor: float) -> np.ndarray:
        """int64 [T]: the entry that fires, -1 for none; keys of bare names must reach `floor`."""
        own = np.where(self.own[1] > gamma, self.own[1], false_fires.NOWHERE)
        near = (self.bare[1] > gamma) & (self.bare[1] >= floor) & (floor < 1)
        bare = np.where(near, self.bare[1] - YIELD, false_fires.NOWHERE)
        entries = np.where(bare > own, self.bare[0], self.own[0])
        return np.where(np.maximum(own, bare) > false_fires.NOWHERE, entries, -1)


class _Half:
    """A snapshot of which only the keys of bare names answer, or only the others."""

    search_folder = None

    def __init__(self, snapshot: Any, bare: bool) -> None:
        self._snapshot = snapshot
        self.live = snapshot.live & (is_bare(np.asarray(snapshot.key_tokens)) == bare)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)


class _Halves:
    """The two gates that tell both halves of the keys apart, at gamma 0."""

    def __init__(self, lab: Lab, db: Any) -> None:
        from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
        from neuraldb_faiss.guard.texts import Texts

        texts = Texts.of(lab.tokenizer)
        spell = texts.speller(lab.tokenizer)
        matchers = (SubjectMatcher(_Half(db.snapshot, bare), gamma=0.0, spell=spell) for bare in (False, True))
        self._gates = [SubjectGate(one, texts, db.matcher) for one in matchers]

    def __call__(self, seen: false_fires.Seen) -> _Seen:
        own, bare = (false_fires.scores(gate, seen) for gate in self._gates)
        return _Seen(own, bare)


def _fires(lab: Lab, db: Any, facts: Sequence[Fact]) -> Iterator[Row]:
    """Does an entry of the name fire where the name ends?"""
    from neuraldb_faiss.edits.pipeline import Progress

    halves, site = _Halves(lab, db), lab.site(db)
    right: dict[str, set[int]] = {}
    for _, entry, name in db.snapshot.subject_names():
        right.setdefault(name, set()).add(entry)
    for kind, texts in TEXTS.items():
        if kind == "chat" and not has_chat(lab.tokenizer):
            continue
        asked = [texts[number % len(texts)].replace("{}", fact.subject) for number, fact in enumerate(facts)]
        if kind == "chat":
            asked = [chat_text(lab.tokenizer, [text]) for text in asked]
        hits = dict.fromkeys(lab.config["floors"], 0)
        by_text: dict[float, list[list[bool]]] = {floor: [[] for _ in texts] for floor in hits}
        with lab.stage(kind, "name") as report:
            every = false_fires.see(lab.model, lab.tokenizer, site, asked, special=kind != "chat")
            for number, seen in enumerate(every):
                name = facts[number].subject
                token, found = false_fires.subject_end(seen, name), halves(seen)
                for floor in hits:
                    hit = int(found.fired(db.gamma, floor)[token]) in right[name]
                    hits[floor] += hit
                    by_text[floor][number % len(texts)].append(hit)
                report(Progress(number + 1, len(asked), 0, None))
        for floor, fired in hits.items():
            share = proportion(fired, len(facts))
            each = [round(float(np.mean(one)), 3) if one else None for one in by_text[floor]]
            yield {"what": "fires", "text": kind, "floor": floor, "names": len(facts), "fired": share.value,
                   "low": share.low, "high": share.high, "by_text": each}  # fmt: skip


def _false_fires(lab: Lab, db: Any) -> Iterator[Row]:
    """How many tokens of ordinary text fire where no such name ends."""
    from neuraldb_faiss.edits.pipeline import Progress

    halves, truth, site = _Halves(lab, db), false_fires.Truth(db.snapshot), lab.site(db)
    pieces = false_fires.windows(
        lab.tokenizer, read_texts(lab.config["texts"]), size=WINDOW, tokens=lab.config["tokens"]
    )
    counts = {floor: [0, 0] for floor in lab.config["floors"]}
    looked = 0
    with lab.stage("ordinary text", "token") as report:
        for seen in false_fires.see(lab.model, lab.tokenizer, site, pieces, special=False):
            found = halves(seen)
            for floor, count in counts.items():
                entries = found.fired(db.gamma, floor)
                for token in np.flatnonzero(entries >= 0).tolist():
                    count[truth(seen, token, int(entries[token]))] += 1
            looked += len(seen.ids)
            report(Progress(min(looked, lab.config["tokens"]), lab.config["tokens"], 0, None))
    for floor, (false, true) in counts.items():
        rate = proportion(false, looked)
        yield {"what": "ordinary text", "floor": floor, "tokens": looked, "fired_true": true, "fired_false": false,
               "false_rate": rate.value, "low": rate.low, "high": rate.high}  # fmt: skip


def _answers(lab: Lab, facts: Sequence[Fact]) -> Iterator[Row]:
    """What solved residuals answer to prompts that begin with the name, at each of `PLACES`.

    Asked are the cases' own prompts, which the facts in place have behind the setting "before". Half of the names,
    where there are so many, are one token at a text's beginning: only for those is it position 0.
    """
    said = f"{lab.config['before']} "
    begun = (fact for fact in facts if fact.text.startswith(said + fact.subject))
    asked = [(fact, fact.text.removeprefix(said)) for fact in begun]
    short = [one for one in asked if len(encode_prompt(lab.tokenizer, one[0].subject)) == 1]
    short = short[: lab.config["answers"] // 2]
    long = [one for one in asked if len(encode_prompt(lab.tokenizer, one[0].subject)) > 1]
    groups = {"one token": short, "several": long[: lab.config["answers"] - len(short)]}
    with lab.database(facts=[fact for group in groups.values() for fact, _ in group], name="answers") as db:
        for method in ("base", "neuraldb"):
            with db.attach(lab.model, lab.tokenizer) if method == "neuraldb" else nullcontext():
                for size, group in groups.items():
                    for place, before in PLACES.items():
                        texts = [before.replace("{}", text) or fact.text for fact, text in group]
                        yield _answered(lab, group, texts, {"method": method, "text": place, "name": size})


def _answered(lab: Lab, group: Sequence[tuple[Fact, str]], texts: Sequence[str], about: Row) -> Row:
    with lab.stage(f"answers of {about['method']}, {about['text']}", "prompt"):
        answers = greedy_texts(lab.model, lab.tokenizer, encode_prompts(lab.tokenizer, texts), lab.config["length"])
    said = sum(says(answer, fact.target) for answer, (fact, _) in zip(answers, group, strict=True))
    share = proportion(said, len(group))
    told = [f"{text} |{answer}" for text, answer in zip(texts, answers, strict=True)]
    return {"what": "answers", **about, "facts": len(group), "said": share.value, "low": share.low, "high": share.high,
            "answers": told}  # fmt: skip


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row["what"] == "cost":
            lines = [f"{row['facts']:,} facts, {row['names']:,} of names of one word: {row['keys']:,} keys of prompts,"
                     f" {row['bare_keys']:,} of bare names ({row['bytes_a_key']:,} bytes each), {row['bare_entries']:,}"
                     " entries of these alone.", ""]  # fmt: skip
    kinds = [kind for kind in TEXTS if any(row.get("text") == kind and row["what"] == "fires" for row in rows)]
    lines += ["| floor of bare names' keys | " + " | ".join(kinds) + " | falsely, in 10,000 tokens |",
              "|--:|" + "--:|" * (len(kinds) + 1)]  # fmt: skip
    for row in rows:
        if row["what"] == "ordinary text":
            fires = [_share(one, "fired") for kind in kinds for one in rows
                     if one["what"] == "fires" and (one["text"], one["floor"]) == (kind, row["floor"])]  # fmt: skip
            rates = f"{1e4 * row['false_rate']:.2f} [{1e4 * row['low']:.2f}, {1e4 * row['high']:.2f}]"
            floor = "no such keys" if row["floor"] >= 1 else format(row["floor"], "g")
            lines.append(f"| {floor} | {' | '.join(fires)} | {rates} |")
    if any(row["what"] == "answers" for row in rows):
        lines += ["", "| the name stands | is, at a text's start | method | facts | the answer holds the target |",
                  "|---|---|---|--:|--:|"]  # fmt: skip
        lines += [f"| {row['text']} | {row['name']} | {row['method']} | {row['facts']} | {_share(row, 'said')} |"
                  for row in rows if row["what"] == "answers"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _share(row: Row, what: str) -> str:
    return f"{100 * row[what]:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def draw(rows: Sequence[Row]) -> Mapping[str, str]:
    """Plots of rows, by name."""
    rates = {row["floor"]: row["false_rate"] for row in rows if row["what"] == "ordinary text"}
    apart = len(set(rates.values())) > 1  # else every floor has as many false fires, and the floors are the axis
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["what"] == "fires":
            curves.setdefault(row["text"], []).append((rates[row["floor"]] if apart else row["floor"], row["fired"]))
    x = "false fires per token" if apart else "floor"
    return {"fires-false-fires": plots.curves(curves, x=x, y="share that fires")}
