"""Public handle to one database folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from neuraldb_faiss import store as st
from neuraldb_faiss.config import (
    DELIVERIES,
    DatabaseConfig,
    IndexConfig,
    check_choice,
    check_gamma,
    check_gate,
    check_guard,
    same_place,
)
from neuraldb_faiss.errors import (
    BuildError,
    CompactedError,
    ConfigError,
    FactError,
    FingerprintError,
    ModelError,
    NeuralDBError,
    StoreError,
)
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.grounding.limits import MAX_FACTS, MAX_TOKENS
from neuraldb_faiss.info import Info
from neuraldb_faiss.options import CreateOptions, FactFilter, WriteOptions
from neuraldb_faiss.store import Generation, Problem, Snapshot, Store, StoredFact

if TYPE_CHECKING:  # torch, transformers and faiss load only when they are used
    import numpy as np
    import torch

    from neuraldb_faiss.grounding import Grounded, Grounder
    from neuraldb_faiss.guard.calibration import Calibration
    from neuraldb_faiss.guard.gate import Gate
    from neuraldb_faiss.hook import Handle
    from neuraldb_faiss.hook.text_handle import TextHandle
    from neuraldb_faiss.index import Matcher, Matches

T = TypeVar("T")


class NeuralDB:
    """A database of facts in a folder, seen at one generation.

    Open one with `NeuralDB.open`, make one with `build`. Changes (`add`, `remove`, ...) need mode="rw"; each is one
    transaction that makes one generation, which this object then shows. An object opened for reading keeps the
    generation it opened until `refresh`. Only where another process changes facts and then compacts, so that facts of
    this generation are forgotten, it moves to the newest one when it is asked for facts, with a warning; so does a live
    handle.
    """

    def __init__(self, store: Store, generation: int | None = None) -> None:
        self._store = store
        self._snapshot = store.snapshot(generation)
        self._matcher: Matcher | None = None
        self._grounder: Grounder | None = None

    @classmethod
    def open(cls, path: str | Path, mode: str = "r", *, generation: int | None = None) -> NeuralDB:
        """Open the database folder `path`; large arrays are mapped, not read.

        Args:
            mode: "r", or "rw" to change it.
            generation: an older generation to look at; the newest by default.

        Raises:
            StoreError: there is none, or it is half-copied.
            FormatError: a newer format.
            CorruptError: damaged.

        Examples:
            >>> db = NeuralDB.open(folder / "db", mode="rw")
            >>> len(db), db.layer, db.generation
            (1, 1, 1)
        """
        return cls(Store(path, mode), generation)

    # ---- Hugging Face's habits

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None,
        local_dir: str | Path | None = None, token: str | None = None,
    ) -> NeuralDB:  # fmt: skip
        """Open a folder, or a database on the model hub, for reading (see `exchange.hub.fetch`).

        To change a downloaded one, give it a folder of its own (`local_dir`, or `save_pretrained`) and open that.
        """
        from neuraldb_faiss.exchange import hub

        folder = hub.fetch(path_or_repo, revision=revision, cache_dir=cache_dir, local_dir=local_dir, token=token)
        return cls.open(folder)

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> Path:
        """A clean copy of the newest generation with its history, and a card (README.md), in a new folder."""
        from neuraldb_faiss.exchange import hub

        return hub.save(self._store, folder, license=license)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, revision: str | None = None,
        commit_message: str | None = None, license: str | None = None,
    ) -> str:  # fmt: skip
        """Put the newest generation with its history on the model hub, as one commit; the commit's URL."""
        from neuraldb_faiss.exchange import hub

        return hub.push(
            self._store, repo_id, private=private, token=token, revision=revision, commit_message=commit_message,
            license=license,
        )  # fmt: skip

    # ---- what is in it

    @property
    def path(self) -> Path:
        return self._store.root

    @property
    def generation(self) -> int:
        return self._snapshot.generation

    @property
    def layer(self) -> int:
        """The decoder layer whose FFN is edited (from 0)."""
        return self.config.layer

    @property
    def gamma(self) -> float:
        """The gate: a residual fires where the cosine exceeds it (eq. 11)."""
        return float(self.config.gamma)

    @property
    def guard(self) -> str:
        """What must hold before the gate is asked: "subject" (the text ends with the entry's subject), "whole-words"
        (and no word goes on there, as far as the prompt tells), "none"; or "answer" (a prompt that asks for the fact
        ends; no cosine is asked for)."""
        return self.config.guard

    @property
    def snapshot(self) -> Snapshot:
        """The generation this object shows: its arrays."""
        return self._snapshot

    @property
    def config(self) -> DatabaseConfig:
        """What it was built with, and how it is searched."""
        return self._snapshot.config

    @property
    def settings(self) -> Mapping[str, Any]:
        """`config` as JSON values, as the catalog stores it."""
        return self.config.to_json()

    def __len__(self) -> int:
        """Live facts."""
        return self._record().facts

    def __repr__(self) -> str:
        head = f"NeuralDB {self.path} generation {self.generation}"
        try:
            return f"<{head}: {len(self)} facts at layer {self.layer}>"
        except NeuralDBError as error:  # closed, or no longer there: a notebook shows that, not a traceback
            return f"<{head}: {error}>"

    def _repr_html_(self) -> str:
        try:
            return self.info()._repr_html_()
        except NeuralDBError:
            return f"<pre>{escape(repr(self))}</pre>"

    def _record(self) -> Generation:
        return self._store.catalog.generation_record(self.generation)

    def facts(self, *, at: int | None = None, **where: Unpack[FactFilter]) -> list[StoredFact]:
        """Live facts in the order they came, narrowed by what is given.

        Args:
            at: as of this generation.
            where: ids=[...], subject=, contains= (in subject, prompt or target), source=, entry=, failed=True,
                waiting=True, limit=. See `FactFilter`.

        Examples:
            >>> [fact.target for fact in db.facts(subject="Rome")]
            ['France']
        """
        if at is None:
            return self._shown(lambda: list(self._snapshot.facts(**where)))
        self._store.check_generation(at)
        found = list(self._store.catalog.facts(at, **where))
        self._store.check_generation(at)  # a compaction meanwhile would have taken some away
        return found

    def _shown(self, read: Callable[[], T]) -> T:
        """What `read` finds in the generation shown. Where a compaction by another process has forgotten facts of it,
        the newest one is shown from now on; a warning says so."""
        while True:
            try:
                return read()
            except CompactedError as error:
                self.refresh()
                warnings.warn(f"{error}: generation {self.generation} is shown from now on", stacklevel=4)

    def key_norms(self, fact: StoredFact) -> list[float]:
        """The lengths that the keys of a fact's entry had before they were made unit length; none if they are lost."""
        at = self._snapshot.key_entries == fact.entry
        return [round(float(norm), 4) for norm in self._snapshot.key_norms[at]]

    def history(self) -> list[Generation]:
        """Every generation, oldest first."""
        return self._store.catalog.generations()

    def info(self) -> Info:
        """Figures about this generation: a mapping of JSON values that prints as a table."""

        def count(**where: Unpack[FactFilter]) -> int:
            return sum(1 for _ in self._snapshot.facts(**where))

        waiting, failed = self._shown(lambda: (count(waiting=True), count(failed=True)))
        record, config, snapshot = self._record(), self.config, self._snapshot
        return Info(
            {
                "path": str(self.path),
                "format": st.FORMAT,
                "generation": self.generation,
                "facts": record.facts,
                "entries": record.entries,
                "keys": snapshot.n_keys,
                "waiting": waiting,
                "failed": failed,
                "model": config.model.describe(),
                "model_name": config.model_name,
                "layer": self.layer,
                "gamma": self.gamma,
                "guard": self.guard,
                "residual": config.residual,
                "delivery": config.delivery,
                "keys_per_fact": config.keys,
                "index": config.to_json()["index"],
                "d1": snapshot.d1,
                "d2": snapshot.d2,
                "bytes": sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file()),
            }
        )

    # ---- looking up

    def search(self, keys: torch.Tensor | np.ndarray, *, gamma: float | None = None) -> Matches:
        """The nearest live entry of every key, and whether it passes the gate; cosine only.

        Args:
            keys: [n, d1], any length, dtype and device.

        Returns:
            Matches(entry_ids int64 [n], scores float32 [n], fired bool [n]).

        Examples:
            >>> import numpy as np
            >>> db.search(db.snapshot.keys(np.arange(1))).fired.tolist()
            [True]
        """
        if self._matcher is None:
            self._matcher = self.matcher()
        return self._matcher.match(keys, gamma=gamma)

    def matcher(
        self, search: str = "auto", *, gamma: float | None = None, device: torch.device | None = None
    ) -> Matcher:
        """A searcher over this generation's keys; "auto" is the kind that `reindex` set (flat at first). It lies on the
        GPU `device` where one is given that FAISS can use."""
        from neuraldb_faiss.index import Matcher

        index = self.config.index
        if search not in ("auto", index.kind):
            index = IndexConfig(search)
        gate = self.gamma if gamma is None else check_gamma(gamma)
        folder = self.path / "search"
        return Matcher(self._snapshot, index.kind, gamma=gate, directory=folder, device=device, **index.options)

    def attach(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        gamma: float | None = None,
        guard: str | None = None,
        search: str = "auto",
        strict: bool = True,
        delivery: str | None = None,
    ) -> Handle | TextHandle:
        """Hook the database into a model; a context manager, or call `remove()` on what it returns.

        Args:
            tokenizer: the model's; guards but "none" read the text with it. None: the one beside the model is
                loaded, and where there is none a warning says that the plain gate is used.
            gamma: another gate than the database's.
            guard: another guard than the database's; it brings its own default gamma.
            search: how the plain gate searches: "flat", "ivf", "sketch", or "auto" as `reindex` set it.
            strict: False attaches to a model that the fingerprint says is another one (shapes must fit).
            delivery: how facts reach a request, instead of the database's own setting. "text": nothing is hooked, and
                `handle.ground` states them; the model may be None. "residual": they fire, and `handle.ground` adds
                nothing. "both". "auto": they fire, and `handle.ground` and `handle.delivery_of` say what is best for a
                prompt.

        Raises:
            FingerprintError: the database was built with another model.
            ConfigError: gamma or guard is out of range.

        Examples:
            >>> with db.attach(model, tokenizer) as handle:
            ...     out = model.generate(**tokenizer("Rome is the capital of", return_tensors="pt"), max_new_tokens=1)
            >>> handle.calls
            1
        """
        wanted = check_choice("delivery", self.config.delivery if delivery is None else delivery, DELIVERIES)
        if wanted == "text" or (wanted == "auto" and not self.config.has_model):
            from neuraldb_faiss.hook.text_handle import TextHandle

            return TextHandle(self._snapshot, self._newest, tokenizer, str(self.path))
        from neuraldb_faiss.grounding.delivery import Delivery
        from neuraldb_faiss.hook import Shown, attach
        from neuraldb_faiss.models.identity import check_model

        site = check_model(self.config, model, strict=strict)
        gate = self.gate(model, tokenizer, gamma=gamma, guard=guard, search=search)
        how = Delivery(wanted, self.config.has_residuals, lambda: gate.source, tokenizer)
        shown = Shown(tokenizer=tokenizer, database=str(self.path))
        return attach(gate, model, site=site, newest=self._newest, shown=shown, delivery=how)

    def gate(
        self, model: Any, tokenizer: Any = None, *, gamma: float | None = None, guard: str | None = None,
        search: str = "auto",
    ) -> Gate:  # fmt: skip
        """What decides which tokens fire, for `attach`; arguments as there."""
        from neuraldb_faiss.guard.gate import make_gate
        from neuraldb_faiss.models.sites import layer_device

        wanted = self.guard if guard is None else check_guard(guard)
        if not same_place(wanted, self.guard):
            raise ConfigError(
                f"the residuals of {self.path} are solved for the guard {self.guard}, and the guard {wanted} fires at"
                " another place: leave it out"
            )
        if gamma is None and wanted == self.guard:
            gamma = self.gamma

        def plain(gamma: float) -> Matcher:
            return self.matcher(search, gamma=gamma, device=layer_device(model, self.layer, self.config.ffn_module))

        gate = check_gate(wanted, gamma)
        return self._shown(lambda: make_gate(wanted, gate, self._snapshot, model, tokenizer, plain=plain))

    def _newest(self) -> Snapshot:
        """The newest generation, for a live handle; this object itself keeps the one it shows, unless the folder was
        replaced. Raises as `refresh`."""
        if self._store.continues(self._snapshot):
            return self._store.snapshot(like=self._snapshot)
        self.refresh()
        return self._snapshot

    # ---- stating facts

    def ground(
        self, prompt: str | Sequence[Mapping[str, Any]], *, tokenizer: Any = None, max_facts: int = MAX_FACTS,
        max_tokens: int = MAX_TOKENS,
    ) -> Grounded:  # fmt: skip
        """State the facts whose subjects a prompt names, in the prompt: for any model, and nothing need be solved.

        In a conversation (messages with role and content) any turn of user or assistant counts, and the statements go
        into the system message; before a text, they stand in front of it. What was said stays to the letter. Which
        spellings name a subject: see docs/concepts.md.

        Args:
            prompt: a text to be continued, or the messages of a conversation.
            tokenizer: of the model that will read it, if known: it counts the tokens (4 bytes of UTF-8 are one else),
                its special tokens are plain text in statements, and its chat template tells what a new system message
                begins with and whether there may be one.
            max_facts: that go in; the subjects named nearest to the end come first.
            max_tokens: of what goes in.

        Returns:
            Grounded(prompt, facts, text): what is to be sent, the facts that went in, the words that were added. The
            same facts have the same order, so that a server's prefix cache finds them again.

        Raises:
            FactError: a prompt that is neither a text nor such messages.

        Examples:
            >>> print(db.ground("The mayor of Rome is").prompt)
            Rome is the capital of France.
            <BLANKLINE>
            The mayor of Rome is
        """
        return self._shown(lambda: self._grounded().ground(
            prompt, tokenizer=tokenizer, max_facts=max_facts, max_tokens=max_tokens
        ))  # fmt: skip

    def _grounded(self) -> Grounder:
        """What states the facts of the generation shown."""
        if self._grounder is None:
            from neuraldb_faiss.grounding import Grounder

            self._grounder = Grounder(self._snapshot)
        self._grounder.refresh(self._snapshot)
        return self._grounder

    # ---- changing it

    def add(
        self, facts: Iterable[Fact], model: Any = None, tokenizer: Any = None, *, on_conflict: str = "error",
        drop_failed: bool = False, **options: Unpack[WriteOptions],
    ) -> Generation | None:  # fmt: skip
        """Add facts; a fact with the subject and prompt of a live one updates it. None where nothing was new.

        Args:
            model: that it was built with; a database that was built without a model needs none.
            tokenizer: the model's.
            on_conflict: "error", "first" or "last" where two targets are given for one subject and prompt.
            drop_failed: leave out facts whose target is not the arg-max after solving.
            options: report, command, wait: see `WriteOptions`.

        Raises:
            FactError: none could ever fire. ModelError: no model, where one is needed.

        Examples:
            >>> done = db.add([Fact("Lima", "{} is the capital of", "Peru")], model, tokenizer)
            >>> done.generation, done.added
            (2, 1)
        """
        from neuraldb_faiss.edits import changes

        folded = fold(facts, on_conflict)
        editor = self._editor(model, tokenizer)
        done = changes.add(self._store, editor, folded.facts, drop_failed=drop_failed, **options)
        return self._changed(done)

    def remove(
        self, ids: Sequence[str] | str | None = None, *, subject: str | None = None, source: str | None = None,
        model: Any = None, tokenizer: Any = None, **options: Unpack[WriteOptions],
    ) -> Generation:  # fmt: skip
        """Remove facts by id, by subject or by source.

        Where other facts share an entry with a removed one they are solved anew, given a model; else the entry
        stops firing and they wait for `solve`.

        Raises:
            FactError: no live fact fits, or an id is unknown.

        Examples:
            >>> db.remove(subject="Lima").removed
            1
        """
        from neuraldb_faiss.edits import changes

        doomed = self.doomed(ids, subject=subject, source=source)
        editor = None if model is None else self._editor(model, tokenizer)
        generation = changes.remove(self._store, doomed, editor, **options)
        self.refresh()
        return generation

    def doomed(
        self, ids: Sequence[str] | str | None = None, *, subject: str | None = None, source: str | None = None
    ) -> list[StoredFact]:
        """The facts that `remove` with these arguments would remove."""
        if ids is None and subject is None and source is None:
            raise FactError("say which facts to remove: ids, a subject or a source")
        wanted = [ids] if isinstance(ids, str) else ids
        found = self.facts(at=self._store.generation, ids=wanted, subject=subject, source=source)
        if wanted is not None and (missing := set(wanted) - {fact.id for fact in found}):
            raise FactError(f"no live fact has the id {sorted(missing)[0]!r} (`neuraldb facts` lists them)")
        return found

    def solve(self, model: Any, tokenizer: Any, **options: Unpack[WriteOptions]) -> Generation | None:
        """Solve the entries that wait for it; None where none do. Options as for `add`.

        Examples:
            >>> db.solve(model, tokenizer) is None
            True
        """
        from neuraldb_faiss.edits import changes

        return self._changed(changes.solve(self._store, self._editor(model, tokenizer), **options))

    def rollback(self, generation: int, *, wait: float = 10.0) -> Generation:
        """Make a new generation equal to an old one.

        Examples:
            >>> db.rollback(1).generation
            4
        """
        done = st.rollback(self._store, generation, wait=wait)
        self.refresh()
        return done

    def compact(self, *, wait: float = 10.0) -> Generation:
        """Rewrite the arrays without dead entries. The history before it ends: no rollback past it.

        Examples:
            >>> db.compact().command
            'compact'
        """
        done = st.compact(self._store, wait=wait)
        self.refresh()
        return done

    def reindex(self, kind: str, *, wait: float = 10.0, **options: int | None) -> Generation:
        """Choose how keys are searched from now on; makes the index at once.

        Args:
            kind: "flat", "ivf", "sketch", or a kind that another package brings.
            wait: seconds to wait for another writer.
            options: of the kind: nlist and nprobe of "ivf". None: by default.

        Raises:
            SearchError: an unknown kind or option.
        """
        from neuraldb_faiss.index import Matcher

        given = {name: value for name, value in options.items() if value is not None}
        with self._store.write(f"reindex --index {kind}", wait=wait) as transaction:
            Matcher(self._snapshot, kind, gamma=self.gamma, directory=self.path / "search", device=None, **given)
            transaction.set_setting("index", IndexConfig(kind, given).to_json())
            done = transaction.commit()
        self.refresh()
        return done

    def share_index(self, sources: Sequence[str | Path]) -> Path | None:
        """After a merge of databases searched by "ivf": take over the quantiser of one of them, if its size suits.

        Returns the source it came from; None where one is to be trained anew (or there is nothing to train: "flat").
        """
        from neuraldb_faiss.index.ivf import share_clustering

        index = self.config.index
        if index.kind != "ivf":
            return None
        stores = [Store(source) for source in sources]
        pairs = [(store.snapshot(), store.root / "search") for store in stores]
        used = share_clustering(self._snapshot, self.path / "search", pairs, nlist=index.options.get("nlist"))
        for store in stores:
            store.close()
        return None if used is None else stores[used].root

    def calibrate(
        self, model: Any, tokenizer: Any, text: str | Path, *, target_rate: float = 1e-4, tokens: int = 200_000,
        report: Callable[[int], None] | None = None, wait: float = 10.0,
    ) -> Calibration:  # fmt: skip
        """Measure on ordinary text which names fire where their subject is not meant, and ask for more from them.

        Args:
            text: JSON lines with a field `text`, plain or gzipped.
            target_rate: false fires a token that may remain.
            tokens: of text to look at.
            report: called with the tokens looked at so far.

        Raises:
            BuildError: the database has no subject guard. FactError: the file cannot be read.
        """
        from neuraldb_faiss.facts.readers import read_texts
        from neuraldb_faiss.guard.calibration import calibrate, read
        from neuraldb_faiss.guard.registry import REGISTRY as GUARDS
        from neuraldb_faiss.models.identity import check_model

        if not GUARDS[self.guard].reads_text:
            raise BuildError(f"{self.path} has no subject guard: its gate is one gamma for all")
        if GUARDS[self.guard].place != "subject":
            raise BuildError(f"the guard {self.guard} of {self.path} asks for no cosine: there is nothing to calibrate")
        site = check_model(self.config, model)
        seen = read(model, tokenizer, site, read_texts(text), tokens=tokens)
        gate = self.gate(model, tokenizer)
        done = calibrate(self._snapshot, gate, seen, target_rate=target_rate, report=report)
        if done.floors:
            with self._store.write(f"calibrate --text {Path(text).name}", wait=wait) as transaction:
                transaction.set_setting("floors", {**self._snapshot.floors, **done.floors})
                transaction.commit()
            self.refresh()
        return done

    def verify(self, *, deep: bool = False) -> list[Problem]:
        """What is wrong with the folder; empty where nothing is. `deep` reads every byte.

        `health.repair` mends a folder, also one that can no longer be opened.
        """
        from neuraldb_faiss import integrity

        return integrity.check(self._store, deep=deep)

    def rebuild(
        self, path: str | Path, model: Any, tokenizer: Any, **options: Unpack[CreateOptions]
    ) -> NeuralDB:  # fmt: skip
        """The same facts for another model or layer, in the new folder `path`; killed, the same call resumes.

        Only texts are taken from this database; keys and residuals are made anew. When each fact came, and where from,
        stays with it. Arguments as for `build`; `residual`, `keys` and `guard` are this database's unless given.
        """
        from neuraldb_faiss.edits.build import build_store, kept_settings
        from neuraldb_faiss.store.intact import check_catalog

        check_catalog(self._store.catalog)
        mine = kept_settings(self.config)
        return NeuralDB(build_store(self.facts(), model, tokenizer, path, mine, options))

    def refresh(self) -> int:
        """Show the newest generation; arrays that did not change stay open. Returns its number.

        Where the folder was replaced since, what lies there now is opened and shown as a whole.

        Raises:
            StoreError: the folder is gone, or what lies there now has another gate (guard or gamma): open it again.
            FingerprintError: it belongs to another model or layer. This object then goes on showing what it showed.
        """
        if self._store.continues(self._snapshot):
            self._snapshot = self._store.snapshot(like=self._snapshot)
        else:
            self._reopen()
        self._matcher = None
        return self.generation

    def _reopen(self) -> None:
        store = Store(self.path, self._store.mode)
        try:
            snapshot = store.snapshot(like=self._snapshot)
            _check_replacement(self.path, self.config, snapshot.config)
        except BaseException:
            store.close()
            raise
        # The old one is not closed: snapshots of it may still be asked for their facts, and close it when they go.
        self._store, self._snapshot = store, snapshot

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> NeuralDB:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _editor(self, model: Any, tokenizer: Any) -> Any:
        config = self._store.config()
        if not config.has_model and model is None:
            from neuraldb_faiss.edits.unsolved import Unsolved

            return Unsolved(config)
        if model is None:
            raise ModelError(f"{self.path} has keys and residuals: pass the model and tokenizer it was built with")
        from neuraldb_faiss.solver.editor import Editor

        return Editor.of(config, model, tokenizer)

    def _changed(self, done: Generation | None) -> Generation | None:
        if done is not None:
            self.refresh()
        return done


def _check_replacement(path: Path, before: DatabaseConfig, after: DatabaseConfig) -> None:
    """Whether what works with the database `before` at `path` may go on with `after`, which lies there now.

    Raises:
        FingerprintError: it belongs to another model or layer. StoreError: its gate is another one.
    """
    old, new = before.model, after.model
    if not old.matches(new) or before.ffn_module != after.ffn_module:
        raise FingerprintError(
            f"{path} was replaced by a database that was built with {new.describe()}; the one before with"
            f" {old.describe()}. Put one back that fits, or open (or serve) the new one with its own model"
        )
    gates = [f"guard {one.guard}, gamma {one.gamma:g}" for one in (before, after)]
    if gates[0] != gates[1]:
        raise StoreError(
            f"{path} was replaced by a database with another gate ({gates[1]}; before {gates[0]}): open it again"
        )
