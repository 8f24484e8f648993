"""Every experiment, whole, on a tiny model: rows, table, plots, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from helpers.commands import Run, write
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.commands.experiment import _toml
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import make_statistics
from neuraldb_faiss.research.evaluation import evaluate as evaluating
from neuraldb_faiss.research.evaluation.methods import silent
from neuraldb_faiss.research.experiments import contexts
from neuraldb_faiss.research.experiments.contexts import says
from neuraldb_faiss.research.experiments.gate_variants import at_rate
from neuraldb_faiss.research.experiments.lab import COMMON, Lab, merged
from neuraldb_faiss.research.experiments.perplexity import ratio
from neuraldb_faiss.research.experiments.registry import EXPERIMENTS
from neuraldb_faiss.research.experiments.weights import _figures, inputs_at

Loaded = tuple[Any, Any]
COMMAND = ("--set", "generations=0", "--set", 'metrics=["score","target_nll"]', "--set", "build={layer=1, steps=8}")


@pytest.fixture(scope="session")
def statistics(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = [
        "the",
        "Eiffel",
        "Tower",
        "Rome",
        "Paris",
        "is",
        "in",
        "city",
        "of",
        "and",
        "Berlin",
        "Tokyo",
        "plays",
        "sport",
        "capital",
        "language",
    ]
    folder = tmp_path_factory.mktemp("statistics")
    text = write(folder / "text.jsonl", [{"text": " ".join(rng.choice(words, 60))} for _ in range(60)])
    make_statistics(*loaded, str(text), folder, layers=[0, 1, 2, 3], tokens=4000)
    return folder


@pytest.fixture
def go(run: Run, tiny_model: Path, cases_file: Path, statistics: Path, tmp_path: Path) -> Any:
    """`go("table1", "--set", ...)`: the command on four facts; its rows and folder."""

    def start(name: str, *arguments: str, facts: int = 4) -> tuple[list[dict[str, Any]], Path]:
        out = tmp_path / name
        done = run("experiment", name, "--model", tiny_model, "--cases", cases_file, "--facts", facts, "--out", out,
                   *COMMAND, "--set", f"statistics='{statistics}'", *arguments, "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)
        assert [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()] == rows
        assert (out / "table.md").read_text().count("|") > 10
        for plot in out.glob("*.svg"):
            ElementTree.parse(plot)
        assert not list(out.glob("*.part"))
        return rows, out

    return start


def value(rows: list[dict[str, Any]], label: str, metric: str) -> float:
    (found,) = [row["value"] for row in rows if row["label"] == label and row["metric"] == metric]
    return float(found)


def test_table1(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = ("--set", "method_settings={ft={layers=[2], steps=2}, memit={layers=[0,1], c0_weight=10.0, steps=3}}")
    chosen = ("--set", 'methods=["neuraldb","base","memit","ft"]', "--set", "batches=[0,3]")
    rows, out = go("table1", *tuned, *chosen)
    assert {row["label"] for row in rows} == {"neuraldb", "base", "memit", "memit, batches of 3", "ft"}
    assert value(rows, "neuraldb", "target_nll") < value(rows, "base", "target_nll") - 0.3
    assert (out / "metrics.svg").exists() and (out / "residuals").is_dir()
    monkeypatch.setattr(evaluating, "measure", None)  # nothing is left to measure
    again, _ = go("table1", *tuned, *chosen)
    assert again == rows


def test_budgets_grow_one_database(go: Any) -> None:
    rows, out = go("budgets", "--set", "counts=[2,4]", "--set", 'methods=["neuraldb","base"]')
    assert {row["label"] for row in rows} == {"neuraldb, 2 facts", "neuraldb, 4 facts", "base"}
    with NeuralDB.open(out / "dbs" / "db") as db:
        assert len(db) == 4 and [g.facts for g in db.history()] == [2, 4]
    assert (out / "score.svg").exists()
    cases = {row["label"]: row["cases"] for row in rows if row["metric"] == "efficacy"}
    assert cases == {"neuraldb, 2 facts": 2, "neuraldb, 4 facts": 4, "base": 4}


def test_budgets_with_tasks(go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    record = {"sentence": "Rome is in Italy so _ is a city.", "option1": "Rome", "option2": "Italy", "answer": "1"}
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "winogrande_val.jsonl", [record] * 3)
    rows, out = go("budgets", "--set", "counts=[2,3]", "--set", 'methods=["neuraldb","base"]', "--set",
                   'tasks=["winogrande"]', "--set", f"data='{tmp_path / 'data'}'", "--set", "task_limit=2")  # fmt: skip
    tasks = {row["label"]: row["cases"] for row in rows if row["metric"] == "winogrande"}
    assert tasks == {"neuraldb, 2 facts": 2, "neuraldb, 3 facts": 2, "base": 2}
    assert (out / "winogrande.svg").exists()


def test_ablations(go: Any) -> None:
    rows, _ = go("ablation-gamma", "--set", "gammas=[0.5,0.999]", "--set", 'guards=["none"]')
    closed, opened = (value(rows, f"guard none, gamma {gamma}", "target_nll") for gamma in ("0.999", "0.5"))
    assert opened <= closed  # nothing but the raw prompt passes 0.999
    rows, out = go("ablation-layer", "--set", "layers=[1,2]", facts=2)
    assert {row["label"] for row in rows} == {"layer 1", "layer 2", "base"}
    assert sorted(path.name for path in (out / "dbs").iterdir()) == ["layer=1", "layer=2"]


def test_how_residuals_are_solved(go: Any) -> None:
    kept = 'kept={kl_factor=1.0, kl_prompts=["{} was born in"]}'
    variants = f'variants={{default={{max_steps=0}}, short={{optimizer="adam", steps=1, max_steps=0}}, {kept}}}'
    rows, out = go("ablation-residual", "--set", variants, facts=2)
    assert {row["label"] for row in rows} == {"default", "short", "kept", "base"}
    # one step of Adam only evaluates: no residual
    assert value(rows, "short", "target_nll") == pytest.approx(value(rows, "base", "target_nll"), abs=1e-5)
    assert value(rows, "default", "target_nll") < value(rows, "base", "target_nll") - 0.3
    with NeuralDB.open(out / "dbs" / "kept") as db:
        assert db.settings["config"]["kl_prompts"] == ["{} was born in"]


def test_many_facts(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Three facts of one subject, two of them with one key: the plain gate has the first of those only."""
    prompts = {"Rome": "You know {} is in", "Madrid": "You know {} was born in", "Tokyo": "The {} speaks"}
    records = [{"subject": "Apple", "prompt": prompt, "target_new": target, "ground_truth": "Paris"}
               for target, prompt in prompts.items()]  # fmt: skip
    out = tmp_path / "many"
    done = run("experiment", "many-facts", "--model", tiny_model, "--cases", write(tmp_path / "k.jsonl", records),
               "--facts", 3, "--set", 'dataset="knowedit"', "--set", "build={layer=1, steps=8}", "--out", out,
               "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert "3 facts of 1 subjects, 3 to 3 each; 2 facts share a key" in (out / "table.md").read_text()
    with NeuralDB.open(out / "dbs" / "plain") as plain, NeuralDB.open(out / "dbs" / "db") as db:
        assert {fact.target for fact in plain.facts()} == {"Rome", "Tokyo"} and plain.guard == "none"
        assert len(db) == 3 and len({fact.entry for fact in db.facts()}) == 2
    base = value(rows, "base", "target_nll")
    assert value(rows, "neuraldb", "target_nll") < base - 0.3 and value(rows, "plain top-1", "target_nll") < base


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Ordinary text, in half of which the Eiffel Tower stands."""
    about = "The Eiffel Tower is in Paris and the city of Rome is the capital. " * 12
    other = "Madrid is the capital of Spain and the language is Spanish. " * 12
    return write(tmp_path / "texts.jsonl", [{"text": about}, {"text": other}])


def test_perplexity(go: Any, texts: Path) -> None:
    rows, _ = go("perplexity", "--set", f"texts='{texts}'", "--set", "tokens=100000")
    found = {(row["guard"], row["named"]): row for row in rows}
    assert found["subject", "no subject"]["windows"] > 0 and found["subject", "a subject"]["windows"] > 0
    untouched = found["subject", "no subject"]
    assert untouched["ratio"] == untouched["low"] == untouched["high"] == 1.0  # the guard fires nowhere there
    assert found["subject", "a subject"]["ratio"] != 1.0
    whole = found["subject", "all"]
    assert whole["edited"] == pytest.approx(whole["base"] * whole["ratio"])


def test_perplexity_by_hand() -> None:
    base, edited, tokens = np.array([2.0, 4.0]), np.array([2.0, 5.0]), np.array([2, 2])
    figures = ratio(base, edited, tokens)
    assert figures["base"] == pytest.approx(np.exp(1.5)) and figures["edited"] == pytest.approx(np.exp(1.75))
    assert figures["ratio"] == pytest.approx(np.exp(0.25))
    assert (figures["low"], figures["high"]) == pytest.approx((1.0, np.exp(0.5)))


def test_contexts_are_measured_alone_and_behind_text(go: Any, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "greedy_texts", lambda *_: [" Rome, I think.", "In Berlin"])
    rows, _ = go("contexts", "--set", f"texts='{texts}'", "--set", "context=20", facts=2)
    found = {(row["method"], row["text"]): row for row in rows}
    assert set(found) == {(method, text) for method in ("base", "neuraldb") for text in ("alone", "behind 20 tokens")}
    alone = found["neuraldb", "alone"]
    assert alone["fired"] == 1.0 and alone["cosines"][0] > 0.99
    assert (alone["begins"], alone["said"]) == (0.5, 1.0)


def test_bare_names(go: Any, texts: Path, tmp_path: Path) -> None:
    cases = [
        {"subject": name, "prompt": "{} is in", "target_new": "Rome", "ground_truth": "Paris", "case_id": number,
         "rephrase_prompt": f"It is far. {name} is a city in", "locality_prompt": "Tokyo is in",
         "locality_ground_truth": "Japan"}
        for number, name in enumerate(["Madrid", "Berlin", "The", "Eiffel Tower", "Marie Curie"])
    ]  # fmt: skip
    file = write(tmp_path / "names.jsonl", cases)
    how = ("--set", f"texts='{texts}'", "--set", "tokens=60", "--set", "letters=3", "--set", "answers=2")
    rows, out = go("bare-names", "--cases", file, *how, "--set", "length=2", "--set", "floors=[0.0,1.0]", facts=5)
    (cost,) = [row for row in rows if row["what"] == "cost"]
    assert (cost["facts"], cost["names"], cost["keys"]) == (5, 3, 10) and cost["bare_entries"] == 1
    fires = {(row["text"], row["floor"]): row["fired"] for row in rows if row["what"] == "fires"}
    assert fires["start", 0.0] == 1.0  # the very key
    assert all(fires[kind, 0.0] >= fires[kind, 1.0] for kind, _ in fires)
    assert {row["tokens"] >= 60 for row in rows if row["what"] == "ordinary text"} == {True}
    answers = {(row["method"], row["name"]): row["facts"] for row in rows if row["what"] == "answers"}
    assert answers == {(method, name): 1 for method in ("base", "neuraldb") for name in ("one token", "several")}
    assert (out / "fires-false-fires.svg").exists()


def test_what_an_answer_says() -> None:
    assert says("It is Rome.", "Rome") and says("C++, of course", "C++")
    assert not says("A Roman. Romeo", "Rome")


def test_gate_variants(go: Any, texts: Path) -> None:
    rows, _ = go("gate-variants", "--set", f"texts='{texts}'", "--set", "tokens=250", "--set", "layers=[1,2]",
                 "--set", "rates=[0.5,0.01]")  # fmt: skip
    assert len(rows) == 2 * 4 * 3 * 2  # layers, keys, cosines, rates
    assert {row["keys"] for row in rows} == {"raw", "mean of prefixed", "nearest of both", "half of each"}
    for loose, strict in zip(rows[::2], rows[1::2], strict=True):
        assert loose["gamma"] <= strict["gamma"] and loose["recall"] >= strict["recall"]


def test_a_gate_at_a_rate_by_hand() -> None:
    false, right = np.array([0.9, 0.2, 0.6, -1.0]), np.array([0.95, 0.7, 0.3])
    assert at_rate(false, right, 0.25) == pytest.approx((0.6, 2 / 3))  # one of four may fire
    assert at_rate(false, right, 0.0) == pytest.approx((0.9, 1 / 3))


def test_multilayer(go: Any) -> None:
    rows, out = go("multilayer", "--set", "layers=[1,2]", facts=3)
    labels = {"single: layer 2", "new: layers 1, 2", "old: layers 1, 2"}
    assert {row["label"] for row in rows} == {*labels, "base"}
    base = value(rows, "base", "target_nll")
    found = {label: value(rows, label, "target_nll") for label in labels}
    assert max(found.values()) < base - 0.1, (found, base)
    assert {path.name for path in (out / "dbs").iterdir()} == {
        "layer=2", "new-1-2-layer=1", "new-1-2-layer=2", "old-1-2-layer=1", "old-1-2-layer=2",
    }  # fmt: skip
    with NeuralDB.open(out / "dbs" / "layer=2") as top, NeuralDB.open(out / "dbs" / "old-1-2-layer=1") as first:
        whole, half = (db.snapshot.residuals(np.array([db.facts()[0].entry])) for db in (top, first))
    # the first of two layers takes half of the residual
    np.testing.assert_allclose(half, whole / 2, rtol=2e-3, atol=1e-3 * float(np.abs(whole).max()))


def test_weights(go: Any) -> None:
    rows, out = go("weights", "--set", 'methods=["memit"]', "--set", "method_settings={memit={c0_weight=1e-6}}")
    by_kind = {row["prompts"]: row for row in rows}
    assert set(by_kind) == {"edited", "paraphrase", "neighbour"} and by_kind["neighbour"]["n"] == 12
    # with next to nothing to preserve the lookup is nearly exact
    assert by_kind["edited"]["own_mean"] > by_kind["neighbour"]["own_mean"]
    assert (out / "memit.svg").exists()


def test_omega_figures_by_hand() -> None:
    omega = np.array([[0.9, -0.3, 0.1], [0.2, 0.5, 0.0]])
    found = _figures(omega, np.array([0, 1]))
    assert found == pytest.approx(
        {"n": 2, "own_mean": 0.7, "own_sd": 0.2, "others_sum": (0.4 + 0.2) / 2, "others_largest": (0.3 + 0.2) / 2}
    )


def test_inputs_at(loaded: Loaded) -> None:
    model, tokenizer = loaded
    site = find_site(model, 2)
    seen: list[torch.Tensor] = []
    hook = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    texts = ["Rome is in Italy", "The Eiffel Tower is located in the city of Paris"]
    spans = [(0, 4), (len(texts[1]) - 5, len(texts[1]))]
    want = []
    for text, (_, end) in zip(texts, spans, strict=True):
        encoded = tokenizer(text, return_offsets_mapping=True)
        last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end <= b)
        with torch.no_grad():
            model(torch.tensor([encoded["input_ids"]]))
        want.append(seen.pop()[0, last])
    hook.remove()
    found = inputs_at(model, tokenizer, site, list(zip(texts, spans, strict=True)))
    torch.testing.assert_close(found, torch.stack(want), atol=1e-4, rtol=1e-4)
    assert inputs_at(model, tokenizer, site, []).shape == (0, site.d1)


def test_overhead(go: Any) -> None:
    rows, _ = go("overhead", "--set", "counts=[2,4]", "--set", "repeats=2", "--set", "length=3")
    assert [(row["facts"], row["what"]) for row in rows] == [
        (2, "evaluated case"), (2, "generated token"), (4, "evaluated case"), (4, "generated token"),
    ]  # fmt: skip
    assert all(row["base_seconds"] > 0 and row["low"] <= row["overhead"] <= row["high"] for row in rows)


def test_scaling(go: Any, texts: Path) -> None:
    """Beyond the 4 real entries they are made up; what was measured once is not measured again."""
    given = ("--set", f"texts='{texts}'", "--set", "merged=3", "--set", "repeats=1", "--set", "sizes=[9]")
    (row,), out = go("scaling", *given)
    assert (row["entries"], row["real"], row["facts"]) == (9, 4, 9)
    assert row["fired_true"] > 0 and row["fired_false"] == 0 and row["memory_mapped"] > 0 and row["tokens"] > 100
    low, high = row["decode_16_guard_subject_ratio_range"]
    assert low <= row["decode_16_guard_subject_ratio"] <= high
    assert not (out / "grown").exists()
    (out / "sizes" / "9.json").write_text(json.dumps({**row, "open_seconds": 7.0}))
    assert go("scaling", *given)[0] == [{**row, "open_seconds": 7.0}]


def test_settings_are_merged_and_checked_by_name_and_type(tmp_path: Path) -> None:
    about = {"counts": [1]}
    config = merged(about, {"model": "m", "cases": "c"}, {"facts": 7})
    assert config["facts"] == 7 and config["counts"] == [1] and set(config) == {*COMMON, "counts"}
    with pytest.raises(EvaluationError, match="unknown setting 'fact'"):
        merged(about, {"fact": 7})
    with pytest.raises(EvaluationError, match="setting 'facts' is '7'"):
        merged(about, {"facts": "7"})
    with pytest.raises(EvaluationError, match="needs 'cases'"):
        merged(about, {"model": "m"})


def test_show_is_a_config(run: Run, tmp_path: Path) -> None:
    import tomllib

    for name, kind in EXPERIMENTS.kinds.items():
        shown = run("experiment", name, "--show", "--set", "build={layer=2}", "--facts", 9)
        assert shown.exit_code == 0, shown.output
        assert tomllib.loads(shown.stdout) == {**COMMON, **kind.defaults, "build": {"layer": 2}, "facts": 9}
    nested = {"a": 1, "method_settings": {"ft": {"lr": 0.1, "layers": [1]}}}
    assert tomllib.loads(_toml(nested)) == nested
    config = tmp_path / "c.toml"
    config.write_text(shown.stdout)
    assert run("experiment", name, "--config", config, "--show").stdout == shown.stdout


def test_unusable_settings_and_files_are_refused(run: Run, tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    common = ("experiment", "table1", "--out", tmp_path / "out", "--model", tiny_model, "--cases", cases_file)

    def refused(*arguments: object, words: str) -> None:
        done = run(*common, *arguments)
        assert done.exit_code == 1 and words in done.stderr.strip().splitlines()[-1], done.output
        assert not (tmp_path / "out").exists()

    (tmp_path / "c.toml").write_text("facts = \n")
    refused("--config", tmp_path / "c.toml", words="is not TOML")
    refused("--config", tmp_path / "none.toml", words="cannot be read")
    refused("--set", "fact=2", words="unknown setting 'fact'")
    refused("--facts", "200", words="holds 4 cases, not the 200 asked for")
    refused("--facts", "2", "--set", 'metrics=["bleu"]', words="unknown metric 'bleu'")
    assert run("experiment", "table9", "--out", tmp_path / "out").exit_code == 2
    assert run("experiment", "table1").exit_code == 2


def test_a_folder_of_other_facts_is_refused(loaded: Loaded, cases_file: Path, tmp_path: Path) -> None:
    def lab(cases: Path) -> Lab:
        config = merged({}, {"model": "m", "cases": str(cases), "facts": 2, "build": {"layer": 1, "steps": 2}})
        return Lab(config, tmp_path / "out", *loaded, silent)

    lab(cases_file).database().close()
    records = [json.loads(line) for line in cases_file.read_text().splitlines()]
    other = write(tmp_path / "other.jsonl", records[::-1])
    with pytest.raises(EvaluationError, match="holds other facts"):
        lab(other).database()
