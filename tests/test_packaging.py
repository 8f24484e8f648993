"""The package as a whole: a light import, dependencies that are declared and pinned, nothing personal."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import neuraldb_faiss

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "datasets", "faiss", "numpy", "sqlite3")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    """Project names of requirement lines, in the form of PEP 503."""
    found = set()
    for line in requirements:
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
        assert match, f"no project name in {line!r}"
        found.add(re.sub(r"[-_.]+", "-", match.group()).lower())
    return found


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def loaded_after(statement: str) -> set[str]:
    """Which heavy modules a fresh interpreter has loaded after `statement`."""
    code = f"import sys; {statement}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_is_light() -> None:
    assert loaded_after("import neuraldb_faiss") == set()
    assert loaded_after("import neuraldb_faiss; neuraldb_faiss.__version__") == set()


def test_facts_and_errors_need_no_model_library() -> None:
    assert "torch" not in loaded_after("from neuraldb_faiss import Fact, NeuralDBError")


def test_settings_need_no_numerical_library() -> None:
    assert loaded_after("import neuraldb_faiss.config") == set()


def test_public_names_resolve() -> None:
    for name in neuraldb_faiss.__all__:
        assert getattr(neuraldb_faiss, name) is not None
        assert name in dir(neuraldb_faiss)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = neuraldb_faiss.nonsense


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("neuraldb-faiss")
    except PackageNotFoundError:
        pytest.skip("neuraldb-faiss is not installed here: scripts/setup.sh installs it")
    assert neuraldb_faiss.__version__ == installed == pyproject()["project"]["version"]


def test_faiss_comes_only_by_extra() -> None:
    project = pyproject()["project"]
    assert not [name for name in names(project["dependencies"]) if "faiss" in name]
    extras = project["optional-dependencies"]
    assert names(extras["cpu"]) == {"faiss-cpu"}
    assert names(extras["gpu"]) == {"faiss-gpu"}
    assert pyproject()["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "gpu"}]]


def test_constraints_pin_every_direct_dependency() -> None:
    project = pyproject()["project"]
    direct = names(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        direct |= names(extra)
    assert direct - names(pins()) == {"neuraldb-faiss"}  # the test extra names the extras it takes in


def test_constraints_are_plain_pins() -> None:
    for line in pins():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), line
    assert len(names(pins())) == len(pins())


@pytest.mark.parametrize("script", ["scripts/setup.sh", "scripts/demo.sh", "scripts/test.sh", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, f"{script} is not executable"
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_setup_refuses_an_unknown_extra() -> None:
    """It names those of pyproject.toml, every one of them."""
    done = subprocess.run([ROOT / "scripts" / "setup.sh", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 1
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert done.stderr == f"setup: unknown extra 'nonsense'; known: {', '.join(extras)}\n"


def test_setup_adds_extras_to_those_that_are_there(tmp_path: Path) -> None:
    """Each once, the kind of FAISS first; pip is a script that notes what it is asked for."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$*" in *" show "*) exit 1;; *" install "*) echo "$*" >asked;; esac\n')
    python.chmod(0o755)
    for given, extras in (("cpu serve eval", "cpu,eval,serve"), ("test serve", "cpu,eval,serve,test")):
        subprocess.run([tmp_path / "scripts" / "setup.sh", *given.split()], check=True, capture_output=True)
        assert (tmp_path / "asked").read_text().endswith(f"-e .[{extras}]\n")


def test_no_file_names_a_private_path() -> None:
    """Text under version control names no folder of the machine that it was written on."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the list of files comes from git")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Put together here, so that this file does not hold what it looks for.
    private = re.compile(rb"(?<![\w.~-])/(?:" + b"|".join([b"work", b"root"]) + rb")/")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.splitlines(), start=1):
            if private.search(line):
                found.append(f"{name}:{number}")
    assert not found, f"absolute paths of one machine in: {', '.join(found)}"
