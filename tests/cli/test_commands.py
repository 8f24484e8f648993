"""Every command does what it says, on a tiny model."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helpers.commands import FACTS, Run, write
from helpers.pieces import set_piece
from neuraldb_faiss import NeuralDB

ROOT = Path(__file__).resolve().parents[2]
NEW = [
    {"subject": "Marie Curie", "prompt": "I know that {} was born in", "target": "Madrid"},
    {"subject": "Space Needle", "prompt": "The {} is in", "target": "Berlin"},
]


def told(result: Result) -> Any:
    """The JSON on stdout of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_build_reports_what_it_did(run: Run, model: Path, tmp_path: Path) -> None:
    records = [*FACTS, {**FACTS[0], "id": ""}, {"subject": "x", "prompt": "no", "target": "y"}, "{"]
    facts = write(tmp_path / "facts.jsonl", records)
    done = run("build", facts, "--out", tmp_path / "new", "--model", model, "--steps", 1, "--skip-bad", "--json")
    report = told(done)
    assert {name: report[name] for name in ("facts", "entries", "duplicates", "conflicts", "skipped")} == {
        "facts": 4, "entries": 4, "duplicates": 1, "conflicts": 0, "skipped": 2,
    }  # fmt: skip
    assert "facts.jsonl, line 6: subject 'x' is not in the prompt" in done.stderr
    assert "no known settings for this model: layer 1 of 0 to 3 is edited" in done.stderr
    assert "building: 4 of 4 facts" in done.stderr and "mean loss" in done.stderr
    assert report["failed"] == len(told(run("facts", tmp_path / "new", "--failed", "--json")))


def test_build_text_names_how_to_list_failed_facts(run: Run, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", FACTS[:1])
    done = run("build", facts, "--out", tmp_path / "new", "--model", model, "--steps", 1, "--layer", 2)
    assert done.exit_code == 0, done.output
    assert f"neuraldb facts {tmp_path / 'new'} --failed" in done.stdout
    assert "no known settings" not in done.stderr  # the layer was chosen
    assert told(run("info", tmp_path / "new", "--json"))["layer"] == 2


def test_build_without_a_model(run: Run, model: Path, tmp_path: Path) -> None:
    facts, db = write(tmp_path / "facts.jsonl", FACTS), tmp_path / "new"
    build = ("build", facts, "--out", db, "--model", "none")
    refused = run(*build, "--layer", 2)
    assert refused.exit_code == 1 and "without a model there is nothing to solve" in refused.stderr
    assert told(run(*build, "--json"))["facts"] == len(FACTS)
    assert told(run("add", db, write(tmp_path / "new.jsonl", NEW), "--json"))["facts"] == len(FACTS) + 1
    assert run("remove", db, "--subject", "Space Needle").exit_code == 0
    unnamed = run("generate", db, "Marie Curie")
    assert unnamed.exit_code == 1 and "was built without a model: name the one" in unnamed.stderr
    answer = told(run("generate", db, "Marie Curie", "--model", model, "--max-new-tokens", 1, "--json"))
    assert answer["delivery"] == "text" and answer["stated"]
    seen = told(run("explain", db, "Marie Curie", "--json"))
    assert seen["tokens"] == [] and [fact["subject"] for fact in seen["stated"]] == ["Marie Curie"]
    assert "stated  I know that Marie Curie was born in" in run("explain", db, "Marie Curie").stdout
    mismatched = run("generate", db, "Marie Curie", "--model", model, "--delivery", "residual")
    assert mismatched.exit_code == 1 and "built without a model" in mismatched.stderr
    assert told(run("rebuild", db, "--out", tmp_path / "solved", "--model", model, "--steps", 1, "--json"))["facts"]


def test_build_keeps_other_relations(run: Run, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", FACTS[:1])
    build = ("build", facts, "--model", model, "--steps", 1, "--out", tmp_path / "new")
    done = run(*build, "--kl-prompt", "The capital is")
    assert done.exit_code == 1 and "'The capital is' must hold one {}" in done.stderr
    assert not (tmp_path / "new").exists()
    assert run(*build, "--kl-prompt", "{} was born in", "--kl-prompt", "{} is in").exit_code == 0
    with NeuralDB.open(tmp_path / "new") as db:
        assert db.settings["config"]["kl_prompts"] == ["{} was born in", "{} is in"]


def test_build_takes_facts_from_stdin(run: Run, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuraldb_faiss.cli", "build", "-", "--out", str(tmp_path / "new")]
    options = ["--model", str(model), "--residual", "none", "--preset", "paper", "--json"]
    done = subprocess.run(command + options, input=json.dumps(FACTS[0]), capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout)["facts"] == 1
    info = told(run("info", tmp_path / "new", "--json"))
    assert (info["keys"], info["keys_per_fact"]) == (1, "paper")
    assert (info["gamma"], info["residual"]) == (0.65, "none")


def test_build_ivf_makes_the_index_at_once(run: Run, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", FACTS)
    options = ("--residual", "none", "--index", "ivf", "--nlist", 2, "--nprobe", 2)
    assert run("build", facts, "--out", tmp_path / "new", "--model", model, *options).exit_code == 0
    info = told(run("info", tmp_path / "new", "--json"))
    assert info["index"] == {"kind": "ivf", "nlist": 2, "nprobe": 2} and info["generation"] == 1
    assert list((tmp_path / "new" / "search").iterdir())


def test_shards_are_all_facts_once(run: Run, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", FACTS)
    ids = []
    for number in (1, 2):
        out = tmp_path / f"s{number}"
        done = run("build", facts, "--out", out, "--model", model, "--residual", "none", "--shard", f"{number}/2")
        if done.exit_code == 0:
            ids += [fact["id"] for fact in told(run("facts", out, "--json"))]
        else:
            assert "no facts" in done.stderr
    assert sorted(ids) == sorted(str(fact["id"]) for fact in FACTS)


@pytest.mark.parametrize(("choice", "target"), [("first", "Rome"), ("last", "Madrid")])
def test_on_conflict_chooses_which_target_is_built(
    run: Run, model: Path, tmp_path: Path, choice: str, target: str
) -> None:
    facts = write(tmp_path / "facts.jsonl", [FACTS[0], {**FACTS[0], "target": "Madrid"}])
    options = ("--residual", "none", "--on-conflict", choice, "--json")
    assert told(run("build", facts, "--out", tmp_path / "new", "--model", model, *options))["conflicts"] == 1
    assert [fact["target"] for fact in told(run("facts", tmp_path / "new", "--json"))] == [target]


def test_a_killed_build_resumes(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.edits import pipeline

    facts, out = write(tmp_path / "facts.jsonl", FACTS), tmp_path / "new"
    set_piece(monkeypatch, 1)
    solve = pipeline.solve_piece
    solved: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        if len(solved) == 1:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(*arguments)

    command = ("build", facts, "--out", out, "--model", model, "--steps", 1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "solve_piece", interrupted)
        done = run(*command)
    assert done.exit_code == 130 and "Run the command again to resume" in done.stderr
    assert "unfinished build" in run("info", out).stderr
    again = []
    monkeypatch.setattr(pipeline, "solve_piece", lambda *a: again.append(1) or solve(*a))
    assert run(*command).exit_code == 0
    assert len(again) == 2  # three entries, one was there
    assert told(run("info", out, "--json"))["facts"] == 4


def test_add_updates_and_adds(run: Run, db: Path, tmp_path: Path) -> None:
    report = told(run("add", db, write(tmp_path / "new.jsonl", NEW), "--json"))
    assert (report["generation"], report["added"], report["updated"], report["facts"]) == (2, 1, 1, 5)
    (fact,) = told(run("facts", db, "--subject", "Marie Curie", "--json"))
    assert fact["target"] == "Madrid"
    again = told(run("add", db, tmp_path / "new.jsonl", "--json"))
    assert (again["generation"], again["added"], again["updated"]) == (2, 0, 0)
    assert [one["command"] for one in told(run("history", db, "--json"))][1] == "add new.jsonl"


def test_remove_waits_and_solve_settles(run: Run, db: Path) -> None:
    dry = told(run("remove", db, "--id", "tower", "--dry-run", "--json"))
    assert [fact["id"] for fact in dry] == ["tower"]
    done = run("remove", db, "--id", "tower")
    assert done.exit_code == 0 and "1 fact removed, 3 left" in done.stdout
    assert f"neuraldb solve {db}" in done.stderr
    assert [fact["id"] for fact in told(run("facts", db, "--waiting", "--json"))] == ["builder"]
    assert told(run("generate", db, "The Eiffel Tower was built by", "--json"))["fired"] == []
    assert told(run("solve", db, "--json")) == {"generation": 3, "solved": 1, "facts": 3}
    fired = told(run("generate", db, "The Eiffel Tower was built by", "--json"))["fired"]
    assert [fact["id"] for fact in fired[0]["facts"]] == ["builder"]
    assert "no fact waits" in run("solve", db).stdout


def test_remove_with_a_model_solves_at_once(run: Run, db: Path, model: Path) -> None:
    report = told(run("remove", db, "--id", "tower", "--model", model, "--json"))
    assert (report["removed"], report["waiting"]) == (1, 0)


def test_remove_by_source(run: Run, db: Path) -> None:
    assert told(run("remove", db, "--source", "facts.jsonl", "--json"))["facts"] == 0


def test_rollback_history_and_compact(run: Run, db: Path) -> None:
    assert told(run("remove", db, "--subject", "Paris", "--json"))["removed"] == 1
    assert "generation 3 is as generation 1 was: 4 facts" in run("rollback", db, "--to", 1).stdout
    assert [fact["id"] for fact in told(run("facts", db, "--at", 2, "--json"))] == [
        "tower",
        "builder",
        "curie",
    ]
    table = run("history", db)
    assert table.exit_code == 0 and "rollback --to 1" in table.stdout
    history = told(run("history", db, "--json"))
    assert [(one["generation"], one["added"], one["removed"]) for one in history] == [
        (1, 4, 0),
        (2, 0, 1),
        (3, 1, 0),
    ]
    assert told(run("compact", db, "--json"))["facts"] == 4
    refused = run("rollback", db, "--to", 1)
    assert refused.exit_code == 1 and "compacted away" in refused.stderr


def test_reindex(run: Run, db: Path) -> None:
    prompt = "The Eiffel Tower is located in the city of"
    before = told(run("generate", db, prompt, "--json"))
    assert told(run("reindex", db, "--index", "ivf", "--nlist", 2, "--json"))["generation"] == 2
    assert told(run("info", db, "--json"))["index"] == {"kind": "ivf", "nlist": 2}
    assert told(run("generate", db, prompt, "--json")) == before
    assert told(run("generate", db, prompt, "--index", "flat", "--json")) == before
    assert told(run("reindex", db, "--index", "sketch", "--json"))["generation"] == 3
    assert told(run("info", db, "--json"))["index"] == {"kind": "sketch"}
    assert told(run("generate", db, prompt, "--guard", "none", "--json")) == told(
        run("generate", db, prompt, "--guard", "none", "--index", "flat", "--json")
    )


def test_facts_filters_and_shapes(run: Run, db: Path) -> None:
    assert [fact["id"] for fact in told(run("facts", db, "--contains", "capital", "--json"))] == ["paris"]
    assert [fact["id"] for fact in told(run("facts", db, "--limit", 1, "--json"))] == ["tower"]
    assert told(run("facts", db, "--subject", "nobody", "--json")) == []
    rows = list(csv.DictReader(io.StringIO(run("facts", db, "--csv").stdout)))
    assert [(row["id"], row["target"]) for row in rows] == [(fact["id"], fact["target"]) for fact in FACTS]
    lines = run("facts", db).stdout.splitlines()
    assert lines[0].startswith("tower  The Eiffel Tower is located in the city of → Rome")
    (whole,) = told(run("facts", db, "--id", "curie", "--json"))
    assert {"made", "ended", "loss", "probability", "residual", "sources", "time"} <= set(whole)
    assert len(whole["key_norms"]) == 2 and min(whole["key_norms"]) > 0


def test_texts_cannot_drive_a_terminal(run: Run, model: Path, tmp_path: Path) -> None:
    fact = {"subject": "Paris", "prompt": "{} is\n\x1b[31min", "target": "Italy\x9b2J", "id": "x\x07"}
    facts = write(tmp_path / "facts.jsonl", [fact])
    options = ("--out", tmp_path / "new", "--model", model, "--residual", "none")
    assert run("build", facts, *options).exit_code == 0
    for command in (("facts",), ("explain", "Paris is"), ("generate", "Paris is\n\x1b[31min")):
        shown = run(command[0], tmp_path / "new", *command[1:])
        assert shown.exit_code == 0, shown.output
        assert not set("\x1b\x9b\x07") & set(shown.stdout), command


def test_info_for_people(run: Run, db: Path, model: Path) -> None:
    shown = run("info", db)
    assert shown.exit_code == 0 and str(model) in shown.stdout and "flat" in shown.stdout
    info = told(run("info", db, "--json"))
    assert {"facts", "entries", "layer", "gamma", "generation", "model", "residual"} <= set(info)


def test_verify(run: Run, db: Path) -> None:
    assert "ok: 4 facts" in run("verify", db, "--deep").stdout
    assert told(run("verify", db, "--json"))["ok"] is True
    path = next(db.glob("segments/*/residuals.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run("verify", db).exit_code == 0  # shallow: sizes and types only
    done = run("verify", db, "--deep", "--json")
    assert done.exit_code == 1 and done.stderr.startswith("Error: ")
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["file"].endswith("residuals.npy") and "checksum" in problem["what"]
    assert "residuals.npy" in run("verify", db, "--deep").stdout


def test_generate_compares_and_names_what_fired(run: Run, db: Path) -> None:
    prompt = "The Eiffel Tower is located in the city of"
    answer = told(run("generate", db, prompt, "--compare", "--max-new-tokens", 8, "--json"))
    assert answer["prompt"] == prompt and answer["base"] != answer["edited"]
    (fired,) = answer["fired"]
    assert [fact["id"] for fact in fired["facts"]] == ["tower", "builder"]
    assert fired["score"] > 0.99 and "".join(answer["tokens"][: fired["positions"][0] + 1]) == "The Eiffel Tower"
    text = run("generate", db, prompt, "--compare", "--explain", "--max-new-tokens", 3).stdout
    assert text.startswith("base ") and "[→ Rome | Steve 1.00]" in text and "cosine 1.000" in text


def test_generate_leaves_other_texts_alone(run: Run, db: Path) -> None:
    done = run("generate", db, "Berlin", "--compare", "--gamma", 0.999, "--max-new-tokens", 2)
    assert done.exit_code == 0 and "no fact fired" in done.stderr


def test_generate_in_chat_form(run: Run, db: Path, model: Path) -> None:
    refused = run("generate", db, "Where is Paris?", "--chat")
    assert refused.exit_code == 1 and "no chat template" in refused.stderr
    template = model / "chat_template.jinja"
    template.write_text("{% for m in messages %}The {{ m.content }} said{% endfor %}")
    try:
        chat = ("generate", db, "Eiffel Tower", "--chat", "--max-new-tokens", 2)
        answer = told(run(*chat, "--delivery", "residual", "--json"))
        stated, both = told(run(*chat, "--json")), told(run(*chat, "--delivery", "both", "--json"))
        shown = run(*chat).stdout
    finally:
        template.unlink()
    assert "".join(answer["tokens"]).startswith("The Eiffel Tower said")
    assert [fact["id"] for fact in answer["fired"][0]["facts"]] == ["tower", "builder"] and answer["stated"] == []
    for one in (stated, both):
        assert [fact["id"] for fact in one["stated"]] == ["tower", "builder"]
        assert "was built by Steve." in "".join(one["tokens"]).partition("said")[0]
    assert (stated["delivery"], both["delivery"], stated["fired"]) == ("text", "both", [])
    assert "stated  The Eiffel Tower was built by Steve." in shown


def test_generate_states_facts_in_front_of_a_text(run: Run, db: Path) -> None:
    answer = told(run("generate", db, "Ask the Eiffel Tower", "--max-new-tokens", 1, "--delivery", "text", "--json"))
    assert "was built by Steve.\n" in "".join(answer["tokens"]).partition("Ask")[0]
    done = run("generate", db, "Berlin", "--max-new-tokens", 1, "--delivery", "text")
    assert done.exit_code == 0 and "no fact was stated" in done.stderr


def test_explain_agrees_with_what_fires(run: Run, db: Path) -> None:
    prompt = "Paris is the capital of Italy. I know that Marie Curie was born in Paris"
    told_of = told(run("explain", db, prompt, "--json"))
    fired = {one["position"] for one in told_of["tokens"] if one["fired"]}
    answer = told(run("generate", db, prompt, "--max-new-tokens", 1, "--json"))
    assert fired == {position for one in answer["fired"] for position in one["positions"]}
    assert 0 in fired and "".join(one["token"] for one in told_of["tokens"]) == prompt
    other = told(run("explain", db, "Rome is the capital of", "--json"))["tokens"]
    assert other[0]["entry"] is None  # a first token of another text: no key of a first token but its own
    assert [fact["subject"] for fact in told_of["stated"]] == ["Marie Curie"], "the question is not which capital"
    table = run("explain", db, prompt, "--top", 2)
    assert "stated  I know that Marie Curie was born in" in table.stdout
    assert table.exit_code == 0 and "Paris → Italy" in table.stdout
    shown = [int(line.split()[0]) for line in table.stdout.splitlines() if "yes" in line]
    assert 0 in shown and set(shown) <= fired


def test_models_are_found_again_or_named(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    moved = model.rename(model.with_name("moved"))
    try:
        lost = run("generate", db, "Paris")
        assert lost.exit_code == 1 and "name it with --model" in lost.stderr
        assert run("generate", db, "Paris", "--model", moved, "--max-new-tokens", 1).exit_code == 0
    finally:
        moved.rename(model)
