"""A database folder: opening it, its snapshots, and its one writer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import files, schema
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.lock import writer_lock
from neuraldb_faiss.store.snapshot import Snapshot
from neuraldb_faiss.store.transaction import Transaction


class Store:
    """The folder `root`.

    Raises:
        StoreError: no database there, or only an unfinished build.
        FormatError, CorruptError: see `schema.connect`.
    """

    def __init__(self, root: str | Path, mode: str = "r") -> None:
        if mode not in ("r", "rw"):
            raise StoreError(f"mode is {mode!r}; it must be 'r' or 'rw'")
        self.root = Path(root)
        self.mode = mode
        self._looked_at = files.changed_at(self.root / schema.NAME)  # `continues` looks closer where it changed since
        self.catalog = Catalog(self.root, write=mode == "rw")
        if self.catalog.generation == 0:
            self.catalog.close()
            raise StoreError(f"{self.root} holds an unfinished build: run the same build command again to finish it")

    @classmethod
    def create(cls, root: str | Path, settings: Mapping[str, Any]) -> Store:
        """A new database (or the unfinished one at `root`, where its settings are the same), open for writing.

        Nothing is visible in it before its first transaction commits.

        Raises:
            StoreError: a finished database, another unfinished build, or something else is there.
        """
        root = Path(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            names = set(os.listdir(root))
            strange = sorted(names - _OURS - (_BESIDE if schema.NAME in names else set()))
        except OSError as error:
            raise StoreError(f"{root} cannot be made: {error.strerror}") from error
        if strange:
            raise StoreError(f"{root} holds other files ({strange[0]}): name a new folder for the database")
        store = cls.__new__(cls)
        store.root, store.mode, store._looked_at = root, "rw", None
        with writer_lock(root, "create", wait=0):
            store.catalog = Catalog(root, write=True, create=True)
            if store.catalog.generation:
                raise StoreError(f"{root} is a finished database: use `neuraldb add`, or name another folder")
            old = store.catalog.settings(1)
            changed = sorted(name for name in {*old, *settings} - _NOTES if old.get(name) != settings.get(name))
            if changed and store.catalog.segments(None):
                raise StoreError(
                    f"{root} holds an unfinished build with other settings ({', '.join(changed)}):"
                    " run that command again, or remove the folder"
                )
            with store.catalog.transaction():
                store.catalog.run("DELETE FROM settings")
                for name, value in settings.items():
                    store.catalog.put_setting(name, value, 1)
        return store

    def close(self) -> None:
        self.catalog.close()

    def discard(self) -> None:
        """Remove the folder of a database in which nothing was ever published."""
        if self.catalog.generation:
            raise StoreError(f"{self.root} is a finished database; it is not discarded")
        self.close()
        files.remove_tree(self.root)

    @property
    def generation(self) -> int:
        """The last committed generation, read anew."""
        return self.catalog.generation

    def settings(self, generation: int) -> dict[str, Any]:
        return self.catalog.settings(generation)

    def snapshot(self, generation: int | None = None, *, like: Snapshot | None = None) -> Snapshot:
        """The database as it was at `generation` (the newest: None); `like` lends its open segments.

        Raises:
            StoreError: there is no such generation, or it was compacted away, or the folder was replaced.
            CorruptError: an array is not what the catalog says.
        """
        while True:
            newest = self.catalog.generation
            try:
                with self.catalog.reading():
                    newest = self.catalog.generation
                    wanted = newest if generation is None else generation
                    settings = self.check_generation(wanted)
                    snapshot = self._snapshot(wanted, settings, like)
                if not self.catalog.in_place:
                    raise StoreError(f"{self.root} was moved or replaced since it was opened: open it again")
                return snapshot
            except StoreError:
                # Between reading the catalog and opening the arrays a compaction may have replaced them.
                if self.catalog.generation == newest:
                    raise

    def _snapshot(self, generation: int, settings: dict[str, Any], like: Snapshot | None) -> Snapshot:
        if like is None or like.epoch != settings["epoch"]:
            return Snapshot(self.root, self.catalog, generation, settings)
        if self.continues(like):
            lent = {segment.record.segment: segment for segment in like.segments}
            return Snapshot(self.root, self.catalog, generation, settings, lent, like.lineage)
        another = (self.catalog.place, settings["epoch"], self.catalog.digest_of(generation))
        return Snapshot(self.root, self.catalog, generation, settings, lineage=another)

    def continues(self, snapshot: Snapshot) -> bool:
        """Whether the database at our path is the one that `snapshot` was read from: the same file, with the history
        up to there. False once the folder was moved, removed or replaced, or an old copy was written over it."""
        if not self.catalog.in_place or self.catalog.place != snapshot.place:
            return False
        changed = files.changed_at(self.catalog.path)
        if changed != self._looked_at:  # SQLite's cache may not notice a copy that was written over the file
            with closing(Catalog(self.root)) as fresh:
                if fresh.digest_of(snapshot.generation) != snapshot.digest:
                    return False
            self._looked_at = changed
        return self.catalog.digest_of(snapshot.generation) == snapshot.digest

    def check_generation(self, generation: int) -> dict[str, Any]:
        """The settings at `generation`. Raises StoreError where it does not exist or was compacted away."""
        newest = self.catalog.generation
        first = self.catalog.settings(newest).get("history_start")
        if first is None:
            raise CorruptError(f"{self.catalog.path}: its settings are missing")
        if not first <= generation <= newest:
            why = "was compacted away" if 0 < generation < first else "does not exist"
            raise StoreError(f"{self.root}: generation {generation} {why}; there are {first} to {newest}")
        return self.catalog.settings(generation)

    @contextmanager
    def write(self, command: str, *, wait: float = 10.0) -> Iterator[Transaction]:
        """Hold the writer lock and prepare one generation; call `commit()` on what this yields.

        Without a commit nothing changes, but staged pieces stay for the next try.

        Raises:
            StoreError: opened read-only, not writable, or the disk failed (the message names the file).
            LockedError: another process writes.
        """
        if self.mode != "rw":
            raise StoreError(f"{self.root} was opened for reading: open it with mode='rw' to change it")
        with writer_lock(self.root, command, wait):
            try:
                transaction = Transaction(self.root, self.catalog, command)
                yield transaction
                transaction.sweep()
            except OSError as error:
                where = error.filename or self.root
                raise StoreError(
                    f"{where}: {error.strerror or error}; the database is as it was. Mend the disk (space, rights)"
                    " and run the same command again"
                ) from error


_NOTES = {"model_name"}  # settings that decide nothing: an unfinished build goes on without their being equal
_BESIDE = {"README.md", ".cache"}  # come with a database that was downloaded
_OURS = {schema.NAME, f"{schema.NAME}-journal", "segments", "search", "quarantine", "writer.lock", "writer.json"}
