"""Attaching a database to a model, and the handle that detaches it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from neuraldb_faiss.errors import CompactedError, FingerprintError, ModelError, NeuralDBError
from neuraldb_faiss.grounding.delivery import Delivering, Delivery
from neuraldb_faiss.guard.gate import Gate
from neuraldb_faiss.hook import model_copies
from neuraldb_faiss.hook.forward_context import Context
from neuraldb_faiss.hook.lookup import Lookup
from neuraldb_faiss.hook.missed_lookup import why_missed
from neuraldb_faiss.hook.torch_compile import mark, unmark
from neuraldb_faiss.hook.trace import Trace, handle_html
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.models.sites import unwrap


class Site(Protocol):
    """Where to hook: `models.find_site` makes these."""

    @property
    def layer(self) -> int: ...
    @property
    def d1(self) -> int: ...
    @property
    def d2(self) -> int: ...
    @property
    def module_name(self) -> str: ...
    @property
    def module(self) -> nn.Module: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """What a handle tells of itself.

    Attributes:
        trace_size: how many firings `trace()` remembers.
        tokenizer: for the text of tokens in the trace, and to ground prompts where no delivery is given.
        database: what the handle calls the database.
    """

    trace_size: int = 10_000
    tokenizer: Any = None
    database: str | None = None


class Handle(Delivering):
    """A database in a model, until `remove()` or the end of a `with`.

    A forward of the model that does not reach the layer raises ModelError: its answer would be unedited. Copies and
    pickles of the model come without the database.

    It answers from the generation it was attached with until `refresh()`. Only where another process has compacted away
    what a token that fires is named by, it moves to the newest generation, with a warning.

    Attributes: calls (forwards seen) and hits (tokens that fired), both over all threads.
    """

    def __init__(
        self, gate: Gate, model: nn.Module, site: Site, newest: Callable[[], EntrySource] | None,
        shown: Shown, delivery: Delivery | None = None,
    ) -> None:  # fmt: skip
        """Arguments as for `attach`."""
        self._newest = newest
        self._delivery = delivery or Delivery("residual", True, lambda: gate.source, shown.tokenizer)
        self._database, self._layer = shown.database, site.layer
        self._context = Context(model, site.module_name, remembers=gate.wants_past)
        self._lookup = Lookup(gate, self._context, shown.trace_size, self._renew, _decoder(shown.tokenizer))
        self._hook = site.module.register_forward_hook(self._lookup.hook)
        self._model, self._name, self._module = model, site.module_name, site.module
        model_copies.leave_out(self._module, self._hook)
        mark(self._module)
        self._context.missed = self._missed  # last: forwards that began before had not all the hooks

    def _missed(self) -> None:
        if not self._lookup.is_off and (why := why_missed(self._model, self._name, self._module)) is not None:
            raise ModelError(why)

    @property
    def calls(self) -> int:
        return self._lookup.calls

    @property
    def hits(self) -> int:
        return self._lookup.hits

    def __repr__(self) -> str:
        shown = self._shown()
        state = f" ({shown['state']})" if "state" in shown else ""
        return (
            f"<Handle of {shown['database']} at layer {shown['layer']}{state}: guard {shown['guard']}, gamma"
            f" {shown['gamma']}, {shown['calls']} calls, {shown['hits']} hits>"
        )

    def _repr_html_(self) -> str:
        return handle_html(self._shown())

    def _shown(self) -> dict[str, Any]:
        gate = self._lookup.gate
        shown: dict[str, Any] = {
            "database": self._database or "a database", "layer": self._layer, "guard": gate.guard, "gamma": gate.gamma,
            "calls": self.calls, "hits": self.hits,
        }  # fmt: skip
        if self._lookup.is_off:
            shown["state"] = "removed" if self._lookup.removed else "disabled"
        return shown

    def trace(self) -> Trace:
        """What fired since attaching or `clear_trace()`, oldest first; of many, the last `trace_size`."""
        return self._lookup.trace()

    def clear_trace(self) -> None:
        self._lookup.clear_trace()

    def disabled(self) -> AbstractContextManager[None]:
        """`with handle.disabled():` the model answers as if nothing were attached, in this thread only."""
        return self._lookup.disabled()

    def refresh(self, source: EntrySource | None = None) -> None:
        """Answer from another generation: `source`, or the newest. Only what is new is loaded.

        Raises NeuralDBError where no `source` is given and attaching named no way to the newest, and
        FingerprintError where the shapes are another model's.
        """
        if source is None:
            if self._newest is None:
                raise NeuralDBError("refresh() has no way to the newest generation here: pass it a snapshot")
            source = self._newest()
        old = self._lookup.gate.source
        if (source.d1, source.d2) != (old.d1, old.d2):
            raise FingerprintError(
                f"cannot refresh: keys of {source.d1} and residuals of {source.d2}, "
                f"where {old.d1} and {old.d2} are attached"
            )
        self._lookup.gate.refresh(source)

    def _renew(self, error: CompactedError) -> None:
        if self._newest is None:
            raise error
        self.refresh()
        warnings.warn(f"{error}: the newest generation answers from now on", stacklevel=2)

    def remove(self) -> None:
        """Take all hooks off: the model gives the very bits it gave before. Doing it twice is harmless."""
        if not self._lookup.removed:
            self._lookup.removed = True
            self._hook.remove()
            model_copies.forget(self._module, self._hook)
            self._context.remove()
            unmark(self._module)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach(
    gate: Gate, model: nn.Module, *, site: Site, newest: Callable[[], EntrySource] | None = None,
    shown: Shown = Shown(), delivery: Delivery | None = None,
) -> Handle:  # fmt: skip
    """Hook a database into one layer of a model.

    Args:
        gate: decides what fires (`guard.gate.make_gate`).
        model: the model whose forward is called, as it is, from `torch.compile` or from PEFT.
        site: the layer.
        newest: gives the snapshot that `refresh()` moves to.
        shown: what the handle tells of itself.
        delivery: how facts reach a request; as residuals alone by default.

    Code that torch.compile made before is made anew. A lookup is one operator of its graph, `neuraldb::lookup`, unless
    a gate that reads the text (`SubjectGate`) meets a KV cache: then it runs outside of the graph, and
    `fullgraph=True` fails, with torch's own message.

    Raises:
        FingerprintError: the shapes differ. ModelError: the site is another model's.
    """
    model = unwrap(model)
    source = gate.source
    if (source.d1, source.d2) != (site.d1, site.d2):
        raise FingerprintError(
            f"the database holds keys of {source.d1} and residuals of {source.d2}, but {site.module_name} "
            f"takes {site.d1} and gives {site.d2}: it was built with another model or layer"
        )
    try:
        inside = model.get_submodule(site.module_name) is site.module
    except AttributeError:
        inside = False
    if not inside:
        raise ModelError(f"{site.module_name} is another model's: find the site in the model you attach to")
    return Handle(gate, model, site, newest, shown, delivery)


def _decoder(tokenizer: Any) -> Callable[[int], str] | None:
    if tokenizer is None:
        return None

    def decode(token: int) -> str:
        text: str = tokenizer.decode([token])
        return text

    return decode
