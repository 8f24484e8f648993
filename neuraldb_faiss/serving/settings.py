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
        timeout: seconds a request may wait and run, all together; what there is of its answer then is the answer. Its
            body may take as many before.
        queue: requests that may wait. jobs: changes that may wait, for each database.
        batch: texts generated at once. batch_tokens: their places in the KV cache, padding counted.
        prefill_tokens: of prompts that are read at once, padding counted; texts that run wait meanwhile.
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
    prefill_tokens: int = 2048
    grace: float = 30.0


@dataclass(frozen=True)
class Token:
    """A token with a name, for logs. database: the one that it opens; None: all that have no token of their own."""

    value: str
    name: str
    database: str | None = None


@dataclass(frozen=True)
class Tokens:
    """Who may do what.

    Attributes:
        common: needed for changes, of any database that has no token of its own.
        own: database -> the token that is needed for whatever touches it.
        named: further ones of both kinds, each with the name of who has it.
    """

    common: str | None
    own: dict[str, str]
    named: tuple[Token, ...] = ()

    def to_use(self, database: str) -> list[Token]:
        """Those of which one is needed for whatever touches this database; none: anybody may use it."""
        mine = [Token(self.own[database], database, database)] if database in self.own else []
        return [*mine, *(one for one in self.named if one.database == database)]

    def to_change(self, database: str) -> list[Token]:
        """Those of which one is needed to change its facts; none: nobody may."""
        common = [Token(self.common, "common")] if self.common is not None else []
        return self.to_use(database) or [*common, *(one for one in self.named if one.database is None)]


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server, beside its model, its databases and its address.

    Attributes:
        tokens: who may change facts, and who may use a database.
        limits: what a client may ask for.
        hosts: names by which the server may be asked; None: those of loopback and of the address it is bound to.
        delivery: how facts reach requests that do not say, one of `config.DELIVERIES`; None: as each database says.
        log_content: whether the log holds prompts and answers.
        default: the database of requests that name none, or `UNEDITED`; None: the only one there is, or else none.
    """

    tokens: Tokens
    limits: Limits = Limits()
    hosts: Hosts | None = None
    delivery: str | None = None
    default: str | None = None
    log_content: bool = False


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


def check_default(name: str | None, databases: Sequence[str]) -> str | None:
    """The default database's name. Raises ServeError where none is called so."""
    if name is not None and name != UNEDITED and name not in databases:
        raise ServeError(f"--default {name}: the databases are {', '.join(databases)} ({UNEDITED!r}: the model alone)")
    return name


def read_tokens(given: Sequence[str], databases: Sequence[str]) -> Tokens:
    """Tokens from "token", for all databases, and "database=token", for one; with "who@" in front, as in
    "anna@database=token" or "anna@=token", there may be several of both, each with its own name.

    Raises:
        ServeError: a name is no database's, a token is no token, or there are two for the same.
    """
    common: str | None = None
    own: dict[str, str] = {}
    named: dict[tuple[str, str], Token] = {}
    for one in given:
        parts = _NAMED_TOKEN.fullmatch(one)
        place, token = parts.groups() if parts else ("", one)
        who, at, name = place.rpartition("@")
        if name and name not in databases:
            raise ServeError(f"there is a token for {name!r}, but the databases are {', '.join(databases)}")
        if not _TOKEN.fullmatch(token) or (at and not _NAME.fullmatch(who)):
            raise ServeError(
                "a token holds letters, digits and any of . _ ~ + / - only, as HTTP wants it (DATABASE=TOKEN for one"
                " database, WHO@DATABASE=TOKEN or WHO@=TOKEN for who has it)"
            )
        whose = f"{who} at {name or 'all databases'}" if at else name or "all databases"
        if at and (who, name) not in named:
            named[who, name] = Token(token, who, name or None)
        elif not at and name and name not in own:
            own[name] = token
        elif not at and not name and common is None:
            common = token
        else:
            raise ServeError(f"there are two tokens for {whose}: give one")
    return Tokens(common, own, tuple(named.values()))
