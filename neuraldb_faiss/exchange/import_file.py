"""Import of a vector file into a new or an existing database, in one transaction and without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

from neuraldb_faiss.edits.merge import check_alike, common_gate, solver
from neuraldb_faiss.errors import FactError, StoreError
from neuraldb_faiss.exchange.read_file import VectorFile
from neuraldb_faiss.facts.deduplicate import ON_CONFLICT
from neuraldb_faiss.options import WAIT, JoinOptions, check_names
from neuraldb_faiss.store import Store, Transaction, merge_staged, stage_pieces
from neuraldb_faiss.store.merge import Settling


def import_file(
    file: str | Path,
    *,
    out: str | Path | None = None,
    into: str | Path | None = None,
    on_conflict: str = "error",
    gamma: float | None = None,
    **options: Unpack[JoinOptions],
) -> Store:
    """Make the new database `out` of a file that `export` wrote with format="safetensors", or take it `into` one.

    A new database equals the exported generation: the same facts, states, arrays bit for bit, entry ids, settings. Into
    a database it comes as a merge does: entries are numbered on, conflicts decided, duplicates folded.

    Args:
        on_conflict: for `into`, as in `merge`.
        gamma: as in `merge`; it also gives a new database another gate.
        options: model and tokenizer (for `into`, as in `merge`), report, command, wait.

    Raises:
        StoreError: the file cannot be read, `out` is taken, or the gates differ.
        FormatError: no such file, or a newer one; CorruptError: a damaged or doctored one.
        FingerprintError: another model, layer or kind than the database's.
        ConflictError: see `merge`. Nothing has changed then, nor after any other of these.
    """
    check_names(options, JoinOptions)
    if (out is None) == (into is None):
        raise StoreError("say where to import to: a new folder (out) or a database (into), not both")
    if on_conflict not in ON_CONFLICT:
        raise FactError(f"on_conflict is {on_conflict!r}: it must be {', '.join(ON_CONFLICT)}")
    command, wait = options.get("command", "import"), options.get("wait", WAIT)
    source = VectorFile(file)

    def stage(tx: Transaction) -> None:
        numbering = source.numbering(tx.next_entry)
        stage_pieces(tx, source.pieces(numbering), source.facts(numbering), source.path)

    if out is not None:
        gate = common_gate([source.config], gamma)
        new = {**source.config.to_json(), **gate, "epoch": 1, "history_start": 1}
        return _create(Path(out), new, stage, command, wait)
    store = Store(into or "", "rw")
    try:
        mine = store.config()
        check_alike(store.root, mine, source.path, source.config)
        gate = common_gate([mine, source.config], gamma)
        merge_staged(store, stage, Settling(on_conflict, solver(mine, options), gate), command=command, wait=wait)
    except BaseException:
        store.close()
        raise
    return store


def _create(
    out: Path, settings: dict[str, Any], stage: Callable[[Transaction], None], command: str, wait: float
) -> Store:
    with Store.creating(out, settings, command, wait=wait) as store, store.write(command) as tx:
        tx.restart()
        stage(tx)
        tx.commit()
    return store
