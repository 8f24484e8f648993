"""The shape of the source: how many arguments a function takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import neuraldb_faiss

PACKAGE = Path(neuraldb_faiss.__file__).parent
MOST_ARGUMENTS = 7
# Functions whose arguments another library prescribes, and why.
PRESCRIBED = {
    "hook/torch_compile.py _operator": "an operator of torch takes tensors and numbers one by one, by its schema",
}


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """Names of all arguments but that of the object itself."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]]:
    """Every function of the product with its file and name; research/ is free to take what its experiments need."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith("research/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield f"{place} {getattr(node, 'name', 'lambda')}", node


def test_no_function_takes_more_than_seven_arguments() -> None:
    found = {place: arguments(function) for place, function in functions()}
    long = {place: names for place, names in found.items() if len(names) > MOST_ARGUMENTS}
    assert long.keys() - PRESCRIBED.keys() == set(), long
    assert long.keys() >= PRESCRIBED.keys(), "an exemption that is not needed any more"
