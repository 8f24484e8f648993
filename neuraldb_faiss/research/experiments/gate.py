"""The gate itself: false fires in ordinary text, and recall where the subject is asked about, guard by guard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models.tokenization import chat_text, has_chat
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.statistics import proportion
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "database": "",  # one that is there already; else the facts are built, keys only
    "texts": "",  # ordinary text: JSON lines with a field `text`
    "tokens": 70_000,  # of it, for the subject guard
    "plain_tokens": 16_000,  # of it, for the plain gate, which looks at every key
    "sizes": [1_000, 3_000, 10_000, 30_000, 100_000],  # facts
    "gammas": [0.3, 0.45, 0.5, 0.65, 0.8, 0.9],
    "asked": 800,  # facts whose prompts are asked
    "context": 150,  # tokens of other text before a prompt
}
WINDOW = 512
GUARDED = ("subject", "whole-words")
DRAWN = ("rephrased", "chat")  # of the texts that are asked; a curve for each and each guard


def run(lab: Lab) -> Result:
    if not lab.config["texts"]:
        raise EvaluationError("the experiment gate needs texts: --set texts='\"FILE.jsonl.gz\"', a line a text")
    db = _database(lab)
    counts = sorted({min(count, len(db)) for count in lab.config["sizes"]})
    rows = [*_false_fires(lab, db, counts), *_recall(lab, db)]
    return Result(rows, _table(rows), draw(rows))


def _database(lab: Lab) -> Any:
    from neuraldb_faiss.database import NeuralDB

    if lab.config["database"]:
        return NeuralDB.open(lab.config["database"])
    return lab.database(max(lab.config["sizes"]), residual="none")


def _texts(lab: Lab) -> Iterator[str]:
    return read_texts(lab.config["texts"])


# ---- ordinary text


def _false_fires(lab: Lab, db: Any, counts: Sequence[int]) -> list[Row]:
    """How many tokens of ordinary text fire, and how many of these where no such subject ends."""
    from neuraldb_faiss.edits.pipeline import Progress
    from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
    from neuraldb_faiss.guard.texts import Texts
    from neuraldb_faiss.guard.whole_words import WholeWordsGate

    site, truth = lab.site(db), false_fires.Truth(db.snapshot)
    entries = np.unique(db.snapshot.key_entries)
    last = [int(entries[min(count, len(entries)) - 1]) for count in counts]
    gammas = lab.config["gammas"]
    fired = {guard: np.zeros((len(counts), len(gammas), 2), np.int64) for guard in (*GUARDED, "none")}
    looked = dict.fromkeys(fired, 0)
    texts = Texts.of(lab.tokenizer)
    spell = texts.speller(lab.tokenizer)
    matchers = [SubjectMatcher(_UpTo(db.snapshot, limit), gamma=0.0, spell=spell) for limit in last]
    gates = {kind.guard: [kind(one, texts, db.matcher) for one in matchers] for kind in (SubjectGate, WholeWordsGate)}
    plain = false_fires.PlainScan(db.snapshot, counts)
    pieces = false_fires.windows(lab.tokenizer, _texts(lab), size=WINDOW, tokens=lab.config["tokens"])
    done = 0
    with lab.stage("ordinary text", "token") as report:
        for seen in false_fires.see(lab.model, lab.tokenizer, site, pieces, special=False):
            found = {guard: [false_fires.scores(gate, seen) for gate in gates[guard]] for guard in GUARDED}
            if looked["none"] < lab.config["plain_tokens"]:
                found["none"] = list(zip(*plain.scores(seen.keys), strict=True))
            for guard, by_count in found.items():
                looked[guard] += len(seen.ids)
                for number, (winners, cosines) in enumerate(by_count):
                    for token in np.flatnonzero(cosines > min(gammas)):
                        true = int(truth(seen, int(token), int(winners[token])))
                        for place, gamma in enumerate(gammas):
                            fired[guard][number, place, true] += cosines[token] > gamma
            done += len(seen.ids)
            report(Progress(min(done, lab.config["tokens"]), lab.config["tokens"], 0, None))
    rows: list[Row] = []
    for guard, table in fired.items():
        for number, count in enumerate(counts):
            for place, gamma in enumerate(gammas):
                false, true = table[number, place].tolist()
                rate = proportion(false, looked[guard])
                rows.append({
                    "what": "ordinary text", "guard": guard, "facts": count, "gamma": gamma, "tokens": looked[guard],
                    "fired_true": true, "fired_false": false, "false_rate": rate.value, "low": rate.low,
                    "high": rate.high,
                })  # fmt: skip
    return rows


class _UpTo:
    """A snapshot of which only the entries up to one answer."""

    search_folder = None  # its names are not all

    def __init__(self, snapshot: Any, last_entry: int) -> None:
        self._snapshot, self._last = snapshot, last_entry
        self.live = snapshot.live & (snapshot.key_entries <= last_entry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        return (one for one in self._snapshot.subject_names(after) if one[1] <= self._last)


# ---- recall


def _recall(lab: Lab, db: Any) -> list[Row]:
    """Does an entry of the right subject fire at the end of the subject, whatever the text around it?"""
    from neuraldb_faiss.edits.pipeline import Progress

    site = lab.site(db)
    known = {fact.identity: fact for fact in db.facts()}
    asked = [fact for fact in lab.facts(len(lab._every)) if fact.identity in known][: lab.config["asked"]]
    right = _entries_by_subject(db)
    gates = {guard: db.gate(lab.model, lab.tokenizer, gamma=0.0, guard=guard) for guard in GUARDED}
    plain = false_fires.PlainScan(db.snapshot, [db.snapshot.n_entries])
    rows: list[Row] = []
    for kind, prompts in _prompts(lab, asked).items():
        cosines: dict[str, list[float]] = {guard: [] for guard in (*GUARDED, "none")}
        keys: list[np.ndarray] = []
        heads: list[bool] = []
        with lab.stage(kind, "prompt") as report:
            subjects = [subject for _, subject in prompts]
            seen = false_fires.see(
                lab.model, lab.tokenizer, site, [text for text, _ in prompts], special=kind != "chat"
            )
            for number, (subject, one) in enumerate(zip(subjects, seen, strict=True)):
                token = false_fires.subject_end(one, subject)
                for guard, gate in gates.items():
                    winners, scores = false_fires.scores(gate, one)
                    hit = winners[token] in right[subject]
                    cosines[guard].append(float(scores[token]) if hit else false_fires.NOWHERE)
                keys.append(one.keys[token])
                heads.append(token == 0)
                report(Progress(number + 1, len(prompts), 0, None))
        nearest, plainly = plain.scores(np.stack(keys))
        for number, subject in enumerate(subjects):
            if heads[number]:  # a text's first token has keys of its own, which its id chooses under either guard
                cosines["none"].append(cosines["subject"][number])
                continue
            hit = nearest[0, number] in right[subject]
            cosines["none"].append(float(plainly[0, number]) if hit else false_fires.NOWHERE)
        for guard, values in cosines.items():
            found = np.array(values)
            quantiles = np.quantile(found, [0.01, 0.03, 0.1, 0.5]).round(3).tolist()
            for gamma in lab.config["gammas"]:
                share = proportion(int((found > gamma).sum()), len(found))
                rows.append({
                    "what": "recall", "text": kind, "guard": guard, "facts": len(db), "gamma": gamma,
                    "prompts": len(found), "recall": share.value, "low": share.low, "high": share.high,
                    "quantiles": quantiles,
                })  # fmt: skip
    return rows


def _entries_by_subject(db: Any) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for _, entry, name in db.snapshot.subject_names():
        found.setdefault(name, set()).add(entry)
    return found


def _prompts(lab: Lab, asked: Sequence[Fact]) -> dict[str, list[tuple[str, str]]]:
    """(text, subject) by kind of text; the subject is in each."""
    filler = list(false_fires.windows(lab.tokenizer, _texts(lab), size=lab.config["context"], tokens=200_000))
    kinds: dict[str, list[tuple[str, str]]] = {"own prompt": [], "rephrased": [], "long context": [], "chat": []}
    for number, fact in enumerate(asked):
        kinds["own prompt"].append((fact.text, fact.subject))
        kinds["long context"].append((f"{filler[number % len(filler)].strip()}\n\n{fact.text}", fact.subject))
        others = [text for text in fact.metadata.get("paraphrase_prompts", ()) if fact.subject in text]
        kinds["rephrased"] += [(text, fact.subject) for text in others]
        if has_chat(lab.tokenizer):
            kinds["chat"].append((chat_text(lab.tokenizer, [fact.text]), fact.subject))
    return {kind: found for kind, found in kinds.items() if found}


# ---- what is shown


def _table(rows: Sequence[Row]) -> str:
    lines = ["| guard | facts | γ | tokens | truly fired | falsely, in 10,000 tokens |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        if row["what"] == "ordinary text":
            rates = f"{1e4 * row['false_rate']:.2f} [{1e4 * row['low']:.2f}, {1e4 * row['high']:.2f}]"
            lines.append(f"| {row['guard']} | {row['facts']:,} | {row['gamma']:g} | {row['tokens']:,} |"
                         f" {row['fired_true']:,} | {rates} |")  # fmt: skip
    lines += ["", "| text | guard | γ | prompts | recall | cosine at 1, 3, 10, 50 % |", "|---|---|--:|--:|--:|---|"]
    for row in rows:
        if row["what"] == "recall":
            share = f"{row['recall']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            lines.append(f"| {row['text']} | {row['guard']} | {row['gamma']:g} | {row['prompts']:,} | {share} |"
                         f" {', '.join(format(one, '.2f') for one in row['quantiles'])} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row]) -> dict[str, str]:
    """Plots of rows, by name."""
    text = [row for row in rows if row["what"] == "ordinary text"]
    most = max(row["facts"] for row in text)
    rates = {(row["guard"], row["gamma"]): row["false_rate"] for row in text if row["facts"] == most}
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["what"] == "recall" and row["text"] in DRAWN:
            point = (rates[row["guard"], row["gamma"]], row["recall"])
            curves.setdefault(f"{row['text']}, guard {row['guard']}", []).append(point)
    growth: dict[str, list[tuple[float, float]]] = {}
    for row in text:
        if row["gamma"] in (0.45, 0.65):
            growth.setdefault(f"guard {row['guard']}, γ {row['gamma']:g}", []).append((row["facts"], row["false_rate"]))
    return {
        "recall-false-fires": plots.curves(curves, x="false fires per token", y="recall", log_x=True),
        "false-fires-facts": plots.curves(growth, x="facts", y="false fires per token", log_x=True, log_y=True),
    }
