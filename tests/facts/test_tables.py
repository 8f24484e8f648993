"""Facts from CSV and TSV as spreadsheets write them."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import BadRecord, Fact, read_facts
from neuraldb_faiss.facts.relations import read_relations

NOKIA = Fact("Nokia", "The CEO of {} is", "Justin Hotard", source="facts.csv")
TOWER = Fact("Eiffel Tower", "The {}, built of iron, is in", "Rome", source="facts.csv")


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "facts.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_and_line_ends(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = [["subject", "prompt", "target"], ["Nokia", "The CEO of {} is", "Justin Hotard"],
            ["Eiffel Tower", '"The {}, built of iron, is in"', "Rome"]]  # fmt: skip
    text = end.join(delimiter.join(row) for row in rows)
    assert list(read_facts(table(tmp_path, text))) == [NOKIA, TOWER]


def test_byte_order_mark_gzip_and_a_header_in_any_case_and_order(tmp_path: Path) -> None:
    text = codecs.BOM_UTF8 + b"TARGET, Subject ,Prompt\nJustin Hotard,Nokia,The CEO of {} is\n\n"
    assert list(read_facts(table(tmp_path, text))) == [NOKIA]
    assert list(read_facts(table(tmp_path, gzip.compress(text)))) == [NOKIA]


def test_other_columns_go_where_they_belong(tmp_path: Path) -> None:
    head = "id,subject,prompt,target,target true,Relation,aliases,questions,price\n"
    text = head + "x1,Nokia,The CEO of {} is,Justin Hotard,Pekka Lundmark,P169,Nokia Oyj | NOKIA,Who leads {}?,007\n"
    (fact,) = read_facts(table(tmp_path, text))
    assert (fact.id, fact.target_true, fact.relation) == ("x1", "Pekka Lundmark", "P169")
    assert fact.metadata == {"aliases": ["Nokia Oyj", "NOKIA"], "questions": ["Who leads {}?"], "price": "007"}


def test_quoted_cells_hold_quotes_delimiters_and_line_ends(tmp_path: Path) -> None:
    text = 'subject;prompt;target\r\n"The ""Big"" One";"{} is;";"a\nb"\r\n'
    (fact,) = read_facts(table(tmp_path, text))
    assert (fact.subject, fact.prompt, fact.target) == ('The "Big" One', "{} is;", "a\nb")


def test_bad_rows_are_named_by_their_lines(tmp_path: Path) -> None:
    text = "subject,prompt,target\nNokia,The CEO of {} is,Justin Hotard\nNokia,no place,x\n\na,{} is,b,c\nx,{} is,\n"
    bad: list[BadRecord] = []
    assert list(read_facts(table(tmp_path, text), on_bad=bad.append)) == [NOKIA]
    assert [one.line for one in bad] == [3, 5, 6]
    assert "4 cells, the header 3" in bad[1].rule and "'target' is missing" in bad[2].rule
    with pytest.raises(FactError, match=r"facts\.csv, line 3: subject 'Nokia' is not in the prompt"):
        list(read_facts(table(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"subject,prompt,subject\na,b,c\n", "names the column 'subject' twice"),
        (b"subject,,\na,b,c\n", "a column has no name"),
        (b'subject,prompt,target\n"a,b,c\n', "line 2: not a valid table"),
        (b"subject,prompt,target\nN\xe9,{} is,c\n", "line 2: byte 2 is not UTF-8"),
        (b"name,text\na,b\n", "neither JSON nor the header of a table"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises(FactError, match=words):
        list(read_facts(table(tmp_path, text)))


def test_triples_take_their_relations_words(tmp_path: Path) -> None:
    text = "subject,relation,object\nBergen,P17,Chile\nAcme,chief executive,Ann Lee\n"
    bergen, acme = read_facts(table(tmp_path, text))
    assert (bergen.text, bergen.target, bergen.relation) == ("The country in which Bergen lies is", "Chile", "P17")
    assert bergen.statement == "Bergen is in Chile." and acme.relation == "P169"
    with pytest.raises(FactError, match="the relation 'shoe size' has no wording"):
        list(read_facts(table(tmp_path, "subject,relation,object\nAcme,shoe size,9\n")))


def test_triples_take_words_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[warranty]\nprompt = "The {} has a warranty of"\nquestions = ["How long is the warranty of {}?"]\n')
    path = table(tmp_path, "subject;predicate;object\nKestrel 9;warranty;two years\n")
    (fact,) = read_facts(path, relations=read_relations(own))
    assert fact.text == "The Kestrel 9 has a warranty of" and fact.target == "two years"
    assert fact.questions == ("How long is the warranty of Kestrel 9?",)
