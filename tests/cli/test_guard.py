"""The subject guard and its calibration, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import FACTS, Run, digest, write
from helpers.tiny import save_tiny
from neuraldb_faiss import NeuralDB, merge


def told(result):  # type: ignore[no-untyped-def]
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fired(run: Run, db: Path, prompt: str, *options: object) -> set[str]:
    answer = told(run("generate", db, prompt, "--max-new-tokens", 1, "--delivery", "residual", "--json", *options))
    return {fact["id"] for one in answer["fired"] for fact in one["facts"]}


def test_guard_is_kept_and_can_be_overruled(run: Run, db: Path) -> None:
    info = told(run("info", db, "--json"))
    assert (info["guard"], info["gamma"]) == ("subject", 0.45)
    prompt = FACTS[2]["prompt"].replace("{}", "Marie Curie")
    assert fired(run, db, prompt) == {"curie"}
    assert fired(run, db, prompt, "--guard", "none") >= {"curie"}
    explained = told(run("explain", db, prompt, "--guard", "none", "--json"))
    assert (explained["guard"], explained["gamma"]) == ("none", 0.65)


def test_whole_words_are_a_guard_of_a_database_too(run: Run, model: Path, tmp_path: Path) -> None:
    facts, db = write(tmp_path / "f.jsonl", FACTS[2:]), tmp_path / "db"
    told(run("build", facts, "--out", db, "--model", model, "--steps", 1, "--guard", "whole-words", "--json"))
    info = told(run("info", db, "--json"))
    assert (info["guard"], info["gamma"]) == ("whole-words", 0.45)
    prompt = FACTS[2]["prompt"].replace("{}", "Marie Curie")
    assert fired(run, db, prompt) == {"curie"} == fired(run, db, prompt, "--guard", "subject")


def test_nothing_fires_without_the_subject_even_at_gamma_0(run: Run, db: Path) -> None:
    prompt = "I know that Marie was born in Rome, and Curie too"
    assert fired(run, db, prompt, "--gamma", 0.0) == set()
    assert fired(run, db, prompt, "--gamma", 0.0, "--guard", "none") != set()


def test_paper_preset_has_no_guard(run: Run, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", FACTS)
    options = ("--model", model, "--residual", "none", "--preset", "paper")
    told(run("build", facts, "--out", tmp_path / "db", *options, "--json"))
    info = told(run("info", tmp_path / "db", "--json"))
    assert (info["guard"], info["gamma"], info["keys_per_fact"]) == ("none", 0.65, "paper")


def test_an_alias_fires(run: Run, model: Path, tmp_path: Path) -> None:
    fact = {**FACTS[2], "metadata": {"aliases": ["Madame Curie", "Sklodowska"]}}
    told(run("build", write(tmp_path / "f.jsonl", [fact]), "--out", tmp_path / "db", "--model", model, "--steps", 1,
             "--json"))  # fmt: skip
    for name in ("Marie Curie", "Madame Curie", "Sklodowska"):
        assert fired(run, tmp_path / "db", f"I know that {name} was born in", "--gamma", 0.0) == {"curie"}, name
    assert fired(run, tmp_path / "db", "I know that Pierre Curie was born in", "--gamma", 0.0) == set()


def test_calibrate(run: Run, model: Path, tmp_path: Path) -> None:
    """A name that is the beginning of a longer one, in tokens too: calibration asks for more, and then it is silent."""
    from transformers import AutoTokenizer

    text = "I know that Marie Curie was born in Warsaw, and that LeBron James plays in Germany."
    spans = AutoTokenizer.from_pretrained(model)(text, return_offsets_mapping=True)["offset_mapping"]
    stop = next(stop for _, stop in spans if stop > text.index("Marie") + 6 and text[stop - 1 : stop + 1].isalpha())
    subject = " ".join(text[:stop].split()[-2:])
    fact = {"subject": subject, "prompt": "{} was born in", "target": "Rome", "id": "begun"}
    db = tmp_path / "db"
    told(run("build", write(tmp_path / "f.jsonl", [fact]), "--out", db, "--model", model, "--residual", "none",
             "--gamma", 0.0, "--json"))  # fmt: skip
    texts = write(tmp_path / "texts.jsonl", [{"text": text}] * 3)
    assert fired(run, db, text) == {"begun"}
    done = told(run("calibrate", db, "--text", texts, "--json"))
    assert (done["false_before"], done["false_after"], set(done["floors"])) == (3, 0, {subject})
    assert fired(run, db, text) == set()
    assert told(run("history", db, "--json"))[-1]["command"] == "calibrate --text texts.jsonl"
    again = told(run("calibrate", db, "--text", texts, "--json"))
    assert again["false_before"] == 0 and again["generation"] == done["generation"]
    assert told(run("rollback", db, "--to", 1, "--json"))
    assert fired(run, db, text) == {"begun"}


def test_floors_survive_a_merge(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    told(run("build", write(tmp_path / "f.jsonl", [{**FACTS[0], "subject": "Space Needle", "id": "x"}]), "--out", other,
             "--model", model, "--steps", 1, "--json"))  # fmt: skip
    for path, floors in ((db, {"Paris": 0.7, "Rome": 0.5}), (other, {"Paris": 0.6, "Oslo": 0.9})):
        with NeuralDB.open(path, "rw") as opened, opened._store.write("calibrate") as transaction:
            transaction.set_setting("floors", floors)
            transaction.commit()
    with merge([db, other], tmp_path / "both") as both:
        assert both.snapshot.floors == {"Paris": 0.7, "Rome": 0.5, "Oslo": 0.9}


@pytest.mark.parametrize("text", [None, "{", '{"title": "x"}'])
def test_calibrate_refuses_bad_text(run: Run, db: Path, text: str | None, tmp_path: Path) -> None:
    before = digest(db)
    path = tmp_path / "texts.jsonl"
    if text is not None:
        path.write_text(text + "\n")
    done = run("calibrate", db, "--text", path)
    assert done.exit_code == 1 and "texts.jsonl" in done.stderr and "Traceback" not in done.stderr
    assert digest(db) == before


def test_bench_lookup_reports_a_ratio_for_each_guard(run: Run, db: Path) -> None:
    report = told(run("bench", "lookup", "--db", db, "--guard", "subject", "--guard", "none", "--repeats", 1, "--json"))
    works = [f"{work}_guard_{guard}" for work in ("prefill", "decode_1", "decode_16") for guard in ("subject", "none")]
    ratios = {f"{work}_{clock}" for work in works for clock in ("ratio", "processor_ratio")}
    assert {name for name in report if name.endswith("_ratio")} == ratios
    for name in ratios:
        low, high = report[f"{name}_range"]
        assert 0 < low <= report[name] <= high
    assert report["facts"] == len(FACTS) and report["hits"]["prefill_guard_subject"] >= 1
    assert run("bench", "lookup").exit_code == 2


def test_facts_that_cannot_fire_are_named_and_left_out(run: Run, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama", "wordpiece")
    snowman = {"id": "snow", "subject": "☃", "prompt": "{} is in", "target": "Rome"}
    facts, more = write(tmp_path / "f.jsonl", [FACTS[2], snowman]), write(tmp_path / "g.jsonl", [snowman])
    how = ("--model", model, "--residual", "none", "--layer", 1)
    result = run("build", facts, "--out", tmp_path / "db", *how)
    assert result.exit_code == 0 and "cannot fire          1 fact, left out" in result.stdout
    assert "'☃' in '☃ is in'" in result.stderr
    made = told(run("build", facts, "--out", tmp_path / "db2", *how, "--json"))
    assert (made["facts"], made["unheard"]) == (1, ["snow"])
    result = run("add", tmp_path / "db", more, "--model", model)
    assert result.exit_code == 1 and "none of the 1 facts could ever fire" in result.stderr
    result = run("add", tmp_path / "db", write(tmp_path / "h.jsonl", [FACTS[1], snowman]), "--model", model, "--json")
    assert (told(result)["added"], told(result)["unheard"]) == (1, ["snow"])
