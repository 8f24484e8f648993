"""Why a text is answered as it is: the nearest entry of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuraldb_faiss.editing.editor import check_model
from neuraldb_faiss.editing.passes import Stop, on_input, stopping
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.models import FFNSite, Fingerprint

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.store import StoredFact


@dataclass(frozen=True, slots=True)
class Nearest:
    """One token of a text and the entry nearest to its key.

    Attributes:
        position: from 0, special tokens counted. token: its text.
        entry: the nearest entry that may answer here, None where there is none (at position 0
            only keys taken on the same first token may, and nowhere else may those).
        score: the exact cosine of the two keys, 0 without an entry. fired: whether it passes the gate.
        facts: what the entry serves.
    """

    position: int
    token: str
    entry: int | None
    score: float
    fired: bool
    facts: tuple[StoredFact, ...]


def explain(
    db: NeuralDB, model: Any, tokenizer: Any, text: str, *, gamma: float | None = None, search: str = "auto"
) -> list[Nearest]:
    """The nearest entry of every token of `text`, and whether it fires there.

    The keys are read off one forward pass that ends at the edited layer: what an attached database adds
    there changes only what comes behind it, so they are the keys that it meets.

    Raises:
        FingerprintError: the database was built with another model.
        FactError: the text is empty.
    """
    ids = tokenizer(text)["input_ids"]
    if not text.strip() or not ids:
        raise FactError("the prompt is empty: give a text to explain")
    settings = db.settings
    site = check_model(Fingerprint.from_json(settings["fingerprint"]), settings, model)
    first_tokens = np.full(len(ids), -1, np.int64)
    first_tokens[0] = ids[0]
    matches = db.matcher(search, gamma=gamma).match(
        _site_inputs(model, site, ids), first_tokens=first_tokens, exact=True
    )
    served: dict[int, tuple[StoredFact, ...]] = {-1: ()}
    found = []
    columns = (ids, matches.entry_ids.tolist(), matches.scores.tolist(), matches.fired.tolist())
    for position, (token, entry, score, fired) in enumerate(zip(*columns, strict=True)):
        if entry not in served:
            served[entry] = tuple(db.facts(entry=entry))
        known = None if entry < 0 else entry
        found.append(Nearest(position, tokenizer.decode([token]), known, score, fired, served[entry]))
    return found


def _site_inputs(model: Any, site: FFNSite, ids: list[int]) -> torch.Tensor:
    """[len(ids), d1]: what the site's down-projection gets at every token of one text."""
    caught: list[torch.Tensor] = []

    def catch(hidden: torch.Tensor) -> None:
        caught.append(hidden)
        raise Stop

    rows = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    with torch.no_grad(), stopping(), on_input(site.module, catch):
        model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False)
    return caught[0].reshape(len(ids), -1)
