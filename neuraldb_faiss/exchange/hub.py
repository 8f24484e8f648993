"""Saving, pushing and downloading of databases as repositories on Hugging Face's hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, cached_assets_path, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

from neuraldb_faiss.errors import NeuralDBError, StoreError
from neuraldb_faiss.exchange.card import LIBRARY, card
from neuraldb_faiss.store import Store, atomic, copy, files, schema
from neuraldb_faiss.store.segments import ARRAYS
from neuraldb_faiss.strict_json import parse

README = "README.md"
_MARK = Path(".cache") / "neuraldb.json"  # in a downloaded folder: which commit, and is it whole
# Exactly the files of a database; what else a repository holds is never asked for.
_WANTED = [README, schema.NAME, *(f"segments/{'[0-9]' * 8}/{name}.npy" for name in ARRAYS)]
# What a push takes away where the copy does not have it: another generation's, or what never belonged there.
_OURS = re.compile(r"(segments|search|quarantine)/.*|catalog\.sqlite.*|writer\.(lock|json)")


def save(store: Store, folder: str | Path, *, license: str | None = None) -> Path:
    """A clean copy of the newest generation and its history, with a card, in a new or empty folder.

    Raises:
        StoreError: `folder` is taken, or the disk fails.
    """
    return _save(store, Path(folder), name=Path(folder).absolute().name, license=license, link=False)


def _save(store: Store, folder: Path, *, name: str, license: str | None, link: bool) -> Path:
    copy(
        store, folder, link=link,
        beside=lambda copied: {README: card(copied, name=name, license=license).encode()},
    ).close()  # fmt: skip
    return folder


def push(
    store: Store,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> str:
    """Put a clean copy of the newest generation on the hub, as one commit; what it does not hold any more goes.

    The repository and the branch `revision` are made where they are missing.

    Returns:
        the URL of the commit.

    Raises:
        StoreError: the hub refuses, or cannot be reached.
    """
    api = HfApi(token=token, library_name=LIBRARY)
    with _asking(repo_id):
        validate_repo_id(repo_id)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    parent = store.root.absolute().parent
    near = parent if os.access(parent, os.W_OK) else None  # beside it, arrays can be linked instead of copied
    with tempfile.TemporaryDirectory(prefix=".push-", dir=near) as temporary:
        folder = _save(store, Path(temporary) / "db", name=repo_id, license=license, link=True)
        mine = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        with _asking(repo_id):
            # One commit, bound to the one before: nobody downloads half a database, or half of two.
            before = api.model_info(repo_id, revision=revision)
            there = {file.rfilename for file in before.siblings or ()}
            gone = sorted(name for name in there - mine.keys() if _OURS.fullmatch(name))
            done = api.create_commit(
                repo_id,
                operations=[
                    *(CommitOperationDelete(path_in_repo=name) for name in gone),
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in mine.items()),
                ],
                commit_message=commit_message or f"Generation {store.generation} of a {LIBRARY} database",
                revision=revision,
                parent_commit=before.sha,
            )
    return str(done.commit_url)


def fetch(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_dir: str | Path | None = None,
    token: str | None = None,
) -> Path:
    """The folder of a database: `path_or_repo` itself where it is one, else downloaded from the hub.

    Every commit gets a folder of its own under HF_HOME/assets/neuraldb-faiss, which is downloaded once and not changed
    any more. Only a database's own files are taken, `search/` never. A hub's ordinary cache would not do: it is made
    of symlinks that leave the folder, and those are refused.

    Args:
        revision: branch, tag or commit; the main branch by default.
        cache_dir: to be used in the place of HF_HOME.
        local_dir: download there instead; a new or empty folder, or one that holds this very commit.

    Raises:
        StoreError: no such folder or repository, no such revision, no access, offline and not downloaded before, or
            `local_dir` holds something else.
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    repo_id = str(path_or_repo)
    with _asking(repo_id):
        validate_repo_id(repo_id)
        hub = None if cache_dir is None else Path(cache_dir) / "hub"
        commit = _resolve(repo_id, revision, hub, token)
        if local_dir is not None:
            target = Path(local_dir)
        else:
            assets = None if cache_dir is None else Path(cache_dir) / "assets"
            target = cached_assets_path(LIBRARY, repo_id, commit, assets_dir=assets)
        if not _is_whole(target, commit):
            snapshot_download(
                repo_id, revision=commit, local_dir=target, cache_dir=hub, token=token, library_name=LIBRARY,
                allow_patterns=_WANTED,
            )  # fmt: skip
            if not (target / schema.NAME).is_file():
                raise StoreError(f"the repository {repo_id!r} holds no database (no {schema.NAME} at {commit[:7]})")
            _mark(target, commit, whole=True)
    return target


def _resolve(repo_id: str, revision: str | None, hub: Path | None, token: str | None) -> str:
    """The commit that a revision names; offline, that which it named last."""
    # The client resolves, and keeps what it resolved, when it downloads: two small files are enough for it.
    snapshot = snapshot_download(
        repo_id, revision=revision, cache_dir=hub, token=token, library_name=LIBRARY,
        allow_patterns=[README, ".gitattributes"],
    )  # fmt: skip
    return Path(snapshot).name


def _is_whole(folder: Path, commit: str) -> bool:
    """Whether the folder holds this commit already; if it is free, it is taken for it.

    Raises:
        StoreError: it holds something else, which a download would overwrite.
    """
    try:
        mark = parse((folder / _MARK).read_text(encoding="utf-8"))
        if mark["commit"] == commit:
            return bool(mark["whole"])
        held = f"commit {str(mark['commit'])[:7]} of a database, this is {commit[:7]}"
    except (OSError, ValueError, KeyError, TypeError):
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            _mark(folder, commit, whole=False)
            return False
        held = "other files"
    raise StoreError(f"{folder} holds {held}: name a new folder to download to, or open it with NeuralDB.open")


def _mark(folder: Path, commit: str, *, whole: bool) -> None:
    path = folder / _MARK
    files.ensure_folder(path.parent)
    atomic.write_file(files.within(folder, path), json.dumps({"commit": commit, "whole": whole}).encode())


@contextmanager
def _asking(repo_id: str) -> Iterator[None]:
    """What the client raises becomes one line that says what to do."""
    try:
        yield
    except NeuralDBError:
        raise
    except GatedRepoError as error:
        raise StoreError(f"the repository {repo_id!r} is gated: ask for access on its page, and log in") from error
    except RepositoryNotFoundError as error:
        raise StoreError(
            f"there is no folder and no repository {repo_id!r}, or it is private: check the name, or log in"
            " (`hf auth login`, HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise StoreError(f"the repository {repo_id!r} has no such revision: check the branch, tag or commit") from error
    except HFValidationError as error:
        raise StoreError(f"{repo_id!r} is neither a folder nor a repository's name (OWNER/NAME)") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise StoreError(
            f"the hub cannot be reached (or HF_HUB_OFFLINE is set), and {repo_id!r} was not downloaded before"
        ) from error
    except HfHubHTTPError as error:
        raise StoreError(f"the hub refused {repo_id!r}: {_first_line(error)}") from error
    except Exception as error:  # the client's own libraries have errors of theirs
        raise StoreError(f"the hub failed on {repo_id!r}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
