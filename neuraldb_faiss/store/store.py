"""A database folder: opening it, its snapshots, and its one writer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.errors import CompactedError, NeuralDBError, StoreError
from neuraldb_faiss.store import atomic, files, schema
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.lock import LOCK, RECORD, writer_lock
from neuraldb_faiss.store.segments import is_segment_name
from neuraldb_faiss.store.snapshot import Snapshot
from neuraldb_faiss.store.transaction import Transaction


class Store:
    """The folder `root`.

    Raises:
        StoreError: no database there, or only an unfinished build.
        FormatError, CorruptError: see `schema.connect`; CorruptError too where a part of the folder is a link.
    """

    def __init__(self, root: str | Path, mode: str = "r") -> None:
        if mode not in ("r", "rw"):
            raise StoreError(f"mode is {mode!r}; it must be 'r' or 'rw'")
        self.root = Path(root)
        self.mode = mode
        self._held = False  # whether the writer lock is held around every `write`
        _refuse_links(self.root)
        self._looked_at = files.changed_at(self.root / schema.NAME)  # `continues` looks closer where it changed since
        self.catalog = Catalog(self.root, write=mode == "rw")
        if self.catalog.generation == 0:
            self.catalog.close()
            raise StoreError(f"{self.root} holds an unfinished build: run the same build command again to finish it")

    @classmethod
    @contextmanager
    def creating(
        cls, root: str | Path, settings: Mapping[str, Any], command: str, *, wait: float = 10.0,
        keep_staged: bool = False,
    ) -> Iterator[Store]:  # fmt: skip
        """A new database (or the unfinished one at `root`, where its settings are the same), open for writing.

        The writer lock is held until the block ends, around every `write` in it. Nothing is visible to others before
        the first commit; where an error comes before it, what was made is removed.

        Args:
            keep_staged: leave an unfinished build with staged pieces to the next try, also after an error.

        Raises:
            StoreError: a finished database, another unfinished build, or something else is there.
            LockedError: another process is making it.
        """
        root = Path(root)
        with ExitStack() as lock:
            while True:
                _claim_folder(root)
                try:
                    lock.enter_context(writer_lock(root, command, wait))
                    break
                except StoreError:
                    if root.exists():  # else the build that held the lock failed, and removed what it had made
                        raise
            store = cls.__new__(cls)
            store.root, store.mode, store._held, store._looked_at = root, "rw", True, None
            store.catalog = Catalog(root, write=True, create=True)
            try:
                store._begin(settings)
            except BaseException:
                store.close()
                raise
            try:
                yield store
            except BaseException:
                with suppress(StoreError, OSError):
                    if not store.generation and not (keep_staged and store.catalog.segments(None)):
                        store.close()
                        remove_database(root)
                raise
            finally:
                store._held = False

    def _begin(self, settings: Mapping[str, Any]) -> None:
        catalog = self.catalog
        _check_unfinished(self.root, catalog)
        old = catalog.settings(1)
        changed = sorted(name for name in {*old, *settings} - _NOTES if old.get(name) != settings.get(name))
        if changed and catalog.segments(None):
            raise StoreError(
                f"{self.root} holds an unfinished build with other settings ({', '.join(changed)}):"
                " run that command again, or remove the folder"
            )
        with catalog.transaction():
            catalog.run("DELETE FROM settings")
            for name, value in settings.items():
                catalog.put_setting(name, value, 1)

    def close(self) -> None:
        self.catalog.close()

    @property
    def generation(self) -> int:
        """The last committed generation, read anew."""
        return self.catalog.generation

    def config(self, generation: int | None = None) -> DatabaseConfig:
        """The settings at `generation` (the newest: None)."""
        return self.catalog.config(self.generation if generation is None else generation)

    def snapshot(self, generation: int | None = None, *, like: Snapshot | None = None) -> Snapshot:
        """The database as it was at `generation` (the newest: None); `like` lends its open segments.

        Raises:
            StoreError: there is no such generation, or the folder was replaced; CompactedError: it was compacted away.
            CorruptError: an array is not what the catalog says.
        """
        while True:
            newest: int | None = None
            try:
                with self.catalog.reading():
                    newest = self.catalog.generation
                    wanted = newest if generation is None else generation
                    config = self._kept(wanted, newest)
                    snapshot = self._snapshot(wanted, config, like)
                if not self.catalog.in_place:
                    raise StoreError(f"{self.root} was moved or replaced since it was opened: open it again")
                return snapshot
            except StoreError:
                # Between reading the catalog and opening the arrays a compaction may have replaced them.
                if newest is None or self.catalog.generation == newest:
                    raise

    def _snapshot(self, generation: int, config: DatabaseConfig, like: Snapshot | None) -> Snapshot:
        if like is None or like.epoch != config.epoch:
            return Snapshot(self.root, self.catalog, generation, config)
        if self.continues(like):
            lent = {segment.record.segment: segment for segment in like.segments}
            return Snapshot(self.root, self.catalog, generation, config, lent, like.lineage)
        another = (self.catalog.place, config.epoch, self.catalog.stamp_of(generation))
        return Snapshot(self.root, self.catalog, generation, config, lineage=another)

    def continues(self, snapshot: Snapshot) -> bool:
        """Whether the database at our path is the one that `snapshot` was read from: the same file, with the history
        up to there. False once the folder was moved, removed or replaced, or an old copy was written over it."""
        if not self.catalog.in_place or self.catalog.place != snapshot.place:
            return False
        changed = files.changed_at(self.catalog.path)
        if changed != self._looked_at:  # SQLite's cache may not notice a copy that was written over the file
            with closing(Catalog(self.root)) as fresh:
                if fresh.stamp_of(snapshot.generation) != snapshot.stamp:
                    return False
            self._looked_at = changed
        return self.catalog.stamp_of(snapshot.generation) == snapshot.stamp

    def check_generation(self, generation: int) -> DatabaseConfig:
        """The settings at `generation`. Raises StoreError where it does not exist, CompactedError where it is gone."""
        return self._kept(generation, self.catalog.generation)

    def _kept(self, generation: int, newest: int) -> DatabaseConfig:
        """`check_generation`, where the newest one is known."""
        config = self.catalog.config(newest)
        first = config.history_start
        if not first <= generation <= newest:
            gone = 0 < generation < first
            kind, why = (CompactedError, "was compacted away") if gone else (StoreError, "does not exist")
            raise kind(f"{self.root}: generation {generation} {why}; there are {first} to {newest}")
        return config if generation == newest else self.catalog.config(generation)

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
        self.catalog.check_place()  # before anything is put into a folder that took the place of ours
        with nullcontext() if self._held else writer_lock(self.root, command, wait):
            _refuse_links(self.root)
            try:
                transaction = Transaction(self.root, self.catalog, command)
                try:
                    yield transaction
                except NeuralDBError:
                    with suppress(StoreError, OSError):  # what was written so far takes room
                        transaction.sweep()
                    raise
                with suppress(StoreError):  # what is done stays done
                    transaction.sweep()
            except OSError as error:
                where = error.filename or self.root
                raise StoreError(
                    f"{where}: {error.strerror or error}; the database is as it was. Mend the disk (space, rights)"
                    " and run the same command again"
                ) from error


def remove_database(root: Path) -> None:
    """Remove what belongs to the database at `root`, whose writer lock is held, and the folder if that empties it."""
    left = [name for name in os.listdir(root) if atomic.is_temporary(name) and name.startswith(f".{RECORD}.")]
    for name in (schema.NAME, f"{schema.NAME}-journal", RECORD, *left):
        (root / name).unlink(missing_ok=True)
    for name in ("search", "quarantine"):
        if files.within(root, root / name).is_dir():
            files.remove_tree(root / name)
    segments = files.within(root, root / "segments")
    for path in segments.iterdir() if segments.is_dir() else ():
        if is_segment_name(path.name) and not path.is_symlink():
            files.remove_tree(path)
    with suppress(OSError):  # it holds something else, or is not there
        segments.rmdir()
    (root / LOCK).unlink(missing_ok=True)  # last: from now on another process may make a database here
    with suppress(OSError):
        root.rmdir()


def _refuse_links(root: Path) -> None:
    """Raises CorruptError where a part of the database folder is a link: nothing is read or written through one."""
    for name in ("segments", "search", "quarantine", LOCK, RECORD):
        files.within(root, root / name)


def check_new(root: Path) -> None:
    """Raises StoreError where no new database can be made at `root`; writes nothing.

    `Store.create` checks the same under its lock. This one is for callers that load a model first.
    """
    if not root.exists():
        above = next(one for one in root.absolute().parents if one.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            why = "nothing can be written there" if above.is_dir() else "that is a file"
            raise StoreError(f"{root} cannot be made in {above}: {why}")
        return
    try:
        _check_contents(root)
    except OSError as error:
        raise StoreError(f"{root} cannot be made: {error.strerror}") from error
    catalog: Catalog | None = None
    with suppress(NeuralDBError):  # it is being made just now, or is damaged: `Store.create` says what there is to say
        catalog = Catalog(root)
    if catalog is not None:
        with closing(catalog):
            _check_unfinished(root, catalog)


def _check_unfinished(root: Path, catalog: Catalog) -> None:
    if catalog.generation:
        raise StoreError(f"{root} is a finished database: use `neuraldb add`, or name another folder")


def _claim_folder(root: Path) -> None:
    """Make `root`, or raise StoreError where it holds anything but an unfinished or downloaded database."""
    try:
        files.ensure_folder(root)
        _check_contents(root)
    except OSError as error:
        raise StoreError(f"{root} cannot be made: {error.strerror}") from error
    _refuse_links(root)


def _check_contents(root: Path) -> None:
    names = {name for name in os.listdir(root) if not atomic.is_temporary(name)}
    strange = sorted(names - (_OURS | _BESIDE if schema.NAME in names else {LOCK, RECORD}))
    if strange:
        raise StoreError(f"{root} holds other files ({strange[0]}): name a new folder for the database")


_NOTES = {
    "model_name",
    "delivery",
}  # settings that decide nothing: an unfinished build goes on without their being equal
_BESIDE = {"README.md", ".cache"}  # come with a database that was downloaded
_OURS = {schema.NAME, f"{schema.NAME}-journal", "segments", "search", "quarantine", LOCK, RECORD}
