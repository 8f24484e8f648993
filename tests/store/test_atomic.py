"""Files and folders that appear whole or not at all, and that nothing in the package is written otherwise."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

import neuraldb_faiss
from neuraldb_faiss.store import atomic

PACKAGE = Path(neuraldb_faiss.__file__).parent


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "page").symlink_to("victim")
    atomic.write_file(tmp_path / "page", b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "page").is_symlink() and (tmp_path / "page").read_bytes() == b"new"
    assert names(tmp_path) == {"victim", "page"}


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_old_file(tmp_path: Path, durable: bool) -> None:
    atomic.write_file(tmp_path / "page", b"old")
    with pytest.raises(OSError, match="disk") as caught, atomic.replacing(tmp_path / "page", durable=durable) as file:
        file.write(b"half of the new o")
        raise OSError(errno.EIO, "disk")
    assert caught.value.filename == str(tmp_path / "page")
    assert names(tmp_path) == {"page"} and (tmp_path / "page").read_bytes() == b"old"


def test_it_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic.write_file(tmp_path / "page", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127])
def test_names_as_long_as_they_can_be(tmp_path: Path, name: str) -> None:
    atomic.write_file(tmp_path / name, b"new")
    assert names(tmp_path) == {name}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path / "deep" / "folder") as folder:
        atomic.write_file(folder / "file", b"new")
        assert not (tmp_path / "deep" / "folder").exists()
    assert names(tmp_path / "deep") == {"folder"} and names(tmp_path / "deep" / "folder") == {"file"}
    with pytest.raises(OSError), atomic.new_folder(tmp_path / "deep" / "folder") as folder:  # noqa: PT011
        atomic.write_file(folder / "other", b"")
    with pytest.raises(KeyError), atomic.new_folder(tmp_path / "deep" / "second") as folder:
        raise KeyError
    assert names(tmp_path / "deep") == {"folder"} and names(tmp_path / "deep" / "folder") == {"file"}


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    token = "0123456789abcdef"
    left = [f".page.{token}.tmp", f".page.{token[::-1]}.tmp"]
    mine = [f".page.{token}.tmp2", f".page.x{token}.tmp", f".page2.{token}.tmp", f"page.{token}.tmp", ".page.tmp"]
    (tmp_path / left[0]).mkdir()
    (tmp_path / left[0] / "file").write_text("half")
    for name in (left[1], *mine):
        (tmp_path / name).write_text("half")
    for name in (*left, *mine):
        os.utime(tmp_path / name, (0, 0))
    young = f".page.{'a' * 16}.tmp"
    (tmp_path / young).write_text("half")  # perhaps not claimed yet
    with atomic.replacing(tmp_path / "page") as first:
        (claimed,) = names(tmp_path) - {*left, *mine, young}
        os.utime(tmp_path / claimed, (0, 0))
        atomic.write_file(tmp_path / "page", b"second")  # of another writer, while the first is at work
        assert claimed in names(tmp_path)
        first.write(b"first")
    assert names(tmp_path) == {"page", young, *mine} and (tmp_path / "page").read_bytes() == b"first"


WRITING = {"write_text", "write_bytes", "mkstemp", "NamedTemporaryFile", "copyfile", "copy2", "touch"}
ELSEWHERE = {  # where what is written has no place yet that anybody sees
    ("models/download.py", "open"),  # in a folder of its own for what is downloaded
}


def test_nothing_is_written_in_another_way() -> None:
    """Every call that opens a file for writing, or renames one, stands in `store/files.py` or `store/atomic.py`."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place in ("store/files.py", "store/atomic.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := _writes(node)) and (place, name) not in ELSEWHERE:
                found.append(f"{place}:{node.lineno} {name}")
    assert found == []


def _writes(call: ast.Call) -> str | None:
    attribute = call.func.attr if isinstance(call.func, ast.Attribute) else None
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if attribute in ("rename", "replace"):
        return attribute if owner == "os" else None  # texts and records have methods of these names
    if attribute in WRITING:
        return attribute
    if attribute == "open" or (isinstance(call.func, ast.Name) and call.func.id == "open"):
        words = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        writes = any(set(mode) <= set("rwxabt+") and set(mode) & set("wxa+") for mode in modes)
        return "open" if writes and "NeuralDB" not in owner else None
    return None
