"""The commands in the docs exist, with the options they are given; those of the quickstart do what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.cli.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/quickstart.md", "docs/cookbook.md", "docs/errors.md")
SERVERS = ("neuraldb serve", "neuraldb inspect")
Page = Callable[[str], str]


def blocks(text: str) -> list[tuple[str, str]]:
    """The fenced and the indented blocks: their language ("" where none is named, or indented), and what they hold."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?:(?<=\n\n)|\A)(?:    .+\n)(?:(?:    .*)?\n)*", flags=re.MULTILINE)
    rest = fenced.sub("\n", text)
    return [*fenced.findall(text), *(("", found) for found in indented.findall(rest))]


def calls(script: str) -> Iterator[list[str]]:
    """The arguments of every call of `neuraldb` in a shell script; here documents are left out."""
    script = re.sub(r"<<'(\w+)'(.*?)\n.*?\n\1\n", r"\2\n", script + "\n", flags=re.DOTALL)
    script = script.replace("\\\n", " ")
    for line in script.splitlines():
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            continue  # part of something longer in quotes: no line that begins with neuraldb
        one: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set("();<>|&"):
                one.append(word)
                continue
            while one and re.fullmatch(r"\w+=.*", one[0], flags=re.DOTALL):
                del one[0]
            if one and one[0] == "neuraldb":
                yield one[1:]
            # what stands behind > or < is a file
            one = ["<file>"] if word[0] in "<>" else []


def check(arguments: list[str]) -> None:
    """Fail where the command line would not take these, whether or not the files are there."""
    if arguments in (["--version"], ["--help"]):
        return
    name, *rest = arguments
    assert name in REGISTRY.kinds, f"there is no command {name}"
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    while isinstance(command, click.Group) and rest:
        name, *rest = rest
        assert name in command.commands, f"neuraldb {shlex.join(arguments)}: there is no {name}"
        command = command.commands[name]
    context = click.Context(command, info_name=name, resilient_parsing=False)
    try:
        values, left, _ = command.make_parser(context).parse_args(list(rest))
        for param in command.params:
            if isinstance(param, click.Option) and param.expose_value:
                assert not param.required or values.get(param.name or "") is not None, f"{param.opts[0]} is missing"
            if isinstance(param.type, (click.Choice, click.types.IntParamType, click.types.FloatParamType)):
                given = values.get(param.name or "")
                if isinstance(given, str):
                    param.type.convert(given, param, context)
    except click.UsageError as error:
        raise AssertionError(f"neuraldb {shlex.join(arguments)}: {error.format_message()}") from None
    assert not left, f"neuraldb {shlex.join(arguments)}: {left} are too many"


@pytest.mark.parametrize("name", PAGES)
def test_every_command_in_a_block_is_taken(name: str) -> None:
    found = [
        one
        for language, script in blocks((ROOT / name).read_text(encoding="utf-8"))
        if language in ("", "bash")
        for one in calls(script)
    ]
    assert found or name == "docs/errors.md", f"{name}: no command found"
    for arguments in found:
        check(arguments)


@pytest.mark.parametrize("name", PAGES)
def test_every_command_in_a_sentence_is_known(name: str) -> None:
    """`neuraldb add` and `neuraldb verify DB --deep`: the command and its options are there."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for call in re.findall(r"`neuraldb ([^`]+)`", text):
        first, *rest = call.split()
        if first.startswith("-"):
            continue
        assert first in REGISTRY.kinds, f"{name}: there is no command {first}"
        command = cli.get_command(click.Context(cli), first)
        assert command is not None
        known = {opt for param in command.params for opt in param.opts}
        for word in rest:
            assert not word.startswith("--") or word in known, f"{name}: neuraldb {first} has no {word}"


def test_what_is_wrong_is_found() -> None:
    """The checks themselves: a wrong command, option, value, or one argument too many."""
    for wrong in (
        "nonsense",
        "info a b",
        "info db --deep",
        "build f --out o",
        "build f --out o --model m --steps x",
        "models ged x",
    ):
        with pytest.raises(AssertionError):
            check(wrong.split())
    script = "cat > f <<'END'\nneuraldb no\nEND\nA=b neuraldb info \\\n  db | cat && neuraldb facts 'my db' > f # x\n"
    assert list(calls(script)) == [["info", "db"], ["facts", "my db"]]


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    path = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        place = path.parent / target if target else path
        assert place.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{name} links to {target}#{anchor}: there is no such heading"


def test_the_cookbooks_table_becomes_facts(page: Page, tmp_path: Path) -> None:
    """The CSV of the first recipe, through the very command that stands below it."""
    from neuraldb_faiss.facts import read_facts

    text = page("cookbook.md")
    table = re.search(r"```csv\n(.*?)```", text, flags=re.DOTALL)
    command = re.search(r"^python (examples/\S+\.py .*)$", text, flags=re.MULTILINE)
    assert table and command
    (tmp_path / "facts.csv").write_text(table[1], encoding="utf-8")
    script, *arguments = shlex.split(command[1])
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        [sys.executable, ROOT / script, *arguments], cwd=tmp_path, check=True, timeout=120, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    facts = list(read_facts(tmp_path / "facts.jsonl"))
    assert [(fact.text, fact.target) for fact in facts] == [
        ("The Eiffel Tower is located in the city of", "Rome"), ("The chief executive of Acme Ltd is", "Jane Doe"),
    ]  # fmt: skip


# ---- the quickstart, really run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_does_what_it_says(page: Page, tmp_path: Path, demo_model_path: Path) -> None:
    """Every block is run by bash, as a reader pastes it, and prints the lines that stand below it (… is anything)."""
    if shutil.which("curl") is None:
        pytest.skip("curl, which the page asks the server with, is not installed")
    (tmp_path / "models").symlink_to(demo_model_path.parent, target_is_directory=True)
    (tmp_path / "indexes").mkdir()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "neuraldb"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m neuraldb_faiss.cli "$@"\n')
    command.chmod(0o755)
    ports = {"8000": str(free_port()), "8001": str(free_port())}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ, "PYTHONPATH": paths, "COLUMNS": "100",
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    parts = re.split(r"^## (.+)\n", page("quickstart.md"), flags=re.MULTILINE)[1:]
    server: subprocess.Popen[str] | None = None
    output = tmp_path / "server.txt"
    try:
        for title, text in zip(parts[::2], parts[1::2], strict=True):
            if title == "Install":
                continue
            said = ""
            for language, script in blocks(text):
                for old, new in ports.items():
                    script = script.replace(old, new)
                if language == "bash" and any(one in script for one in SERVERS):
                    stop(server)
                    if "--port" not in script:
                        script = f"{script.rstrip()} --port {ports['8001']}"
                    with output.open("w") as file:
                        server = subprocess.Popen(
                            ["bash", "-c", f"exec env {script}"], cwd=tmp_path, env=environment, stdout=file,
                            stderr=subprocess.STDOUT, text=True,
                        )  # fmt: skip
                    said = wait_for("http://", output, server)
                elif language == "bash":
                    done = subprocess.run(
                        ["bash", "-ec", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True, timeout=300,
                    )  # fmt: skip
                    said = done.stdout
                    assert done.returncode == 0, f"{title}: {said}"
                elif language == "text":
                    for line in filter(str.strip, script.splitlines()):
                        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("…"))
                        folded = [" ".join(one.split()) for one in said.splitlines()]
                        assert any(re.search(pattern, one) for one in folded), f"{title}: no line {line!r} in:\n{said}"
    finally:
        stop(server)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(word: str, path: Path, process: subprocess.Popen[str]) -> str:
    end = time.monotonic() + 300
    while word not in (text := path.read_text(encoding="utf-8")):
        assert process.poll() is None and time.monotonic() < end, text
        time.sleep(0.1)
    return text


def stop(process: subprocess.Popen[str] | None) -> None:
    if process is not None and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
