"""The real lm-evaluation-harness on a tiny model, over local files: no hub."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from helpers.commands import write
from helpers.tiny import tiny
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.evaluation.methods import Method, base
from neuraldb_faiss.runs import read_run

pytest.importorskip("lm_eval")

from neuraldb_faiss.research.evaluation import harness
from neuraldb_faiss.research.evaluation.harness import PAPER, PRESETS, general_ability, read_arguments
from neuraldb_faiss.research.evaluation.local_tasks import LOCAL_TASKS

Loaded = tuple[Any, Any]
ABOUT = {"model": "tiny"}

SCIQ = [
    {"question": f"What is {n}?", "distractor1": "a city", "distractor2": "a sport", "distractor3": "a language",
     "correct_answer": "the capital of Italy", "support": "Rome is in Italy."}
    for n in ("Rome", "Paris", "Tokyo")
]  # fmt: skip
ARC = [
    {"question": {"stem": "Where is the Colosseum?",
                  "choices": [{"text": "Rome", "label": "A"}, {"text": "Paris", "label": "B"}]}, "answerKey": "A"},
]  # fmt: skip
WSC = [
    {"text": "Rome is in Italy because [MASK] is a city.", "pronoun": "[MASK]", "candidates": ["Italy", "Rome"],
     "answer": "Rome"},
]  # fmt: skip
WINOGRANDE = [{"sentence": "Rome is in Italy so _ is a city.", "option1": "Rome", "option2": "Italy", "answer": "1"}]
MMLU = [
    {"subject": subject, "question": "Where is Rome?", "A": "Italy", "B": "Spain", "C": "Japan", "D": "France",
     "answer": "A"}
    for subject in ("astronomy", "virology", "virology")
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, records in (
        ("sciq_test", SCIQ), ("arc_challenge_test", ARC), ("arc_challenge_dev", ARC), ("arc_easy_test", ARC),
        ("wsc273", WSC), ("winogrande_val", WINOGRANDE), ("mmlu_test", MMLU), ("mmlu_dev", MMLU),
    ):  # fmt: skip
        write(folder / f"{name}.jsonl", records)
    return folder


def log_likelihood(model: Any, tokenizer: Any, context: str, target: str) -> float:
    head, ids = len(tokenizer(context)["input_ids"]), tokenizer(context + target)["input_ids"]
    with torch.no_grad():
        steps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(steps[at - 1, ids[at]] for at in range(head, len(ids))))


def test_sciq_is_what_its_definition_says(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    tasks = read_arguments(["--tasks", "sciq"], data)
    rows = general_ability(*loaded, base(), tmp_path / "x.jsonl", tasks, ABOUT)
    assert [case for case in rows if rows[case].get("of") == "sciq"] == ["sciq/0", "sciq/1", "sciq/2"]
    for number, record in enumerate(SCIQ):
        context = f"{record['support']}\nQuestion: {record['question']}\nAnswer:"
        choices = [record["distractor1"], record["distractor2"], record["distractor3"], record["correct_answer"]]
        scores = [log_likelihood(*loaded, context, f" {choice}") for choice in choices]
        assert rows[f"sciq/{number}"]["acc"] == float(scores.index(max(scores)) == 3)
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        assert rows[f"sciq/{number}"]["acc_norm"] == float(by_length.index(max(by_length)) == 3)
    mean = sum(rows[f"sciq/{n}"]["acc"] for n in range(3)) / 3
    assert rows["sciq"]["acc"] == pytest.approx(mean) and rows["sciq"]["documents"] == 3
    assert rows["sciq"]["harness"]["sciq"]["acc,none"] == pytest.approx(mean)


@pytest.mark.parametrize("before", ["", "<s> "])
def test_a_tokenizer_that_ends_every_text(before: str, data: Path, tmp_path: Path) -> None:
    """The harness goes on behind its prompts, and not behind an end."""
    model, words = tiny("llama", "metaspace")
    found = []
    for number, template in enumerate((f"{before}$A", f"{before}$A </s>")):
        words = copy.deepcopy(words)
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tasks = read_arguments(["--tasks", "sciq"], data)
        rows = general_ability(model, words, base(), tmp_path / f"{number}.jsonl", tasks, ABOUT)
        given = harness._to_continue(words)
        found.append(([rows[f"sciq/{n}"] for n in range(3)], given("Rome is")["input_ids"], given.encode("Rome")))
        assert (words("Rome")["input_ids"][-1] == words.eos_token_id) == ("</s>" in template), "itself left as it was"
    assert found[0] == found[1]


def test_all_local_forms_and_presets(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    names = ["arc_challenge", "arc_easy", "wsc273", "winogrande", "mmlu"]
    tasks = read_arguments(["--tasks", ",".join(names), "--batch_size", "2"], data)
    rows = general_ability(*loaded, base(), tmp_path / "x.jsonl", tasks, ABOUT)
    assert {name: rows[name]["documents"] for name in names} == {
        "arc_challenge": 1, "arc_easy": 1, "wsc273": 1, "winogrande": 1, "mmlu": 3,
    }  # fmt: skip
    assert all(math.isfinite(rows[name]["acc"]) for name in names)
    assert {case for case in rows if rows[case].get("of") == "mmlu"} == {
        "mmlu_astronomy/0", "mmlu_virology/0", "mmlu_virology/1"
    }  # fmt: skip
    assert PAPER == ("sciq", "mmlu", "commonsense_qa", "arc_challenge", "wsc273", "lambada_openai")
    assert read_arguments(["--tasks", "paper,sciq"], data).names == PAPER
    assert set(PRESETS["general"]) == set(LOCAL_TASKS)


def test_goes_on_with_the_tasks_that_are_left(
    loaded: Loaded, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.jsonl"
    tasks = read_arguments(["--tasks", "arc_easy,winogrande"], data)
    real, done = harness._evaluate, []

    def dying(wrapped: Any, name: str, *rest: Any) -> Iterator[Any]:
        done.append(name)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(wrapped, name, *rest)

    monkeypatch.setattr(harness, "_evaluate", dying)
    with pytest.raises(KeyboardInterrupt):
        general_ability(*loaded, base(), out, tasks, ABOUT)
    assert "arc_easy" in read_run(out).rows and "winogrande" not in read_run(out).rows
    rows = general_ability(*loaded, base(), out, tasks, ABOUT)
    assert done == ["arc_easy", "winogrande", "winogrande"] and rows["winogrande"]["documents"] == 1


def test_the_method_is_in_place(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    head = model.get_output_embeddings()

    @contextmanager
    def upside_down(_: object = None) -> Iterator[None]:
        hook = head.register_forward_hook(lambda *a: -a[-1])
        yield
        hook.remove()

    tasks = read_arguments(["--tasks", "sciq"], data)
    plain = general_ability(model, tokenizer, base(), tmp_path / "a.jsonl", tasks, ABOUT)
    turned = general_ability(model, tokenizer, Method("ft", {}, upside_down), tmp_path / "b.jsonl", tasks, ABOUT)
    again = general_ability(model, tokenizer, base(), tmp_path / "c.jsonl", tasks, ABOUT)
    assert plain["sciq"]["harness"] == again["sciq"]["harness"]
    for number, record in enumerate(SCIQ):  # the worst choice is now the best
        context = f"{record['support']}\nQuestion: {record['question']}\nAnswer:"
        choices = [record["distractor1"], record["distractor2"], record["distractor3"], record["correct_answer"]]
        with upside_down():
            scores = [log_likelihood(model, tokenizer, context, f" {choice}") for choice in choices]
        assert turned[f"sciq/{number}"]["acc"] == float(scores.index(max(scores)) == 3)


def test_output_path_is_the_harness_own(loaded: Loaded, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    tasks = read_arguments(["--tasks", "arc_easy", "--output_path", str(folder), "--log_samples"], data)
    general_ability(*loaded, base(), tmp_path / "x.jsonl", tasks, ABOUT)
    (results,) = folder.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["arc_easy"]["acc,none"] in (0.0, 1.0)
    assert list(folder.rglob("samples_arc_easy_*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name --tasks"),
        (["--tasks", "sciq", "--nonsense", "1"], "unrecognized arguments"),
        (["--tasks", "sciq", "--model", "gpt2"], "--model has no meaning here"),
        (["--tasks", "sciq", "--wandb_args", "a=b"], "--wandb_args has no meaning"),
        (["--tasks", "sciq", "--log_samples"], "output_path"),
        (["--tasks", "sciq", "--limit", "many"], "invalid float"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        read_arguments(arguments)


def test_unusable_tasks_are_refused(
    loaded: Loaded, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    # listing all of the harness' tasks takes seconds
    monkeypatch.setattr(harness, "_manager", lambda tasks, names: TaskManager(include_defaults=False))

    def attempt(*names: str) -> None:
        general_ability(*loaded, base(), tmp_path / "x.jsonl", read_arguments(["--tasks", *names], data), ABOUT)

    with pytest.raises(EvaluationError, match="unknown task 'no_such_task'"):
        attempt("sciq", "no_such_task")
    with pytest.raises(EvaluationError, match="holds no logiqa_test"):
        attempt("logiqa")
    write(data / "wsc273.jsonl", [WSC[0], {"text": "no mask"}])
    with pytest.raises(EvaluationError, match="wsc273.jsonl, line 2"):
        attempt("wsc273")
    assert not (tmp_path / "x.jsonl").exists()


def test_resampling_forks_no_process(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool forked beside torch's threads can hang for ever; a perplexity's error is resampled all the same."""

    def no_pool(*_: object) -> None:
        raise AssertionError("a pool of processes")

    monkeypatch.setattr(multiprocessing, "Pool", no_pool)
    write(tmp_path / "lambada_openai_test.jsonl", [{"text": "Rome is in Italy"}, {"text": "Paris is in France"}])
    tasks = read_arguments(["--tasks", "lambada_openai"], tmp_path)
    rows = general_ability(*loaded, base(), tmp_path / "x.jsonl", tasks, ABOUT)
    assert rows["lambada_openai"]["harness"]["lambada_openai"]["perplexity_stderr,none"] > 0
    assert "DISABLE_MULTIPROC" not in os.environ


def test_real_files(loaded: Loaded, test_data: Path, tmp_path: Path) -> None:
    names = ("sciq", "arc_challenge", "arc_easy", "winogrande", "wsc273", "logiqa", "commonsense_qa", "lambada_openai")
    tasks = read_arguments(["--tasks", ",".join(names), "--limit", "3"], test_data)
    rows = general_ability(*loaded, base(), tmp_path / "x.jsonl", tasks, ABOUT)
    assert [rows[name]["documents"] for name in names] == [3] * len(names)
    assert "perplexity" not in rows["lambada_openai"] and "acc" in rows["lambada_openai"]
