"""How a request asks for a delivery of facts, and how its answer's header tells what reached it. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request

from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.serving.contents import kind
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.validation_errors import wrong
from neuraldb_faiss.store import StoredFact

HEADER, FIELD = "X-NeuralDB-Delivery", "neuraldb_delivery"
GENERATION = "X-NeuralDB-Generation"
GROUNDED = "X-NeuralDB-Grounded"


def read_delivery(value: Any) -> str | None:
    """The field `neuraldb_delivery` of a request. Raises ApiError."""
    if value is None or (isinstance(value, str) and value in DELIVERIES):
        return value
    told = repr(value[:40]) if isinstance(value, str) else kind(value)
    raise wrong(FIELD, f"is {told}: it may be {', '.join(DELIVERIES)}")


def asked_delivery(request: Request, field: str | None) -> str | None:
    """What a request asks for by its header or its field; None where it says nothing.

    Raises:
        ApiError: the header is no delivery, or contradicts the field.
    """
    header = request.headers.get(HEADER)
    if header is None:
        return field
    if header not in DELIVERIES:
        raise ApiError(400, f"{HEADER} is {header[:40]!r}: it may be {', '.join(DELIVERIES)}", param=HEADER)
    if field not in (None, header):
        raise ApiError(400, f"{FIELD} is {field!r}, the header {HEADER} is {header!r}: give one", param=FIELD)
    return header


def delivery_headers(how: Iterable[str | None], facts: Iterable[StoredFact]) -> dict[str, str]:
    """What the answer's header says: the deliveries (None for the model alone), and the facts that were stated, whose
    ids are percent-encoded, as they may hold anything."""
    names = dict.fromkeys(one for one in how if one is not None)
    ids = dict.fromkeys(quote(fact.id, safe="") for fact in facts)
    return {**({HEADER: ", ".join(names)} if names else {}), **({GROUNDED: ", ".join(ids)} if ids else {})}
