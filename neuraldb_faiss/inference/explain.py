"""Why a text is answered as it is: for every token the entry that fires, or comes nearest, and the subjects that end
there without firing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.guard.gate import Gate, Tokens
from neuraldb_faiss.guard.named import Named, NamesSubjects
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import FFNSite
from neuraldb_faiss.models.identity import check_model
from neuraldb_faiss.models.interventions import capture
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.models.tokenization import encode_prompt

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.store import StoredFact


@dataclass(frozen=True, slots=True)
class Held:
    """An entry that the text names at a token and that does not fire there.

    Attributes:
        entry: its id. facts: what it serves.
        score: the best exact cosine of its keys that may answer there; None where none may.
        needed: the cosine asked for: γ, or the floor of names as the text writes this one.
        reason: a key of `guard.named.WHY`. why: the same in words.
    """

    entry: int
    facts: tuple[StoredFact, ...]
    score: float | None
    needed: float
    reason: str
    why: str

    @classmethod
    def of(cls, named: Named, facts: tuple[StoredFact, ...]) -> Held:
        """From what the gate tells of an entry that does not fire."""
        return cls(named.entry, facts, named.score, named.needed, named.reason or "", named.why)


@dataclass(frozen=True, slots=True)
class Nearest:
    """One token of a text and the entry nearest to its key.

    Attributes:
        position: from 0, special tokens counted. token: its text.
        entry: the one that fires here, or else the nearest one that may answer here, None where there is none (at
            position 0 only keys taken on the same first token may, and nowhere else may those).
        score: the exact cosine of the two keys, 0 without an entry. fired: whether it passes guard and gate.
        facts: what the entry serves.
        held: entries whose subjects end here and that do not fire, where the guard reads names.
    """

    position: int
    token: str
    entry: int | None
    score: float
    fired: bool
    facts: tuple[StoredFact, ...]
    held: tuple[Held, ...] = ()


def explain(
    db: NeuralDB, model: Any, tokenizer: Any, text: str, *, gamma: float | None = None, guard: str | None = None,
    search: str = "auto",
) -> tuple[list[Nearest], Gate]:  # fmt: skip
    """The entry of every token of `text` that fires there, or else the nearest one; and the gate that decided.

    The keys are read off one forward pass that ends at the edited layer: what an attached database adds
    there changes only what comes behind it, so they are the keys that it meets.

    Raises:
        FingerprintError: the database was built with another model.
        FactError: the text is empty.
    """
    ids = encode_prompt(tokenizer, text)
    if not text.strip() or not ids:
        raise FactError("the prompt is empty: give a text to explain")
    site = check_model(db.config, model)
    gate = db.gate(model, tokenizer, gamma=gamma, guard=guard, search=search)
    return nearest_of(db, model, tokenizer, site, ids, gate, db.matcher(search)), gate


def nearest_of(
    db: NeuralDB, model: Any, tokenizer: Any, site: FFNSite, ids: Sequence[int], gate: Gate, matcher: Matcher
) -> list[Nearest]:
    """`explain` for tokens, with a gate and a matcher that were made before; both show the generation of `db`."""
    keys, tokens = site_inputs(model, site, ids), tokens_of(ids)
    nearest = matcher.match(keys, first_tokens=tokens.first_tokens().reshape(-1), exact=True)
    entries, scores = nearest.entry_ids.tolist(), nearest.scores.tolist()
    fired = gate.fired(keys, tokens)
    for place, entry, score in zip(fired.places, fired.entries, fired.scores, strict=True):
        entries[place], scores[place] = int(entry), float(score)
    firing = set(fired.places.tolist())
    served: dict[int, tuple[StoredFact, ...]] = {-1: ()}

    def facts_of(entry: int) -> tuple[StoredFact, ...]:
        if entry not in served:
            served[entry] = tuple(db.facts(entry=entry))
        return served[entry]

    held: dict[int, list[Held]] = {}
    for named in gate.named(keys, tokens) if isinstance(gate, NamesSubjects) else ():
        if named.reason is not None:
            held.setdefault(named.place, []).append(Held.of(named, facts_of(named.entry)))
    found = []
    for position, (token, entry, score) in enumerate(zip(ids, entries, scores, strict=True)):
        known = None if entry < 0 else entry
        word, quiet = tokenizer.decode([token]), tuple(held.get(position, ()))
        found.append(Nearest(position, word, known, score, position in firing, facts_of(entry), quiet))
    return found


def tokens_of(ids: Sequence[int]) -> Tokens:
    """What a gate is told of one text, run as a whole."""
    return Tokens(np.arange(len(ids))[None], None, np.array([ids]), True, np.empty((1, 0), np.int64))


def site_inputs(model: Any, site: FFNSite, ids: Sequence[int]) -> torch.Tensor:
    """[len(ids), d1]: what the site's down-projection gets at every token of one text."""
    rows = torch.tensor([list(ids)], device=input_device(unwrap(model)))
    with torch.no_grad():
        return capture(model, site.module, rows, torch.ones_like(rows))[0]
