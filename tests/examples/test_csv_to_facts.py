"""A table becomes facts, or a message that names its line and column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from neuraldb_faiss.facts import fold, read_facts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def script(example: Callable[[str], ModuleType]) -> ModuleType:
    return example("csv_to_facts")


def test_the_sample(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "facts.jsonl"
    script.main([str(EXAMPLES / "facts.csv"), "--out", str(out), "--template", "capital=The capital of {} is"])
    facts = fold(read_facts(out)).facts
    assert [(fact.text, fact.target) for fact in facts] == [
        ("The capital of Japan is", "Lagos"),
        ("The capital of Peru is", "Oslo"),
        ("The Mona Lisa was painted by", "Rembrandt"),
        ("The company Toyota is best known for making", "pianos"),
    ]
    assert facts[0].relation == "capital" and facts[3].subject == "Toyota"
    assert facts[0].metadata == {
        "paraphrase_prompts": [
            "The capital city of Japan is called", "The government of Japan sits in the city of"
        ],
        "neighborhood_prompts": ["The capital of Italy is"],
    }  # fmt: skip
    assert capsys.readouterr().out == f"4 facts in {out}\n" and not list(tmp_path.glob("*.part"))


def test_other_tables(script: ModuleType, tmp_path: Path) -> None:
    """A spreadsheet's byte order mark and semicolons, a cell over two lines, blank rows, columns of one's own."""
    table = tmp_path / "t.csv"
    table.write_bytes(
        '\ufeffid;subject;prompt;target;note\n7;"New\nYork";{} is in;Peru;a; \n;;;;\n8;Äsch;"{} is ""in""";x\n'.encode()
    )
    first, second = script.read_csv(table, {}, ";")
    assert (first.id, first.text, first.metadata) == ("7", "New\nYork is in", {"note": "a"})
    assert (second.id, second.text, second.metadata) == ("8", 'Äsch is "in"', {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: there is no column subject; the file is empty"),
        ("subject;target\nx;y\n", "line 1: there is no column subject; the columns are subject;target"),
        ("subject,target\n", "line 1: there is no column prompt, and no column relation"),
        ("subject,prompt,target,target\n", "line 1: there are two columns target"),
        ("subject,prompt,target\nRome,{} is,a\nBonn,{} is,\n", "line 3, column target: the cell is empty"),
        ('subject,prompt,target\n"A\nB",{} is,a\n,{} is,a\n', "line 4, column subject: the cell is empty"),
        ("subject,prompt,target\nRome,,a\n", "line 2, column prompt: the cell is empty, and no relation"),
        ("subject,relation,target\nRome,river,a\n", "line 2, column relation: no template for 'river'"),
        ("subject,prompt,target\nRome,Bonn is,a\n", "line 2, column prompt: subject 'Rome' is not in the prompt"),
        ("subject,relation,target\nRome,at,a\n", "line 2, column relation: the prompt holds both {} and subject"),
        ("subject,prompt,target\nRome,{} is,a,b\n", "line 2, column 4: a cell without a name in the first line: 'b'"),
        ('subject,prompt,target\nRome,"{} is,a\n', "line 2: not valid CSV"),
        ("subject,prompt,target\n\n", "has no rows below its first line"),
    ],
)
def test_a_bad_table_leaves_the_output_as_it_was(script: ModuleType, tmp_path: Path, text: str, words: str) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "facts.jsonl"
    table.write_text(text)
    out.write_text("as it was")
    with pytest.raises(SystemExit) as stopped:
        script.main([str(table), "--out", str(out), "--template", "at=Rome and {} are"])
    told = str(stopped.value)
    assert told.startswith("error: ") and str(table) in told and words in told and "\n" not in told
    assert out.read_text() == "as it was" and len(list(tmp_path.iterdir())) == 2


def test_a_call_that_cannot_work_says_why(script: ModuleType, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "facts.jsonl")]
    with pytest.raises(SystemExit, match="nowhere.csv cannot be read: No such file"):
        script.main(["nowhere.csv", *out])
    with pytest.raises(SystemExit, match="write RELATION=TEXT"):
        script.main([str(EXAMPLES / "facts.csv"), *out, "--template", "capital=The capital"])
    table = tmp_path / "latin.csv"
    table.write_bytes(b"subject,prompt,target\nM\xfcnchen,{} is,a\n")
    with pytest.raises(SystemExit, match="latin.csv, line 2 is not UTF-8"):
        script.main([str(table), *out])


def test_what_is_written_is_json_lines(script: ModuleType, tmp_path: Path) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "facts.jsonl"
    table.write_text("subject,prompt,target\nÄsch,{} is,ö\n", encoding="utf-8")
    script.main([str(table), "--out", str(out)])
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["target"] == "ö" and "ö" in line
