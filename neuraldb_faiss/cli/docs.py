"""docs/cli.md, made from the commands themselves: `python -m neuraldb_faiss.cli.docs` prints it."""

from __future__ import annotations

import click

from neuraldb_faiss.cli.main import COMMANDS, cli

INTRODUCTION = """\
# Command line

Made from the commands by `scripts/gen_cli_docs.py`; a test fails where this page is stale.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (one line on stderr says
why), 2 wrong usage, 130 interrupted. `neuraldb --debug ...` (or `NEURALDB_DEBUG=1`) shows the traceback of an
error, `neuraldb --version` the versions of what matters.

What is printed is UTF-8 where the locale is C, and else the locale's encoding, with escapes (`\\u4f26`) for what it
lacks: a locale ends no command. JSON then has its own escapes, and files are always UTF-8.
"""


def markdown() -> str:
    """The page."""
    root = click.Context(cli, info_name="neuraldb")
    parts = [INTRODUCTION, "".join(f"- [`{name}`](#{name}): {_short(name, root)}\n" for name in COMMANDS)]
    parts += [_section(name, root) for name in COMMANDS]
    return "\n".join(parts)


def _command(name: str, root: click.Context) -> click.Command:
    command = cli.get_command(root, name)
    assert command is not None
    return command


def _short(name: str, root: click.Context) -> str:
    return _command(name, root).get_short_help_str(limit=200)


def _section(name: str, root: click.Context) -> str:
    command = _command(name, root)
    with click.Context(command, info_name=name, parent=root) as context:
        usage = " ".join(["neuraldb", name, *command.collect_usage_pieces(context)])
        rows = [
            record
            for param in command.params
            if isinstance(param, click.Option) and (record := param.get_help_record(context)) is not None
        ]
    lines = [f"## {name}", "", f"    {usage}", "", _paragraphs(command.help or ""), ""]
    lines += [
        "| option | |",
        "|---|---|",
        *(f"| `{_cell(option)}` | {_cell(text)} |" for option, text in rows),
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(markdown(), nl=False)
