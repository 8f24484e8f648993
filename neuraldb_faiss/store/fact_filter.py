"""SQL conditions for the facts that somebody asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from neuraldb_faiss.options import FactFilter, check_names
from neuraldb_faiss.store.records import subject_key

VISIBLE = "made <= :g AND (ended IS NULL OR ended > :g)"
WAITING = ("suspended", "contested")
STATES = "SELECT entry, state, MAX(made) FROM entry_states WHERE made <= :g"


class RowFilter(FactFilter, total=False):
    """Which rows of facts are meant; all that is given must hold.

    Attributes:
        key_ids: with one of these keys. entries: served by one of these.
        after: only rows that come behind this one.
    """

    key_ids: Sequence[str] | None
    entries: Sequence[int] | None
    after: int


def conditions(where: RowFilter) -> tuple[str, dict[str, Any]]:
    """The condition on columns of `facts`, with its parameters but for :g, the generation; `limit` and `after` are the
    caller's.

    Raises:
        TypeError: there is no such filter.
    """
    check_names(where, RowFilter)
    parts, values = [VISIBLE], dict[str, Any]()
    if (subject := where.get("subject")) is not None:
        parts.append("subject_key = :subject")
        values["subject"] = subject_key(subject)
    if (contains := where.get("contains")) is not None:
        escaped = contains.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        values["like"] = f"%{escaped}%"
        like = " OR ".join(f"{column} LIKE :like ESCAPE '\\'" for column in ("subject", "prompt", "target"))
        parts.append(f"({like})")
    if (source := where.get("source")) is not None:
        parts.append("EXISTS (SELECT 1 FROM json_each(sources) WHERE value = :source)")
        values["source"] = source
    if (entry := where.get("entry")) is not None:
        parts.append("entry = :entry")
        values["entry"] = entry
    if where.get("failed"):
        parts.append("took = 0")
    if (entries := where.get("entries")) is not None:
        parts.append("entry IN (SELECT value FROM json_each(:entries))")
        values["entries"] = json.dumps(list(entries))
    if not where.get("every_row") and entry is None and entries is None:
        parts.append(
            "row = (SELECT MIN(row) FROM facts AS other WHERE other.identity = facts.identity"
            " AND other.made <= :g AND (other.ended IS NULL OR other.ended > :g))"
        )
    if where.get("waiting"):
        parts.append(f"entry IN (SELECT entry FROM ({STATES} GROUP BY entry) WHERE state IN {WAITING})")
    names = {"id": where.get("ids"), "identity": where.get("identities"), "key_id": where.get("key_ids")}
    for column, wanted in names.items():
        if wanted is not None:
            parts.append(f"{column} IN (SELECT value FROM json_each(:{column}))")
            values[column] = json.dumps(list(wanted))
    return " AND ".join(parts), values
