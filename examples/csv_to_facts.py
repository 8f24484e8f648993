"""Turn a table (CSV) into facts that `neuraldb build` reads.

    python examples/csv_to_facts.py examples/facts.csv --out facts.jsonl \
        --template "capital=The capital of {} is" --template "employer={} works for"
    neuraldb build facts.jsonl --model models/SmolLM2-135M-Instruct --out indexes/mine

The first line names the columns, in any order:

    subject     what the fact is about
    prompt      a text with one {} for the subject, or with the subject written out once
    relation    the name of a relation; a row without a prompt takes the relation's --template
    target      what the model is to say after the prompt
    paraphrase, neighbour    optional: other prompts for the same fact, and prompts about other subjects that must not
                change; several are separated by |

Any other column is kept with the fact (id, source and target_true in their own places, the rest in its metadata).
Nothing is written where one row is wrong: the message names its line and column.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from neuraldb_faiss import Fact, NeuralDBError
from neuraldb_faiss.errors import FactError

NEEDED = ("subject", "target")
PROBES = {"paraphrase": "paraphrase_prompts", "neighbour": "neighborhood_prompts"}


def read_csv(path: Path, templates: Mapping[str, str], delimiter: str = ",") -> Iterator[Fact]:
    """The facts of a table, a row each, in its order.

    Args:
        templates: relation -> prompt with one {}.

    Raises:
        FactError: naming the file, line and column.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise FactError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        bad = data.count(b"\n", 0, error.start) + 1
        raise FactError(f"{path}, line {bad} is not UTF-8: save the table as UTF-8") from None
    rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        header = [name.strip() for name in next(rows, [])]
        _check(path, header, delimiter)
        line = rows.line_num + 1  # where the next record begins: one may go over several lines
        for row in rows:
            if any(cell.strip() for cell in row):
                yield _fact(f"{path}, line {line}", header, row, templates)
            line = rows.line_num + 1
    except csv.Error as error:
        raise FactError(f"{path}, line {line}: not valid CSV: {error}") from None


def _check(path: Path, header: list[str], delimiter: str) -> None:
    there = f"the columns are {', '.join(header)}" if header else "the file is empty"
    for name in NEEDED:
        if name not in header:
            raise FactError(f"{path}, line 1: there is no column {name}; {there} (separated by {delimiter!r})")
    if "prompt" not in header and "relation" not in header:
        raise FactError(f"{path}, line 1: there is no column prompt, and no column relation; {there}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise FactError(f"{path}, line 1: there are two columns {twice[0]}; rename one")


def _fact(place: str, header: list[str], row: list[str], templates: Mapping[str, str]) -> Fact:
    for number, cell in enumerate(row):
        if cell.strip() and not (number < len(header) and header[number]):
            raise FactError(f"{place}, column {number + 1}: a cell without a name in the first line: {cell.strip()!r}")
    cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
    for name in NEEDED:
        if name not in cells:
            raise FactError(f"{place}, column {name}: the cell is empty")
    source = "prompt" if "prompt" in cells else "relation"
    if source == "relation":
        relation = cells.get("relation")
        if relation is None:
            raise FactError(f"{place}, column prompt: the cell is empty, and no relation is named instead")
        if relation not in templates:
            cure = f"give --template '{relation}=... {{}} ...'"
            raise FactError(f"{place}, column relation: no template for {relation!r}: {cure}")
        cells["prompt"] = templates[relation]
    probes = {
        key: [text.strip() for text in cells.pop(name).split("|") if text.strip()]
        for name, key in PROBES.items() if name in cells
    }  # fmt: skip
    try:
        return Fact.from_dict({**cells, **({"metadata": probes} if probes else {})})
    except FactError as error:
        column = next((name for name in NEEDED if str(error).startswith(f"the {name} ")), source)
        raise FactError(f"{place}, column {column}: {error}") from None


def _templates(given: list[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, _, text = one.partition("=")
        if not name.strip() or text.count("{}") != 1:
            raise FactError(f"--template {one!r}: write RELATION=TEXT, with one {{}} in the text for the subject")
        found[name.strip()] = text.strip()
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn a CSV into facts for `neuraldb build`.")
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--template", action="append", default=[], metavar="RELATION=TEXT", help="repeatable")
    parser.add_argument("--delimiter", default=",", help='";" for what many spreadsheets write')
    given = parser.parse_args(arguments)
    if len(given.delimiter) != 1:
        parser.error("--delimiter takes one character")
    try:
        facts = list(read_csv(given.table, _templates(given.template), given.delimiter))
        if not facts:
            raise FactError(f"{given.table} has no rows below its first line")
        partial = given.out.with_name(given.out.name + ".part")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(fact.to_dict(), ensure_ascii=False) + "\n" for fact in facts)
        os.replace(partial, given.out)
    except NeuralDBError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {given.out} cannot be written: {error.strerror}")
    print(f"{len(facts)} facts in {given.out}")


if __name__ == "__main__":
    main()
