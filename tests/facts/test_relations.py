"""Wordings of relations: the package's own, and those of a file."""

import re
from pathlib import Path

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.relations import own_relations, read_relations

GIVEN = (
    "P6 P17 P19 P20 P26 P27 P30 P35 P36 P37 P38 P39 P40 P101 P103 P106 P108 P112 P127 P131 P136 P138 P140 P159 P169",
    "P176 P178 P190 P264 P276 P364 P407 P413 P449 P463 P495 P571 P641 P740 P937 P1082 P1128 P1303 P1329 P1412 P2284",
    "P3025 P6375",
)


def test_own_wordings_cover_many_relations_in_several_ways() -> None:
    relations = own_relations().by_id
    assert len(relations) >= 60 and set(" ".join(GIVEN).split()) <= set(relations)
    for one in relations.values():
        assert one.label and one.of and one.gives and one.prompt and one.statement
        assert len(one.paraphrases) >= 2 and len(one.questions) >= 2
        assert all(question.endswith("?") for question in one.questions)
        assert one.statement.endswith(".")
        assert len({one.prompt, *one.paraphrases, *one.questions}) == 1 + len(one.paraphrases) + len(one.questions)


@pytest.mark.parametrize("name", ["P36", "p36", "Capital", "http://www.wikidata.org/prop/direct/P36"])
def test_a_relation_is_found_by_its_names(name: str) -> None:
    found = own_relations().find(name)
    assert found is not None and found.id == "P36"


def test_a_relation_without_a_wording_is_none() -> None:
    assert own_relations().find("P999999") is None and own_relations().find(None) is None
    assert own_relations().of("") == [] and {"P19", "P26"} <= {one.id for one in own_relations().of("person")}


def test_a_file_adds_to_the_own_wordings_and_replaces_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[boss]\nquestions = ["Who is the boss of {}?"]\n[P36]\nparaphrases = ["{}: capital"]\n')
    relations = read_relations(path)
    assert relations.find("Boss").questions == ("Who is the boss of {}?",)
    assert relations.find("P36").paraphrases == ("{}: capital",) and relations.find("P36").questions == ()
    assert relations.find("P17") == own_relations().find("P17")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[P1", "mine.toml is not TOML"),
        ('P1 = "Who?"', "relation P1: write a table"),
        ('[P1]\nquestion = ["Who is {}?"]', "relation P1: unknown field 'question'"),
        ('[P1]\nquestions = "Who is {}?"', "relation P1: questions must be a list of texts"),
        ("[P1]\nlabel = 3\n", "relation P1: label must be a text"),
        ('[P1]\nlabel = "x"', "relation P1: give it questions or paraphrases"),
        ('[P1]\nquestions = ["Who?"]', "must stand once in every text: questions 'Who?'"),
        ('[P1]\nquestions = ["Is {} {target}?"]', "must not hold {target}"),
        ('[P1]\nquestions = ["Who is {}?"]\nstatement = "{} is."', "must hold {target} once"),
    ],
)
def test_a_broken_file_is_named_with_its_relation(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(FactError, match=re.escape(said)) as raised:
        read_relations(path)
    assert str(path) in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="cannot be read: No such file"):
        read_relations(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("é".encode("latin-1"))
    with pytest.raises(FactError, match="not UTF-8"):
        read_relations(tmp_path / "latin.toml")
