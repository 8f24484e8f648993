"""The page in a real Chromium: with the keyboard, on a phone, in the dark, with facts that attack it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from .conftest import EVIL, PROMPT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

Open = Callable[..., Any]
LIGHTNESS = """([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 :
  ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; }"""
CONTRAST = f"""([name, behind]) => {{
  const light = {LIGHTNESS};
  const [a, b] = [getComputedStyle(document.querySelector(name)).color,
    getComputedStyle(document.querySelector(behind)).backgroundColor]
    .map((one) => light(one.match(/[0-9.]+/g).slice(0, 3).map(Number)));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}}"""


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Any]:
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own sandbox refuses to run as root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(_chromium: Any) -> Iterator[Open]:
    """`open_page(address, width=390, dark=True)`: a page; at the end none may have complained or asked others."""
    troubles: list[str] = []
    contexts = []

    def start(address: str, *, width: int = 1280, dark: bool = False) -> Any:
        contexts.append(
            _chromium.new_context(viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light")
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        # Chromium itself reports answers that are errors; those are the page's business.
        page.on("console", lambda one: None if "Failed to load resource" in one.text else troubles.append(one.text))
        own = address.split("#")[0]
        page.on("request", lambda one: None if one.url.startswith((own, "data:")) else troubles.append(one.url))
        page.goto(address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert troubles == []


def told(page: Any, words: str) -> None:
    playwright.expect(page.get_by_role("status")).to_contain_text(words, timeout=60_000)


def test_a_prompt_is_looked_at_with_the_keyboard_alone(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_text("The first").or_(page.get_by_text("All 3")).wait_for()
    assert "token" not in page.url
    page.get_by_role("textbox", name="Prompt", exact=True).focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    told(page, "1 fired (Rome).")
    fired = page.locator(".token.fired[href]")
    assert fired.count() == 1
    assert page.locator(".strip").first.text_content().replace(" (fires)", "").strip() == PROMPT
    card = page.locator(".card")
    assert all(words in card.inner_text() for words in ("Rome", "atlas.csv", "tower", "cosine"))
    names = ("Without the database", "With the database")
    base, edited = (page.get_by_role("region", name=name).locator(".answer").inner_text() for name in names)
    assert base != edited
    fired.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith(card.get_attribute("id"))


def test_facts_are_added_deleted_and_rolled_back(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Marie Curie was born in")
    page.locator("#ask-form").get_by_role("button", name="Look").click()
    told(page, "No fact stated and none fired")
    page.get_by_text("Add a fact").click()
    page.get_by_label("Subject", exact=True).fill("Marie Curie")
    page.get_by_label("Prompt, with").fill("{} was born in")
    page.get_by_label("Answer", exact=True).fill("Tokyo")
    page.get_by_role("button", name="Add", exact=True).click()
    told(page, "Done: generation 2.")
    playwright.expect(page.locator(".stated")).to_contain_text("from inspector")  # the look follows the change
    assert page.locator("#facts li").count() == 4
    delete = page.get_by_role("button", name="Delete The Eiffel Tower")
    delete.click()
    page.keyboard.press("Escape")
    assert page.locator("#facts li").count() == 4
    delete.click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    told(page, "Done: generation 3.")
    assert page.locator("#facts li").count() == 3
    page.get_by_role("button", name="Roll back to generation 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    told(page, "Done: generation 4.")
    assert page.locator("#facts li").count() == 3 and "generation 4 · 3 facts" in page.locator("#about").inner_text()
    playwright.expect(page.locator("#result")).to_contain_text("Nothing is stated")
    assert page.locator("#history li").count() == 4
    page.reload()  # the token is remembered as long as the tab is open
    playwright.expect(page.locator("#facts li")).to_have_count(3)


def test_a_change_that_is_refused_says_why(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_text("Add a fact").click()
    page.get_by_label("Subject", exact=True).fill("Lyon")
    page.get_by_label("Prompt, with").fill("Paris was born in")
    page.get_by_label("Answer", exact=True).fill("Tokyo")
    page.get_by_role("button", name="Add", exact=True).click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("'Lyon' is not in the prompt")
    assert page.get_by_label("Subject", exact=True).input_value() == "Lyon"


def test_facts_are_searched(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    search = page.get_by_role("searchbox")
    search.fill("italy")
    playwright.expect(page.locator("#found")).to_have_text("All 1 found")
    assert "Paris" in page.locator("#facts li").inner_text()
    search.fill("nowhere")
    playwright.expect(page.locator("#found")).to_have_text("No fact holds “nowhere”.")


def test_a_facts_answer_is_edited_in_place(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    edit = page.get_by_role("button", name="Edit The Eiffel Tower")
    edit.click()
    page.keyboard.press("Escape")
    playwright.expect(edit).to_be_focused()
    edit.click()
    form = page.get_by_role("form", name="Edit The Eiffel Tower")
    form.get_by_label("Answer").fill("Berlin")
    form.get_by_role("button", name="Save").click()
    told(page, "Done: generation 2.")
    fact = page.locator("#facts li").filter(has_text="Eiffel Tower")
    playwright.expect(fact.locator(".target")).to_have_text("Berlin")
    playwright.expect(fact).to_contain_text("atlas.csv")


def test_a_fact_is_jumped_to_and_an_id_that_is_none_is_said(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_label("Order").select_option("subject")
    playwright.expect(page.locator("#facts li").first).to_contain_text(EVIL)
    page.get_by_label("Page or id").fill("paris")
    page.get_by_role("button", name="Go").click()
    playwright.expect(page.locator(".wanted")).to_contain_text("Paris")
    page.get_by_label("Page or id").fill("nobody")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("alert")).to_contain_text("No fact here has the id “nobody”")


def test_databases_are_switched_in_the_header(open_page: Open, folder: Path, db: Path, tmp_path: Path) -> None:
    from neuraldb_faiss import Fact, build

    from .conftest import running

    build([Fact("Lima", "{} is the capital of", "Chile")], None, None, tmp_path / "said").close()
    with running(folder, db, tmp_path / "said") as address:
        page = open_page(address)
        playwright.expect(page.locator("#facts li")).to_have_count(3)
        page.get_by_label("Database").select_option("said")
        playwright.expect(page.locator("#facts li")).to_have_count(1)
        assert not page.locator("#gate-part").is_visible() and "none fires" in page.locator("#about").inner_text()
        page.get_by_role("textbox", name="Prompt", exact=True).fill("Lima is in")
        page.keyboard.press("Control+Enter")
        told(page, "1 fact stated (Chile).")
        assert "Lima is the capital of Chile." in page.locator(".strip.sent").inner_text()


def test_what_deletes_does_not_look_like_the_main_action(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_role("button", name="Delete The Eiffel Tower").click()
    yes = page.get_by_role("dialog").get_by_role("button", name="Delete")
    colour = "(one) => getComputedStyle(one).backgroundColor"
    assert page.locator("button.main").first.evaluate(colour) != yes.evaluate(colour)
    playwright.expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()


def test_help_for_gamma(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    page.get_by_role("button", name="γ 0.45").click()
    playwright.expect(page.locator("#gamma-help")).to_contain_text("exceeds γ")
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#gamma-help")).not_to_be_visible()


def test_facts_and_prompts_run_no_script(open_page: Open, inspected: str) -> None:
    page = open_page(inspected)
    playwright.expect(page.locator("#facts")).to_contain_text(EVIL)
    page.get_by_role("textbox", name="Prompt", exact=True).fill(f"In the page {EVIL} was")
    page.keyboard.press("Control+Enter")
    playwright.expect(page.locator(".card")).to_contain_text(EVIL)
    assert page.evaluate("() => window.evil") is None
    assert page.locator("script").count() == 1 and page.locator("img").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_cut_off_and_text_stands_out(open_page: Open, inspected: str, dark: bool) -> None:
    page = open_page(inspected, width=390, dark=dark)
    page.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    page.keyboard.press("Control+Enter")
    page.locator(".look").wait_for()
    page.get_by_role("button", name="Measure").click()
    page.locator("#gate-result .row").first.wait_for()
    page.get_by_text("All tokens, with").click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for name, behind in (("body", "body"), (".soft", "body"), (".target", ".card"), (".token.fired", ".token.fired"),
                         ("button.main", "button.main"), ("summary", "body")):  # fmt: skip
        assert page.evaluate(CONTRAST, [name, behind]) >= 4.5, name
    side, other = (page.locator(".side").nth(number).bounding_box() for number in (0, 1))
    assert side["x"] == other["x"] and side["y"] < other["y"]  # one below the other
    page.get_by_role("button", name="Delete The Eiffel Tower").scroll_into_view_if_needed()
    shown, bar = (page.locator(name).bounding_box() for name in (".page", ".bar"))
    assert "Measured" in page.get_by_role("status").inner_text()
    assert shown["y"] + shown["height"] <= bar["y"] and bar["y"] + bar["height"] <= 844  # it covers nothing
    facts, gate = (page.locator(name).bounding_box() for name in ("#facts-part", "#gate-part"))
    assert facts["y"] < gate["y"]  # facts before plots
    page.get_by_role("link", name="Gate").click()
    playwright.expect(page.locator("#gate-title")).to_be_in_viewport()


def test_a_wrong_token_opens_nothing_until_the_right_one_comes(open_page: Open, inspected: str) -> None:
    page = open_page(inspected.replace("secret", "wrong"))
    page.get_by_label("Token", exact=True).wait_for()
    assert not page.locator("#all").is_visible() and page.locator("#facts li").count() == 0
    page.get_by_label("Token", exact=True).fill("secret")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#facts li")).to_have_count(3)


def test_a_page_in_a_file_needs_nothing_else(open_page: Open, folder: Path, db: Path, tmp_path: Path) -> None:
    from neuraldb_faiss.cli.commands.explain import explain

    out = tmp_path / "page.html"
    done = CliRunner().invoke(explain, [str(db), PROMPT, "--model", str(folder / "tiny"), "--html", str(out)])
    assert done.exit_code == 0, done.output
    page = open_page(out.as_uri())
    assert "Rome" in page.locator(".card").inner_text() and page.locator(".side").count() == 2
