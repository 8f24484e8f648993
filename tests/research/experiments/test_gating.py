"""Where a gate fires in ordinary text: the measures, and the experiment on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.commands import Run, write
from neuraldb_faiss.guard import false_fires
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.benchmarks import synthetic


class Named:
    def __init__(self, *names: str) -> None:
        self._names = names

    def names(self, entry: int) -> tuple[str, ...]:
        return self._names


def seen(text: str, *tokens: str) -> false_fires.Seen:
    """A text whose tokens are given; they must make it up."""
    assert "".join(tokens) == text
    stops = np.cumsum([len(token) for token in tokens])
    spans = np.stack([stops - [len(token) for token in tokens], stops], axis=1)
    return false_fires.Seen(text, np.arange(len(tokens)), spans, np.zeros((len(tokens), 2), np.float32))


@pytest.mark.parametrize(
    ("tokens", "names", "true"),
    [
        (("In", " Bern", "."), ("Bern",), {1}),
        (("In", " Bern", "oulli"), ("Bern",), set()),  # in hindsight: the word went on
        (("A", " song", "."), ("Song",), set()),
        (("The", " moon", "."), ("the moon",), {1}),
        (("New", "  York", " City"), ("New York",), {1}),
        (("New", " York", "ers"), ("New York",), set()),
        (("Bern", ", Bern"), ("Bern",), {0, 1}),
        (("Madame", " Curie", "'s"), ("Marie Curie", "Madame Curie"), {1}),
        (("(C", "++)"), ("C++",), {1}),
    ],
)
def test_a_subject_that_really_ends_there_is_no_false_fire(
    tokens: tuple[str, ...], names: tuple[str, ...], true: set[int]
) -> None:
    truth = false_fires.Truth(Named(*names))
    one = seen("".join(tokens), *tokens)
    assert {token for token in range(len(tokens)) if truth(one, token, 0)} == true


def test_the_plain_scan_is_brute_force_over_the_first_entries(tmp_path: Path) -> None:
    snapshot = synthetic.make(tmp_path / "db", 40, d1=8, d2=4).snapshot()
    queries = np.random.default_rng(1).standard_normal((7, 8)).astype(np.float32)
    entries, cosines = false_fires.PlainScan(snapshot, [5, 20, 40]).scores(queries)
    keys = snapshot.keys(np.arange(snapshot.n_keys)).astype(np.float64)
    exact = queries @ keys.T / np.linalg.norm(keys, axis=1) / np.linalg.norm(queries, axis=1)[:, None]
    for row, limit in enumerate([5, 20, 40]):
        of_limit = np.where(snapshot.key_entries < limit, exact, -2)
        assert np.array_equal(entries[row], snapshot.key_entries[of_limit.argmax(axis=1)])
        np.testing.assert_allclose(cosines[row], of_limit.max(axis=1), atol=1e-5)


def test_windows_hold_every_token_once(loaded: tuple[Any, Any]) -> None:
    _, words = loaded
    text = "The Eiffel Tower is in Paris and the Colosseum is in Rome. " * 9
    pieces = list(false_fires.windows(words, [text], size=16, tokens=10_000))
    letters = "".join(pieces).replace(" ", "")  # a tokenizer may count the space before a word to neither
    assert text.replace(" ", "").startswith(letters) and len(letters) > 0.7 * len(text)
    assert len(list(false_fires.windows(words, [text, text], size=16, tokens=20))) == 2


def test_keys_do_not_depend_on_the_batch(loaded: tuple[Any, Any]) -> None:
    model, words = loaded
    site = find_site(model, 1)
    texts = ["Marie Curie was born in Warsaw", "Rome", "The Eiffel Tower is located in the city of Paris"]
    together = list(false_fires.see(model, words, site, texts))
    for text, one in zip(texts, together, strict=True):
        (alone,) = false_fires.see(model, words, site, [text])
        assert one.text == text and np.array_equal(one.ids, alone.ids)
        np.testing.assert_allclose(one.keys, alone.keys, atol=1e-5)


def test_experiment(run: Run, tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"text": "The Eiffel Tower and Marie Curie and the Eiffel Towers. " * 30}])
    arguments = ["--model", tiny_model, "--cases", cases_file, "--facts", 4, "--out", tmp_path / "out"]
    settings = [f'texts="{texts}"', "tokens=400", "plain_tokens=200", "sizes=[2, 4]", "gammas=[0.0, 0.99]", "context=8",
                "build={layer=1, residual='none'}"]  # fmt: skip
    sets = [word for one in settings for word in ("--set", one)]
    done = run("experiment", "gate", *arguments, *sets, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    ordinary = [row for row in rows if row["what"] == "ordinary text"]
    assert {(row["guard"], row["facts"], row["gamma"]) for row in ordinary} == {
        (guard, facts, gamma)
        for guard in ("subject", "whole-words", "none")
        for facts in (2, 4)
        for gamma in (0.0, 0.99)
    }
    loose = {(row["guard"], row["facts"]): row for row in ordinary if row["gamma"] == 0.0}
    # "Eiffel Tower" in "Eiffel Towers" is all that the guard can get wrong, and Marie Curie comes with the other facts.
    assert 0 < loose["subject", 2]["fired_true"] < loose["subject", 4]["fired_true"]
    assert loose["none", 4]["fired_false"] > loose["subject", 4]["fired_false"]
    for name in ("fired_true", "fired_false"):  # one s more is the name still
        assert loose["whole-words", 4][name] == loose["subject", 4][name]
    own = [row for row in rows if row["what"] == "recall" and row["text"] == "own prompt"]
    assert {row["recall"] for row in own} == {1.0} and {row["prompts"] for row in own} == {4}
    plots = {path.name for path in (tmp_path / "out").glob("*.svg")}
    assert plots == {"recall-false-fires.svg", "false-fires-facts.svg"}
    refused = run("experiment", "gate", *arguments)
    assert refused.exit_code == 1 and "needs texts" in refused.stderr
