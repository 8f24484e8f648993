"""What stating facts costs: look-ups of names in plain text, edits, tokens, and the time to a first token."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from neuraldb_faiss.create import build
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.grounding.common_words import common_words
from neuraldb_faiss.research.benchmarks.timing import Timing, measure, measure_in_turn

CHARACTERS = 4_500  # of a prompt: some 1,000 tokens of English
PROMPTS = 200
_NAMED = 2  # subjects that a prompt names
_SYLLABLES = ("ba", "do", "fen", "gri", "hul", "jo", "kre", "lim", "mar", "nov", "pel", "qua", "ros", "sta", "tuv")
_KINDS = ["Works", "Robotics", "Museum", "Bank", "Harbour", "College", "River", "Foundation", "Press", "Orchestra"]
_ASKED = ["head", "address", "founder", "price", "motto", "owner"]


def facts_of(number: int) -> Iterator[Fact]:
    """So many made-up facts, three a subject; names of two words, as companies and places have."""
    for n in range(number):
        at = n // 3
        yield Fact(subject(at), f"The {_ASKED[n % len(_ASKED)]} of {{}} is", f"{_word(at + 7)} {n}")


def subject(at: int) -> str:
    """The name of one of the subjects: "Bafendo Works"."""
    return f"{_word(at)} {_KINDS[at % len(_KINDS)]}"


def _word(at: int) -> str:
    parts: list[str] = []
    while at or not parts:
        at, part = divmod(at, len(_SYLLABLES))
        parts.append(_SYLLABLES[part])
    return "".join(parts).capitalize()


def prompts(facts: int, text: int = 0) -> list[str]:
    """Texts of `CHARACTERS` characters of common words, a sentence a dozen, each naming two of the subjects of so many
    facts. text: seed of the words; the subjects are the same for all."""
    chance, named, words = random.Random(text), random.Random(0), sorted(common_words())
    found = []
    for _ in range(PROMPTS):
        sentences: list[str] = []
        while sum(map(len, sentences)) < CHARACTERS:
            sentences.append(" ".join(chance.choices(words, k=12)).capitalize() + ". ")
        for _ in range(_NAMED if facts else 0):
            name = subject(named.randrange(-(-facts // 3)))
            sentences[chance.randrange(len(sentences))] = f"Who is the head of {name}? "
        found.append("".join(sentences)[:CHARACTERS])
    return found


def bench_grounding(
    folder: Path, *, facts: int, repeats: int, model: Any = None, tokenizer: Any = None
) -> dict[str, Any]:
    """Build a database of `facts` facts without a model, and time what is done with it.

    Returns:
        build_seconds, open_seconds (to the first statement, with the names' files there), add_ms and remove_ms (one
        fact), lookup_ms_first over prompts whose facts are asked for first, lookup_ms over other texts with the same
        subjects, nothing_named_ms. With a model also tokens_added and first_token: seconds of a prefill of the
        asking chat without and with statements.
    """
    started = time.perf_counter()
    path = folder / "db"
    build(facts_of(facts), None, None, path).close()
    built = time.perf_counter() - started
    texts = prompts(facts)
    with NeuralDB.open(path) as first:
        first.ground("")  # leaves the names' files
    with NeuralDB.open(path, "rw") as db:
        opened = measure(lambda: NeuralDB.open(path).ground(f"the {subject(0)}"), repeats=repeats, warm_up=0)
        db.ground("")
        once, again = _looked_up(db, texts), _looked_up(db, prompts(facts, text=1))
        nothing = _looked_up(db, prompts(0))
        report = {
            "facts": facts, "characters": CHARACTERS, "build_seconds": round(built, 1),
            "open_seconds": opened.to_dict(), "lookup_ms_first": once, "lookup_ms": again, "nothing_named_ms": nothing,
            **_edits(db, repeats), "facts_stated": median(len(db.ground(text).facts) for text in texts),
        }  # fmt: skip
        if model is not None:
            report |= _first_token(db, model, tokenizer, repeats)
    return report


def _looked_up(db: NeuralDB, texts: list[str]) -> dict[str, float]:
    """Milliseconds a prompt: the median, and what 95 of 100 need at most; the median of processor time beside it, which
    other programs on the machine lengthen less."""
    took, processor = [], []
    for text in texts:
        start, busy = time.perf_counter(), time.process_time()
        db.ground(text)
        processor.append(1000 * (time.process_time() - busy))
        took.append(1000 * (time.perf_counter() - start))
    took.sort()
    return {
        "median": round(median(took), 3), "p95": round(took[int(0.95 * len(took))], 3),
        "processor_median": round(median(processor), 3),
    }  # fmt: skip


def _edits(db: NeuralDB, repeats: int) -> dict[str, Any]:
    names = iter(range(10**6))

    def milliseconds(timing: Timing) -> float:
        return round(1000 * timing.median, 1)

    added = measure(lambda: db.add([Fact(f"New {next(names)}", "{} is in", "Rome")]), repeats=repeats)
    gone = iter(range(10**6))
    removed = measure(lambda: db.remove(subject=f"New {next(gone)}"), repeats=repeats)
    return {"add_ms": milliseconds(added), "remove_ms": milliseconds(removed)}


def _first_token(db: NeuralDB, model: Any, tokenizer: Any, repeats: int) -> dict[str, Any]:
    import torch

    from neuraldb_faiss.models import encode_prompt
    from neuraldb_faiss.models.sites import input_device, unwrap
    from neuraldb_faiss.models.tokenization import has_chat

    asked = f"Who is the head of {subject(0)}?"
    chat: Any = [{"role": "user", "content": asked}] if has_chat(tokenizer) else asked
    rows = {}
    for name, prompt in (("without", chat), ("with", db.ground(chat, tokenizer=tokenizer).prompt)):
        text = prompt if isinstance(prompt, str) else tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )  # fmt: skip
        ids = encode_prompt(tokenizer, text, special=isinstance(prompt, str))
        rows[name] = torch.tensor([ids], device=input_device(unwrap(model)))

    def prefill(name: str) -> None:
        with torch.no_grad():
            model(input_ids=rows[name]).logits[0, -1].argmax().item()

    timed = measure_in_turn({name: lambda name=name: prefill(name) for name in rows}, repeats=repeats)  # type: ignore[misc]
    return {
        "tokens": {name: ids.shape[1] for name, ids in rows.items()},
        "tokens_added": rows["with"].shape[1] - rows["without"].shape[1],
        "first_token_seconds": {name: timing.to_dict() for name, timing in timed.items()},
        "first_token_ratio": round(timed["with"].median / timed["without"].median, 3),
    }
