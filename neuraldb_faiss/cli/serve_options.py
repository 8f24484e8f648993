"""Options of `neuraldb serve`, in groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli.options import bundle
from neuraldb_faiss.errors import ServeError

if TYPE_CHECKING:
    from neuraldb_faiss.serving.settings import Limits


def _limits(**given: Any) -> Limits:
    from neuraldb_faiss.serving.settings import Limits

    return Limits(**given)


def _tokens(tokens: tuple[str, ...], token_files: tuple[Path, ...]) -> list[str]:
    return [*tokens, *(token for file in token_files for token in _tokens_of(file))]


def _tokens_of(file: Path) -> list[str]:
    try:
        found = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the token file {file} cannot be read: {error}") from None
    if not found:
        raise ServeError(f"the token file {file} holds no token")
    return found


tokens = bundle(
    "tokens",
    _tokens,
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
