"""What an attached database costs a model: prefill and decode, with and without it, taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.hook import Handle, attach
from neuraldb_faiss.models import encode_prompt
from neuraldb_faiss.models.generation import greedy
from neuraldb_faiss.models.sites import find_site, input_device, unwrap

PREFILL = 512  # tokens
DECODED = 32  # tokens a row
BATCHES = (1, 16)


def bench_lookup(db: NeuralDB, model: Any, tokenizer: Any, *, guards: Sequence[str], repeats: int) -> dict[str, Any]:
    """Seconds of a prefill of 512 tokens and of 32 decoded tokens at batch 1 and 16, without and with `db`.

    The text is the database's own prompts, one behind the other, so that facts fire. Runs without and with take turns,
    so that what else the machine does falls on both; the ratio is the median of the turns' ratios.
    """
    text = " ".join(fact.text + fact.separator + fact.target + "." for fact in db.facts(limit=200))
    ids = torch.tensor([encode_prompt(tokenizer, text)[:PREFILL]]).to(input_device(unwrap(model)))
    works: dict[str, Callable[[], object]] = {"prefill": lambda: prefill(model, ids)}
    for batch in BATCHES:
        rows = ids[:, :64].expand(batch, -1).contiguous()
        works[f"decode_{batch}"] = lambda rows=rows: decode(model, rows)  # type: ignore[misc]
    report: dict[str, Any] = {"facts": len(db), "entries": db.info()["entries"], "seconds": {}, "hits": {}}
    site = find_site(model, db.layer, db.config.ffn_module)
    for guard in guards:
        attached = partial(attach, db.gate(model, tokenizer, guard=guard), model, site=site)
        for name, work in works.items():
            key = f"{name}_guard_{guard}"
            for part, value in take_turns(attached, work, repeats).items():
                if part in ("seconds", "hits"):
                    report[part][key] = value
                else:
                    report[f"{key}_{part}"] = value
    return report


def take_turns(attached: Callable[[], Handle], work: Callable[[], object], repeats: int) -> dict[str, Any]:
    """`work` without and with what `attached` attaches, in turns: seconds (medians), hits a run, the median of the
    turns' ratios and their range, and the same of processor time, which other programs on the same cores change less.
    Without means that no hook is there at all."""
    hits, pairs = 0, []
    for turn in range(1 + repeats):
        without = _seconds(work)
        with attached() as handle:
            within = _seconds(work)
            found = handle.hits
        if turn:  # the first warms up
            hits += found
            pairs.append((without, within))
    seconds, processor = ([(a[clock], b[clock]) for a, b in pairs] for clock in (0, 1))
    times = {"without": median(a for a, _ in seconds), "with": median(b for _, b in seconds)}
    return {
        "seconds": {one: round(value, 5) for one, value in times.items()},
        "hits": hits // repeats,
        **_ratios("ratio", seconds),
        **_ratios("processor_ratio", processor),
    }


def _ratios(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The median of b / a, and the least and the most."""
    ratios = sorted(b / a for a, b in pairs)
    return {name: round(median(ratios), 4), f"{name}_range": [round(ratios[0], 4), round(ratios[-1], 4)]}


def prefill(model: Any, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, logits_to_keep=1)


def decode(model: Any, rows: torch.Tensor) -> None:
    """The prompt is short, so decoding is what counts; it is part of both sides all the same."""
    with torch.no_grad():
        model.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), **greedy(DECODED)
        )  # fmt: skip


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds that it took, and of the processor's time."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor
