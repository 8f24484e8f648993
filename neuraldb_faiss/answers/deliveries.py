"""Ways that facts reach a model: a database's deliveries, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.answers.asks import Message

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB

Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Placed:
    """Facts in place.

    Attributes:
        send: a prompt as the model is to get it. edits: whether the model is to answer that prompt edited.
        disabled: a context in which it answers unedited.
    """

    send: Callable[[Prompt], Prompt] = lambda prompt: prompt
    edits: Callable[[Prompt], bool] = lambda prompt: True
    disabled: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Delivery:
    """One way. name: for people. identity: JSON values that say what it does. place: a context in which all facts are
    in place."""

    name: str
    identity: Mapping[str, Any]
    place: Callable[[], AbstractContextManager[Placed]]


def of_database(db: NeuralDB, model: Any, tokenizer: Any, wanted: str | None = None) -> Delivery:
    """A database's delivery: one of `config.DELIVERIES`, the database's own where none is given.

    Raises:
        ConfigError: an unknown delivery.
    """
    from neuraldb_faiss.config import DELIVERIES, check_choice

    name = check_choice("delivery", wanted or db.config.delivery, DELIVERIES)
    settings = db.config.to_json()
    identity = {key: settings[key] for key in ("layer", "keys", "residual", "config", "gamma", "guard")}
    identity |= {"facts": len(db), "generation": db.generation}

    @contextmanager
    def place() -> Iterator[Placed]:
        with db.attach(model, tokenizer, delivery=name) as handle:

            def send(prompt: Prompt) -> Prompt:
                return _frozen(handle.ground(prompt).prompt)

            yield Placed(send, lambda prompt: handle.delivery_of(prompt) != "text", handle.disabled)

    return Delivery(name, {"delivery": name, **identity}, place)


def _frozen(prompt: Any) -> Prompt:
    return prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)
