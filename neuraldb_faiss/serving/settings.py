"""Settings of a server: limits, tokens, hosts, delivery, and names of databases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.hosts import Hosts

UNEDITED = "none"  # in place of a database's name: the model alone
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what may follow "Bearer" (RFC 6750)
_NAMED_TOKEN = re.compile(r"([^=]+)=([^=].*)")


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        prompt_tokens: of a prompt. new_tokens: of an answer. body: bytes of a request. facts: of one change.
        header: seconds that a request's header may take, from the connection or the answer before it. idle: seconds
            that a connection is kept without a request.
        timeout: seconds a request may wait and run, all together; and its body may take as many before.
        queue: requests that may wait. jobs: changes that may wait, for each database.
        batch: requests answered at once. batch_tokens: their places in the KV cache, padding counted.
        grace: seconds that running requests and changes get to finish in, once the server is told to stop.
    """

    prompt_tokens: int = 4096
    new_tokens: int = 1024
    body: int = 1 << 20
    facts: int = 256
    header: float = 10.0
    idle: int = 5
    timeout: float = 120.0
    queue: int = 128
    jobs: int = 16
    batch: int = 16
    batch_tokens: int = 65_536
    grace: float = 30.0


@dataclass(frozen=True)
class Tokens:
    """common: needed for changes, of any database that has none of its own. own: database -> the token that is needed
    for whatever touches it."""

    common: str | None
    own: dict[str, str]


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server, beside its model, its databases and its address.

    Attributes:
        tokens: who may change facts, and who may use a database.
        limits: what a client may ask for.
        hosts: names by which the server may be asked; None: those of loopback and of the address it is bound to.
        delivery: how facts reach requests that do not say, one of `config.DELIVERIES`; None: as each database says.
    """

    tokens: Tokens
    limits: Limits = Limits()
    hosts: Hosts | None = None
    delivery: str | None = None


def named_databases(given: Sequence[str]) -> dict[str, Path]:
    """name -> folder, from "name=folder", or "folder" alone, which is called as the folder is.

    Raises:
        ServeError: a name is not one, or given twice, or two names share a folder.
    """
    found: dict[str, Path] = {}
    for one in given:
        name, separator, folder = one.partition("=")
        path = Path(folder if separator else one)
        name = name if separator else path.resolve().name
        if not _NAME.fullmatch(name) or name == UNEDITED:
            raise ServeError(
                f"{name!r} cannot name a database: use letters, digits, '.', '_' and '-', as in legal={path}"
                f" ({UNEDITED!r} stands for the model without a database)"
            )
        if name in found:
            raise ServeError(f"two databases are called {name!r}: name them, as in a={found[name]} b={path}")
        for other, known in found.items():
            if known.resolve() == path.resolve():
                raise ServeError(f"{other!r} and {name!r} are the same folder {path}: give it once")
        found[name] = path
    if not found:
        raise ServeError("no database to serve: name at least one folder")
    return found


def read_tokens(given: Sequence[str], databases: Sequence[str]) -> Tokens:
    """Tokens from "token", for all databases, and "name=token", for one.

    Raises:
        ServeError: a name is no database's, a token is no token, or there are two for the same.
    """
    common: str | None = None
    own: dict[str, str] = {}
    for one in given:
        named = _NAMED_TOKEN.fullmatch(one)
        name, token = named.groups() if named else (None, one)
        if name is not None and name not in databases:
            raise ServeError(f"there is a token for {name!r}, but the databases are {', '.join(databases)}")
        if not _TOKEN.fullmatch(token):
            raise ServeError("a token holds letters, digits and any of . _ ~ + / - only, as HTTP wants it")
        if name in own or (name is None and common is not None):
            raise ServeError(f"there are two tokens for {name or 'all databases'}: give one")
        if name is None:
            common = token
        else:
            own[name] = token
    return Tokens(common, own)
