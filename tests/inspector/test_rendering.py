"""Pages as text: escaped, self-contained, the numbers in the right places."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from neuraldb_faiss import NeuralDB
from neuraldb_faiss.guard.named import FLOOR, WHY
from neuraldb_faiss.inference.explain import Held, Nearest
from neuraldb_faiss.inspector.rendering import (
    Axis,
    heat,
    histogram_part,
    live_page,
    look_part,
    page_of,
    rows,
    shown,
    write_page,
)
from neuraldb_faiss.inspector.views import Look, Looker, Series

from .conftest import EVIL, PROMPT


class Tags(HTMLParser):
    """Every element that a browser would make, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize(("score", "colour"), [(-0.4, 0), (0.0, 0), (0.5, 18), (1.0, 72), (1.2, 72)])
def test_colour_grows_with_the_square_of_the_cosine(score: float, colour: int) -> None:
    assert heat(score) == colour


def test_the_axis_begins_at_zero_or_below_what_there_is() -> None:
    above = Axis.of([Series("a", "", (0.2, 0.9), 0, False)], 0.45)
    assert (above.low, above.at(0.45), above.at(1.0)) == (0.0, 45.0, 100.0)
    below = Axis.of([Series("a", "", (-0.25, 0.9), 0, False)], 0.4)
    assert below.low == pytest.approx(-0.3) and below.at(0.35) == 50.0 and below.at(-0.9) == 0.0


def test_bars_count_and_the_highest_is_full() -> None:
    (row,) = rows([Series("a", "", (0.0, 0.001, 0.5, 1.0), 1, False)])
    assert [(bar["x"], bar["height"]) for bar in row["bars"]] == [(0.0, 100.0), (50.0, 50.0), (97.73, 50.0)]
    assert row["total"] == 4


def test_gamma_stands_in_the_histogram_where_it_belongs() -> None:
    html = histogram_part([Series("own prompts", "", (0.9, 0.99), 2, True)], 0.45, "subject")
    assert '<line class="gamma" x1="45.0" x2="45.0"' in html and "left: 45.0%" in html
    assert "<b>2</b> of 2 fire" in html and "the guard holds the others back" in html
    assert "the guard holds" not in histogram_part([Series("a", "", (0.9,), 1, True)], 0.65, "none")


def _token(position: int, word: str, entry: int | None, score: float, *held: Held) -> Nearest:
    return Nearest(position, word, entry, score, False, (), held)


def test_a_token_over_gamma_whose_subject_is_not_named_is_marked() -> None:
    look = Look(
        3, 0.45, "subject", (_token(0, "A", None, 0.0), _token(1, " b", 7, 0.5)), (_token(2, "\n", 7, 0.4),), "x", ()
    )
    html = look_part(look)
    assert html.count('class="token over"') == 2  # the token, and the legend's
    assert (
        "1 token comes nearer than γ" in html and "Nothing fired" in html and "Named where it did not fire" not in html
    )
    assert 'style="--heat: 18%"' in html and 'left: 45.0%"><b>γ 0.45' in html
    assert (shown("\n"), shown("\n", breaks=False), shown("")) == ("↵\n", "\n", "·")


def test_a_name_that_a_floor_held_back_is_not_said_to_be_none() -> None:
    held = Held(7, (), 0.7, 0.85, FLOOR, WHY[FLOOR])
    html = look_part(
        Look(3, 0.45, "subject", (_token(0, "A", None, 0.0), _token(1, " Oslo", 7, 0.7, held)), (), "x", ())
    )
    assert 'class="token over"' not in html and "names no such subject" not in html
    assert 'class="token named" href="#held-7-floor"' in html and "Named where it did not fire" in html
    assert "The cosine is below the floor" in html and "0.700, asked for 0.85 (floor)" in html and "no: floor" in html


def test_a_page_is_whole_and_says_where_a_fact_is_from(looker: Looker, db: Path, tmp_path: Path) -> None:
    look = looker.look(PROMPT)
    with NeuralDB.open(db) as opened:
        html = page_of(look, PROMPT, opened.info())
    page = Tags(html)
    text = " ".join(" ".join(page.words).split())
    assert "script" not in page.names and not re.search(r"https?://|@import|url\(", html)
    assert all(value and value.startswith(("#", "data:")) for name, value in page.attributes if name in ("src", "href"))
    for told in ("Eiffel Tower", "atlas.csv", "generation 1", "γ 0.45", "Without the database", "Rome", "Paris"):
        assert told in text
    assert "<code>tower</code>" in html and f'href="#entry-{look.fired[0].entry}"' in html
    out = tmp_path / "page.html"
    write_page(html, out)
    assert out.read_text(encoding="utf-8") == html and not (tmp_path / "page.html.part").exists()


@pytest.mark.parametrize("delivery", ["residual", "text", "both"])
def test_whatever_facts_and_prompts_hold_is_text(looker: Looker, db: Path, delivery: str) -> None:
    prompt = f"In the page {EVIL} was"
    look = looker.look(prompt, delivery=delivery)
    assert [one.facts[0].subject for one in look.fired] == ([] if delivery == "text" else [EVIL])
    assert [one.subject for one in look.stated] == [EVIL]
    with NeuralDB.open(db) as opened:
        html = page_of(look, prompt, opened.info())
    page = Tags(html)
    assert not {"script", "img"} & set(page.names) and page.names.count("style") == 1 and page.names.count("title") == 1
    assert not any(name.startswith("on") for name, _ in page.attributes)
    whole = "".join(page.words)
    assert EVIL in whole and "<b>evil</b>" in whole and "\"><img src=x onerror='window.evil=2'>" in whole


def test_the_live_page_allows_its_own_script_only() -> None:
    page, allowed = live_page()
    assert not re.search(r"https?://|@import|url\(", page)
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}';", allowed) and "frame-ancestors 'none'" in allowed
    assert not any(name.startswith("on") for name, _ in Tags(page).attributes)
    labels = {value for name, value in Tags(page).attributes if name == "for"}
    assert {"prompt", "length", "search", "subject", "template", "target", "token"} <= labels
