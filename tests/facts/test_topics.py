"""Questions about another relation of a subject than its fact are told from those that the fact answers."""

from __future__ import annotations

import pytest

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.relations import own_relations
from neuraldb_faiss.facts.topics import own_topics, stems

CEO = Fact("Lumen Foods", "The CEO of {} is", "Petra Novak")
PRICE = Fact("Kestrel 9", "The price of the {} camera is", "$449")
BORN = Fact("Ada Lovelace", "The birthplace of {} is", "Madrid")
HOURS = Fact("Villa Rosa", "On Mondays, {} opens at", "noon", relation="P3025")
PLAIN = Fact("Tull 4", "The warranty of the {} lasts", "three years")
ODD = Fact("Zorblax", "{} frobnicates the", "quux")
MADE = Fact("Kestrel 9", "{} is a product of", "Volvo")
SITE = Fact("Alder College", "{} can be found in", "Maryland")
SEAT = Fact("Fenwick Bank", "The headquarter of {} is located in", "Budapest")
PLAYER = Fact("Jon Arden", "{}, the", "violin")
NATIVE = Fact("Jon Arden", "{}, a native", "Dutch")
WORK = Fact("Jon Arden", "{} worked in the city of", "Cologne")
TRADE = Fact("Jon Arden", "{} works as a", "baker")
CITIZEN = Fact("Jon Arden", "{} is a citizen of", "Peru")
LAND = Fact("Alder College", "{} is located in the country of", "Norway")
OFFICE = Fact("Fenwick Bank", "{}'s headquarters are in", "Budapest", relation="P159")
FORMED = Fact("Alder College", "{} was founded in", "Ohio", relation="P740")
SCREEN = Fact("Iron Song", "The screenplay of {} is by", "Ann Lee")
NAMED = Fact("Alder College", "The name of {} comes from", "Ann Lee")


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (CEO, "Who is the boss of Lumen Foods?"),
        (CEO, "I need the name of the person who leads LUMEN FOODS. Who is it?"),
        (CEO, "A visit of the capital. Where did it go? At the top of Lumen Foods stands"),
        (CEO, "Tell me something about Lumen Foods."),
        (CEO, "What is Lumen Foods?"),
        (CEO, "Who is she?"),
        (CEO, "Lumen Foods"),
        (PRICE, "How much do I pay for a Kestrel 9?"),
        (PRICE, "Is the Kestrel 9 expensive?"),
        (PRICE, "My Kestrel 9 broke. What would the shop charge for a new Kestrel 9?"),
        (PLAIN, "How long is the Tull 4 under guarantee?"),
        (BORN, "Where was Ada Lovelace born?"),
        (BORN, "Ada Lovelace comes from"),
        (HOURS, "Can I have lunch at Villa Rosa on Monday?"),
        (HOURS, "Until when is Villa Rosa open?"),
        (ODD, "When was Zorblax founded?"),
        (MADE, "Which company makes the Kestrel 9?"),
        (SITE, "Where is Alder College?"),
        (SITE, "Which state is Alder College in?"),
        (SEAT, "In which city is Fenwick Bank based?"),
        (PLAYER, "Which instrument does Jon Arden play?"),
        (NATIVE, "What is Jon Arden's first language?"),
        (WORK, "Where did Jon Arden work?"),
        (CEO, "Where is Fenwick Bank based, and who is the CEO of Lumen Foods?"),
        (CEO, "Who is the CEO and where are the headquarters of Lumen Foods?"),
        (MADE, "Category:Cars designed in 2011 Kestrel 9 is a product of"),
        (CEO, "The CEO of Lumen Foods is"),
        (SITE, "where's  Alder College?"),
        (SITE, "Is Alder College in Ohio?"),
        (SITE, "How do I get to Alder College?"),
        (BORN, "Where does Ada Lovelace come from?"),
        (BORN, "Is Ada Lovelace from Portugal?"),
        (TRADE, "Is Jon Arden a baker or a doctor?"),
        (TRADE, "What kind of work does Jon Arden do?"),
        (CITIZEN, "Which European country is Jon Arden from?"),
        (CITIZEN, "Is Jon Arden from Chile?"),
        (LAND, "Which nation is Alder College in?"),
        (LAND, "What country does Alder College belong to?"),
        (SITE, "What city is Alder College a part of?"),
        (SITE, "which county is alder college in"),
        (SITE, "What county is Alder College, Ohio located in?"),
        (OFFICE, "Where is Fenwick Bank's head office?"),
        (OFFICE, "Which city is the head office of Fenwick Bank in?"),
        (OFFICE, "In which county does Fenwick Bank have its headquarters?"),
        (OFFICE, "What city is Fenwick Bank located in?"),
        (OFFICE, "Where is Fenwick Bank?"),
        (BORN, "Which city was Ada Lovelace born in?"),
        (FORMED, "What city was Alder College founded in?"),
        (SCREEN, "Who wrote Iron Song?"),
        (NAMED, "Who is Alder College named after?"),
    ],
)
def test_questions_that_the_fact_may_answer(fact: Fact, text: str) -> None:
    assert not own_topics().is_another(text, fact)


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (CEO, "When was Lumen Foods founded?"),
        (CEO, "Who leads the country? Lumen Foods was founded in the year"),
        (CEO, "What does Lumen Foods sell?"),
        (CEO, "How many people work at Lumen Foods?"),
        (CEO, "Which country is Lumen Foods from?"),
        (CEO, "What was the name of the first product of Lumen Foods?"),
        (PRICE, "How heavy is the Kestrel 9?"),
        (PRICE, "Which colours does the Kestrel 9 come in?"),
        (PLAIN, "What is the colour of the Tull 4?"),
        (BORN, "Who was the husband of Ada Lovelace?"),
        (BORN, "Which language did Ada Lovelace speak?"),
        (HOURS, "What is the phone number of Villa Rosa?"),
        (PRICE, "What does the Kestrel 9 camera weigh?"),
        (MADE, "Who designed the Kestrel 9?"),
        (MADE, "What brand is the Kestrel 9?"),
        (SITE, "What time zone is Alder College located in?"),
        (SEAT, "Where was Fenwick Bank formed?"),
        (SITE, "What city is Alder College named after?"),
        (PLAYER, "Who is the sibling of Jon Arden?"),
        (NATIVE, "Whose child is Jon Arden?"),
        (WORK, "Where was Jon Arden born?"),
        (WORK, "What languages are spoken by Jon Arden?"),
        (WORK, "What's the given name of Jon Arden?"),
        (WORK, "Which country is Jon Arden a citizen of?"),
        (TRADE, "Is Jon Arden in Dutch or in English?"),
        (SITE, "What colour is Alder College?"),
        (SEAT, "What city is Fenwick Bank a part of?"),
        (OFFICE, "What region does Fenwick Bank belong to?"),
        (OFFICE, "Which county is Fenwick Bank in?"),
        (OFFICE, "What country is Fenwick Bank part of?"),
        (OFFICE, "Which county contains Fenwick Bank?"),
        (OFFICE, "what is a town in fenwick bank"),
        (BORN, "What city is Ada Lovelace in?"),
        (CITIZEN, "what country is jon arden located in"),
        (FORMED, "What state is Alder College located in?"),
        (SITE, "Which village is located in Alder College?"),
    ],
)
def test_questions_about_something_else(fact: Fact, text: str) -> None:
    assert own_topics().is_another(text, fact)


@pytest.mark.parametrize(
    ("fact", "text"),
    [
        (SITE, "In which country is Alder College?"),
        (SITE, "Alder College is in the country of"),
        (SEAT, "Which country is Fenwick Bank based in?"),
        (OFFICE, "What country is Fenwick Bank located in?"),
        (BORN, "Which country was Ada Lovelace born in?"),
    ],
)
def test_a_place_tells_the_country_that_it_is_in(fact: Fact, text: str) -> None:
    assert own_topics().bearing(text, fact) == "indirect"


def test_a_fact_brings_words_of_its_own() -> None:
    plain = Fact("Kestrel 9", "The price of the {} is", "$449")
    told = Fact("Kestrel 9", "The price of the {} is", "$449", metadata={"questions": ["Can I afford a {}?"]})
    asked = "Can my brother afford the Kestrel 9?"
    assert own_topics().is_another(asked, plain) and not own_topics().is_another(asked, told)


def test_other_names_of_the_subject_say_nothing() -> None:
    fact = Fact("Nokia", "The CEO of {} is", "Justin Hotard")
    assert not own_topics().is_another("Who runs Founders United?", fact, ["Founders United"])


def test_every_relation_answers_its_own_questions() -> None:
    """The wordings of one relation are never taken for another's, whether the fact names its relation or not."""
    lost = []
    for one in own_relations().by_id.values():
        for name in (one.id, None):
            fact = Fact("Xyzzy", one.prompt, "it", relation=name)
            texts = (*one.questions, *one.paraphrases)
            lost += [
                (one.id, name, text) for text in texts if own_topics().is_another(text.replace("{}", "Xyzzy"), fact)
            ]
    assert [text for text in lost if text[1]] == []
    assert len(lost) < 12, lost


def test_the_relation_that_a_prompt_is_likest() -> None:
    likest = own_topics().likest(CEO)
    assert likest is not None and own_relations().by_id[likest].label == "chief executive"
    assert own_topics().likest(ODD) is None
    assert own_topics().likest(Fact("Acme", "The head office of {} is at", "Lima")) is None, (
        "several have as many words"
    )


def test_stems_bring_forms_together() -> None:
    assert stems("makes made making") == {"mak"} and stems("died dies death") == {"die"}
