"""tune-layer on a tiny model: what is measured, what is recommended, what is not measured twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from helpers.commands import Run, digest, write
from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, create
from neuraldb_faiss.errors import EvaluationError, FactError, ModelError
from neuraldb_faiss.facts import read_facts
from neuraldb_faiss.research.evaluation import tuning
from neuraldb_faiss.research.evaluation import tuning_report as told
from neuraldb_faiss.research.evaluation.sample import FACTS as SAMPLE_FACTS
from neuraldb_faiss.research.evaluation.sample import TEXT as SAMPLE_TEXT

Loaded = tuple[Any, Any]
TEXT = ["Steve plays chess in Rome, and the language of Italy is Italian.", "You know that Windows is by Apple."]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "text.jsonl", [{"text": text} for text in TEXT])


@pytest.fixture
def go(run: Run, tiny_model: Path, cases_file: Path, texts: Path) -> Run:
    def invoke(*arguments: object, facts: object = cases_file, **how: Any) -> Any:
        return run("tune-layer", tiny_model, "--facts", facts, "--text", texts, "--device", "cpu", *arguments, **how)

    return invoke


def test_measures_each_layer_once(
    go: Run, loaded: Loaded, cases_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    built: list[Any] = []
    whole = create.build

    def build(*arguments: Any, **how: Any) -> NeuralDB:
        built.append(how["layer"])
        return whole(*arguments, **how, clamp=10.0)  # a random model needs a stronger push

    monkeypatch.setattr(create, "build", build)
    first = go("--layers", "1", "--limit", 3, "--gammas", "0.65,0.3", "--out", out, "--json")
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert (found["facts"], found["paraphrases"], found["neighbours"]) == (3, 6, 3)
    assert found["layer"] == 1 and found["gamma"] in (0.3, 0.65) and found["guard"] == "subject"
    assert found["base"]["efficacy_acc"] == 0  # a random model does not know them
    (row,) = found["layers"]
    assert row["target_nll"] < found["base"]["target_nll"] - 0.5
    assert [gate["gamma"] for gate in row["gates"]] == [0.3, 0.65]
    _check_against_an_attached_database(out / "layer-1", row, loaded, list(read_facts(cases_file, limit=3)))

    more = go("--layers", "0,1", "--limit", 3, "--gammas", "0.3,0.65", "--out", out)
    assert more.exit_code == 0 and built == [1, 0], more.output
    starred = re.search(r"\*(\d)", more.stdout)
    assert starred is not None and f"Recommended: --layer {starred[1]} --gamma" in more.stdout
    assert "3 facts" in more.stdout and "Left alone" in more.stdout and "table.md, layers.svg" in more.stderr
    assert (out / "table.md").read_text().count("|") > 60 and not list(out.glob("*.part"))
    for plot in ("layers.svg", "gammas.svg"):
        ElementTree.parse(out / plot)
    again = json.loads(go("--layers", "1", "--limit", 3, "--gammas", "0.3,0.65", "--out", out, "--json").stdout)
    assert built == [1, 0] and again["layers"] == [row]  # to the second it took

    before = digest(out)
    for other in (("--gammas", "0.3"), ("--gammas", "0.3,0.65", "--limit", 2), ("--guard", "none")):
        refused = go("--layers", "1", "--limit", 3, "--out", out, *other)
        assert refused.exit_code == 1 and "rows.jsonl is another run" in refused.stderr
    assert digest(out) == before and built == [1, 0]


def _check_against_an_attached_database(path: Path, row: dict[str, Any], loaded: Loaded, facts: list[Fact]) -> None:
    """The gate's and the answers' figures, read off what an attached database does."""
    model, tokenizer = loaded
    with NeuralDB.open(path) as db:
        for gate in row["gates"]:
            fired, took = [], []
            with db.attach(model, tokenizer, gamma=gate["gamma"]) as handle:
                for fact in facts:
                    ids = tokenizer(fact.text, return_tensors="pt")["input_ids"]
                    new = tokenizer(" " + fact.target, return_tensors="pt")["input_ids"][0]
                    handle.clear_trace()
                    with torch.no_grad():
                        logits = model(input_ids=torch.cat([ids[0], new])[None]).logits[0]
                    fired.append(any(fact.id in fire.fact_ids for fire in handle.trace()))
                    took.append(bool((logits[ids.shape[1] - 1 : -1].argmax(dim=1) == new).all()))
                handle.clear_trace()
                for text in (*TEXT, "The Space Needle is in", "Apple was founded by", "Madrid is in"):
                    with torch.no_grad():
                        model(**tokenizer(text, return_tensors="pt"))
                assert len(handle.trace()) == gate["fired_false"]
            assert gate["own"] == pytest.approx(sum(fired) / len(fired))
            if gate["gamma"] == row["gamma"]:
                assert row["efficacy_acc"] == pytest.approx(sum(took) / len(took))


def test_without_a_guard_and_without_probes(go: Run, tmp_path: Path) -> None:
    facts = write(
        tmp_path / "plain.jsonl", [{"subject": "Eiffel Tower", "prompt": "The {} is located in", "target": "Rome"}]
    )
    asked = ("--guard", "none", "--layers", "2", "--gammas", "0,0.65,0.9", "--out", tmp_path / "out")
    done = go(*asked, "--json", facts=facts)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (row,) = found["layers"]
    assert row["generalization_acc"] is None and row["unchanged"] is None and found["guard"] == "none"
    low, _, high = row["gates"]
    assert low["own"] == high["own"] == 1 and low["paraphrases"] is None
    # Everything is somewhat alike, and "in" alone is never the subject.
    assert low["fired_false"] > high["fired_false"] and low["spared"] == 0 < row["spared"]
    shown = go(*asked, facts=facts)
    assert shown.exit_code == 0 and "paraphrase_prompts and neighborhood_prompts" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--layers", "9"), 1, "layer 9 does not exist: this llama model has layers 0 to 3"),
        (("--layers", "x"), 2, "is no list of layers"),
        (("--gammas", "1.5"), 1, "gamma is 1.5"),
        (("--gammas", "high"), 2, "is no list of numbers"),
        (("--text", "nowhere.jsonl"), 1, "no text file nowhere.jsonl"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    go: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = go(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == code and words in done.stderr, done.output
    assert not (tmp_path / "out").exists()


def test_unusable_fact_files_are_refused(go: Run, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    empty = write(tmp_path / "empty.jsonl", [""])
    done = go(*out, facts=empty)
    assert done.exit_code == 1 and "there are no facts to try layers with" in done.stderr
    assert "facts file nowhere does not exist" in go(*out, facts="nowhere").stderr
    fact = {"subject": "Rome", "prompt": "{} is", "target": "x", "metadata": {"paraphrase_prompts": [3]}}
    done = go(*out, facts=write(tmp_path / "bad.jsonl", [fact]))
    assert done.exit_code == 1 and "'paraphrase_prompts' must be a list of texts" in done.stderr
    assert "holds no text" in go(*out, "--text", empty).stderr
    assert not (tmp_path / "out").exists()


def test_layers_to_try_are_spread_over_the_lower_two_thirds() -> None:
    assert tuning.spread(tiny("llama")[0]) == [0, 1, 2]  # two thirds of four layers, the default 1 among them
    model, _ = tiny("llama")
    config = model.config
    config.num_hidden_layers, config.layer_types = 30, None
    with torch.device("meta"):
        large = type(model)(config)
    assert tuning.spread(large) == [3, 6, 7, 11, 15, 19]  # every fourth of the lower twenty, and the default 6
    with pytest.raises(ModelError, match="mixture of experts"):
        tuning.spread(tiny("mixtral")[0])


def _sample(paraphrases: int, neighbours: int) -> tuning.Sample:
    probes = {"paraphrase_prompts": [f"Rome {n}" for n in range(paraphrases)],
              "neighborhood_prompts": [f"Bonn {n}" for n in range(neighbours)]}  # fmt: skip
    facts = [Fact("Rome", "{} is", "x", metadata=probes), Fact("Bern", "{} is", "y")]
    return tuning.Sample.of(facts, SAMPLE_TEXT)


def _row(layer: int, *shares: float, probability: float) -> dict[str, Any]:
    names = ("efficacy_acc", "generalization_acc", "unchanged", "spared", "score")
    gates = [{"gamma": gamma, "own": 1.0, "paraphrases": 0.75, "fired_false": 2, "tokens": 1000, "spared": 0.98}
             for gamma in (0.45, 0.65)]  # fmt: skip
    return {"layer": layer, "gamma": 0.45, **dict(zip(names, shares, strict=True)), "target_probability": probability,
            "paraphrase_probability": probability, "target_nll": 0.5, "seconds": 3.2, "gates": gates}  # fmt: skip


BASE = {"efficacy_acc": 0.0, "generalization_acc": 0.25, "target_nll": 6.0, "target_probability": 0.01,
        "paraphrase_probability": 0.02}  # fmt: skip


def test_the_likelier_of_equals_is_recommended() -> None:
    rows = [
        _row(1, 1.0, 0.5, 1.0, 1.0, 0.8, probability=0.6),
        _row(3, 1.0, 0.75, 1.0, 1.0, 0.9231, probability=0.7),
        _row(5, 1.0, 0.75, 1.0, 1.0, 0.9229, probability=0.9),  # the same score to three places
        _row(7, 0.0, 0.0, 1.0, 1.0, 0.0, probability=0.1),
    ]
    done = tuning._choose(_sample(4, 2), "subject", BASE, rows)
    assert (done.layer, done.gamma, done.close) == (5, 0.45, (1, 3))
    assert done.reason == (
        "Layer 5 with γ 0.45 does best of the 4 tried: 2 of 2 own prompts and 3 of 4 paraphrases get the new answer,"
        " 2 of 2 neighbours stay as they were, and 2 of 1,000 tokens of other text fire falsely"
    )
    header, (none, *_, third, last) = told.layer_table(done)
    assert header[:4] == ("layer", "γ", "own prompts", "paraphrases")
    assert none == ["none", "", "0/2", "1/4", "", "", "0.010", "6.00", "", ""]
    assert third == ["*5", "0.45", "2/2", "3/4", "2/2", "1.000", "0.900", "0.50", "0.923", "3"] and last[0] == "7"
    assert told.gamma_table(done)[1][0] == ["*0.45", "2/2", "3/4", "2", "1,000", "0.980"]
    assert "Within two prompts of it: layer 1, 3." in told.markdown(done)


def test_no_layer_takes_the_facts() -> None:
    done = tuning._choose(_sample(0, 0), "none", BASE, [_row(2, 0.0, 0.0, 0.0, 1.0, 0.0, probability=0.1)])
    start = "No layer that was tried takes the facts; layer 2 comes nearest: 0 of 2 own prompts get"
    assert done.reason.startswith(start)
    done = tuning._choose(_sample(0, 0), "none", BASE, [_row(2, 1.0, 0.0, 0.0, 1.0, 1.0, probability=0.9)])
    assert done.reason.startswith("Layer 2 with γ 0.45 is all that was tried: 2 of 2 own prompts get the")


def test_what_ships_can_be_asked() -> None:
    """Ten facts with probes; each paraphrase names its subject, no neighbour names any."""
    facts = list(read_facts(SAMPLE_FACTS))
    sample = tuning.Sample.of(facts, SAMPLE_TEXT)
    assert len(facts) == 10 and len(sample.named) == len(sample.paraphrases) >= 10 and len(sample.neighbours) >= 15
    assert not [(fact.subject, text) for fact in facts for text in sample.neighbours if fact.subject in text]
    with pytest.raises(EvaluationError, match="no facts"):
        tuning.Sample.of([], SAMPLE_TEXT)
    with pytest.raises(FactError, match="neighborhood_prompts"):
        tuning.Sample.of([Fact("Rome", "{} is", "x", metadata={"neighborhood_prompts": {"a": 1}})], SAMPLE_TEXT)
