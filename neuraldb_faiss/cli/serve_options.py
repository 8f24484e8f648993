"""Options of `neuraldb serve`, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli.options import bundle
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.errors import ServeError

if TYPE_CHECKING:
    from neuraldb_faiss.serving.settings import Limits


def _limits(**given: Any) -> Limits:
    from neuraldb_faiss.serving.settings import Limits

    return Limits(**given)


@dataclass(frozen=True)
class Access:
    """Who may ask. tokens: as `settings.read_tokens` takes them. origins: of web pages."""

    tokens: tuple[str, ...]
    origins: tuple[str, ...]


@dataclass(frozen=True)
class Answering:
    """Who answers, and what requests get that do not say: the delivery, and the database.

    Attributes: upstream: base URL of the server that answers; None: a model of our own. upstream_key: for it.
    """

    delivery: str | None
    default: str | None
    upstream: str | None
    upstream_key: str | None


def _answering(
    delivery: str | None, default: str | None, upstream: str | None, upstream_key: str | None, key_file: Path | None
) -> Answering:
    if upstream is None and (upstream_key or key_file):
        raise click.UsageError("a key of an upstream server needs --upstream, its address")
    if key_file is not None:
        (upstream_key, *more) = _tokens_of(key_file)
        if more:
            raise ServeError(f"the key file {key_file} holds {len(more) + 1} keys: leave one")
    return Answering(delivery, default, upstream, upstream_key)


def _access(tokens: tuple[str, ...], token_files: tuple[Path, ...], cors: tuple[str, ...]) -> Access:
    return Access((*tokens, *(token for file in token_files for token in _tokens_of(file))), cors)


def _tokens_of(file: Path) -> list[str]:
    try:
        found = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the token file {file} cannot be read: {error}") from None
    if not found:
        raise ServeError(f"the token file {file} holds no token")
    return found


@dataclass(frozen=True)
class LogChoice:
    """How the log is written: `logs.logging_to`; content: with prompts and answers."""

    level: str
    form: str
    content: bool


log = bundle(
    "log",
    LogChoice,
    click.option(
        "--log-level", "level", type=Choice(["debug", "info", "warning", "error"]), default="info",
        show_default=True, help="What is logged, on stderr: info has a line for each request; changes of facts always"
        " have one.",
    ),
    click.option(
        "--log-format", "form", type=Choice(["text", "json"]), default="text", show_default=True,
        help="Lines for people, or a JSON object a line.",
    ),
    click.option("--log-content", "content", is_flag=True, help="Log prompts and answers, too."),
)  # fmt: skip
access = bundle(
    "access",
    _access,
    click.option(
        "--token", "tokens", metavar="[[WHO@]NAME=]TOKEN", multiple=True, envvar="NEURALDB_TOKEN",
        help="Token that clients need to change facts; with a database's NAME, to use that database at all; with WHO,"
        " one of several, whose changes are logged under this name. Repeatable (in NEURALDB_TOKEN: separated by"
        " spaces). [default: facts cannot be changed]",
    ),
    click.option(
        "--token-file", "token_files", metavar="FILE", multiple=True, envvar="NEURALDB_TOKEN_FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File with such tokens, separated by white space, as secrets are mounted. Repeatable.",
    ),
    click.option(
        "--cors", metavar="ORIGIN", multiple=True,
        help="Origin of web pages that may ask this server, as https://app.example.org; '*' for all. Repeatable."
        " [default: only pages of this server's own names]",
    ),
)  # fmt: skip
answering = bundle(
    "answering",
    _answering,
    click.option(
        "--upstream", metavar="URL",
        help="Put the facts before another server that speaks OpenAI's API, at this base URL (as"
        " http://127.0.0.1:11434/v1): they are stated in its prompts, and no model is loaded here.",
    ),
    click.option(
        "--upstream-key", metavar="KEY", envvar="NEURALDB_UPSTREAM_KEY",
        help="Key for that server; better given in NEURALDB_UPSTREAM_KEY or a file.",
    ),
    click.option(
        "--upstream-key-file", "key_file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
        envvar="NEURALDB_UPSTREAM_KEY_FILE", help="File with that key.",
    ),
    click.option(
        "--delivery", type=Choice(DELIVERIES),
        help="How facts reach requests that do not say: residual (added inside of the model), text (stated in the"
        " prompt), both, or auto (the best for the kind of request). [default: as each database says, which is auto]",
    ),
    click.option(
        "--default", metavar="NAME",
        help="Database of requests that name none; 'none' for the model alone. [default: the only database; with"
        " several, the model alone]",
    ),
)  # fmt: skip
limits = bundle(
    "limits",
    _limits,
    click.option(
        "--max-prompt-tokens", "prompt_tokens", type=click.IntRange(1), default=4096, show_default=True, metavar="N",
        help="Maximum length of a prompt.",
    ),
    click.option(
        "--max-new-tokens", "new_tokens", type=click.IntRange(1), default=1024, show_default=True, metavar="N",
        help="Maximum length of an answer.",
    ),
    click.option(
        "--max-batch", "batch", type=click.IntRange(1), default=16, show_default=True, metavar="N",
        help="Maximum number of requests answered at once.",
    ),
    click.option(
        "--max-queue", "queue", type=click.IntRange(1), default=128, show_default=True, metavar="N",
        help="Maximum number of waiting requests; the next one is refused (429).",
    ),
    click.option(
        "--max-body", "body", type=click.IntRange(1), default=1 << 20, show_default=True, metavar="BYTES",
        help="Maximum size of a request.",
    ),
    click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True, metavar="SECONDS",
        help="How long a request may wait and run.",
    ),
    click.option(
        "--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
        help="How long running requests may take to finish once the server is told to stop.",
    ),
)  # fmt: skip
