"""Merge of databases: which fit together, and facts that come to share a key."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from neuraldb_faiss.config import DatabaseConfig, IndexConfig, check_gamma
from neuraldb_faiss.edits.pipeline import edit_into, group_by_key
from neuraldb_faiss.errors import FactError, FingerprintError, StoreError
from neuraldb_faiss.options import WAIT, JoinOptions, MergeOptions, check_names
from neuraldb_faiss.store import Merged, Store, StoredFact, Transaction, merge_into
from neuraldb_faiss.store.merge import Settling, SolveGroups

_MUST_AGREE = ("layer", "ffn_module", "d1", "d2", "residual", "keys")


def merge(
    sources: Sequence[Store],
    *,
    out: str | Path | None = None,
    into: Store | None = None,
    on_conflict: str = "error",
    gamma: float | None = None,
    **options: Unpack[MergeOptions],
) -> tuple[Store, Merged]:
    """Merge `sources` into the new folder `out`, or into an open database.

    With a model, facts of different databases that share a key are solved jointly.

    Raises:
        FingerprintError: the databases are of different models, layers or kinds (both are named).
        ConflictError: see `store.merge_into`.
        StoreError: different gates and no gamma; nothing to merge.
    """
    check_names(options, MergeOptions)
    if on_conflict not in ("error", "first", "last"):
        raise FactError(f"on_conflict is {on_conflict!r}: it must be error, first or last")
    if (out is None) == (into is None):
        raise StoreError("say where to merge: a new folder (out) or a database (into), not both")
    stores = [into, *sources] if into is not None else list(sources)
    if len(stores) < 2:
        raise StoreError("nothing to merge: name at least two databases")
    configs = [store.config() for store in stores]
    gate = _common_gate(stores, gamma)
    settling = Settling(on_conflict, solver(configs[0], options), gate)
    link, command, wait = options.get("link", False), options.get("command", "merge"), options.get("wait", WAIT)
    index = _common_index([one.index for one in configs])
    new = {**replace(configs[0], epoch=1, history_start=1, index=index).to_json(), **gate}
    making = nullcontext(into) if into is not None else Store.creating(out or "", new, command, wait=wait)
    with making as target:
        done = merge_into(target, sources, settling, link=link, command=command, wait=wait)
    return target, done


def check_mergeable(paths: Sequence[Path], gamma: float | None) -> None:
    """Raises StoreError or FingerprintError where `merge` would refuse these databases; for callers that load a model
    first."""
    with ExitStack() as opened:
        stores = [opened.enter_context(closing(Store(path))) for path in paths]
        _common_gate(stores, gamma)


def _common_gate(stores: Sequence[Store], gamma: float | None) -> dict[str, Any]:
    """`common_gate` of databases that are alike (`check_alike`)."""
    configs = [store.config() for store in stores]
    for store, other in zip(stores[1:], configs[1:], strict=True):
        check_alike(stores[0].root, configs[0], store.root, other)
    return common_gate(configs, gamma)


def _common_index(kinds: Sequence[IndexConfig]) -> IndexConfig:
    """How all of them are searched; flat where they differ in kind, and options only where they agree."""
    first, *others = kinds
    if any(other.kind != first.kind for other in others):
        return IndexConfig()
    alike = {name: n for name, n in first.options.items() if all(other.options.get(name) == n for other in others)}
    return IndexConfig(first.kind, alike)


def solver(config: DatabaseConfig, options: JoinOptions) -> SolveGroups | None:
    """What solves facts that come to share a key in a database of these settings; None without a model."""
    if options.get("model") is None:
        return None
    from neuraldb_faiss.solver.editor import Editor

    editor, report = Editor.of(config, options["model"], options.get("tokenizer")), options.get("report")

    def solve(transaction: Transaction, groups: list[list[StoredFact]]) -> None:
        keyed = ((fact.key_id, fact) for group in groups for fact in group)
        edit_into(transaction, editor, group_by_key(keyed), report=report, resume=False)

    return solve


def common_gate(configs: Sequence[DatabaseConfig], gamma: float | None) -> dict[str, Any]:
    """The settings gamma and floors for all of these: theirs where they agree, else the gate `gamma` behind the first
    one's guard; a name's floor is the highest. Raises StoreError where they differ and no gamma is given."""
    gates = [(float(one.gamma), one.guard) for one in configs]
    if gamma is None and len(set(gates)) > 1:
        guards = len({guard for _, guard in gates}) > 1
        named = sorted({f"{gate} with guard {guard}" if guards else str(gate) for gate, guard in gates})
        raise StoreError(f"the databases have different gates ({', '.join(named)}): give one (--gamma)")
    floors: dict[str, float] = {}
    for name, floor in (pair for one in configs for pair in one.floors.items()):
        floors[name] = max(floor, floors.get(name, 0.0))
    common: dict[str, Any] = {"gamma": gates[0][0] if gamma is None else check_gamma(gamma)}
    return {**common, "floors": floors} if floors else common


def check_alike(first: str | Path, mine: DatabaseConfig, other: str | Path, theirs: DatabaseConfig) -> None:
    """Raises FingerprintError unless what has the settings `mine` and `theirs` is of one model, layer and kind."""
    a, b = mine.model, theirs.model
    if not a.matches(b):
        raise FingerprintError(
            f"{first} was built with {a.describe()}, {other} with {b.describe()}: only databases of one"
            " model and layer merge (`neuraldb rebuild` makes one for another model)"
        )
    for name in _MUST_AGREE:
        one, two = getattr(mine, name), getattr(theirs, name)
        if one != two:
            raise FingerprintError(f"{first} and {other} differ in {name} ({one} and {two}): rebuild one of them")
