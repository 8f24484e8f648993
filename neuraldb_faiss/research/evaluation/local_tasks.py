"""The harness' own tasks over data files in a folder, for machines that reach no hub.

The task's definition (prompt, choices, metrics) is the one that lm-evaluation-harness ships; only where its records
come from is replaced.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import EvaluationError

Record = dict[str, Any]


def _same(record: Record) -> Record:
    return record


def _choices(record: Record) -> Record:
    """ARC's and CommonsenseQA's original form -> the hub's."""
    question = record["question"]
    labels, texts = [c["label"] for c in question["choices"]], [c["text"] for c in question["choices"]]
    return {
        "question": question["stem"], "choices": {"label": labels, "text": texts}, "answerKey": record["answerKey"]
    }  # fmt: skip


def _wsc(record: Record) -> Record:
    return {
        "text": record["text"],
        "pronoun": record["pronoun"],
        "pronoun_loc": record["text"].index(record["pronoun"]),
        "options": list(record["candidates"]),
        "label": record["candidates"].index(record["answer"]),
    }


def _logiqa(record: Record) -> Record:
    return {**{name: record[name] for name in ("context", "question")}, "options": record["choices"],
            "label": record["answer"]}  # fmt: skip


def _mmlu(record: Record) -> Record:
    return {
        "question": record["question"], "subject": record["subject"],
        "choices": [record[letter] for letter in "ABCD"], "answer": "ABCD".index(record["answer"]),
    }  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """definition: the task's file among the harness' own. files: the splits we have, by split. convert: a record of
    ours to one as the definition wants it."""

    definition: str
    files: Mapping[str, str]
    convert: Callable[[Record], Record] = _same


_TASKS = {
    "sciq": _Task("sciq/sciq.yaml", {"test": "sciq_test"}),
    "mmlu": _Task("mmlu/default/mmlu_{}.yaml", {"test": "mmlu_test", "dev": "mmlu_dev"}, _mmlu),
    "commonsense_qa": _Task("commonsense_qa/default.yaml", {"validation": "commonsenseqa_dev"}, _choices),
    "arc_challenge": _Task(
        "arc/arc_challenge.yaml", {"test": "arc_challenge_test", "validation": "arc_challenge_dev"}, _choices
    ),
    "arc_easy": _Task("arc/arc_easy.yaml", {"test": "arc_easy_test"}, _choices),
    "wsc273": _Task("wsc273/default.yaml", {"test": "wsc273"}, _wsc),
    "lambada_openai": _Task("lambada/lambada_openai.yaml", {"test": "lambada_openai_test"}),
    "logiqa": _Task("logiqa/logiqa.yaml", {"test": "logiqa_test", "validation": "logiqa_eval"}, _logiqa),
    "winogrande": _Task("winogrande/default.yaml", {"validation": "winogrande_val"}),
}
LOCAL_TASKS = tuple(_TASKS)
_SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test", "fewshot_split": "dev"}


def local_configs(name: str, folder: Path) -> list[dict[str, Any]]:
    """What to give the harness for its task `name` (of LOCAL_TASKS) over the files in `folder`: one config, or one a
    subject of MMLU.

    Raises:
        EvaluationError: a file is missing, or its records are not of the kind the task needs.
    """
    task = _TASKS[name]
    splits = {split: _records(folder, stem, task.convert) for split, stem in task.files.items()}
    if name != "mmlu":
        return [_local(_definition(task.definition), splits)]
    subjects = sorted({record["subject"] for record in splits["test"]})
    return [
        _local(
            _definition(task.definition.format(subject)),
            {split: [r for r in records if r["subject"] == subject] for split, records in splits.items()},
        )
        for subject in subjects
    ]


def _definition(file: str) -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(Path(lm_eval.tasks.__file__).parent / file))
    except OSError as error:
        raise EvaluationError(f"this version of lm-eval has no task file {file}: {error.strerror}") from None


def _local(config: Mapping[str, Any], splits: Mapping[str, list[Record]]) -> dict[str, Any]:
    """A task's definition with records of our own; splits that we do not have are taken out."""
    known = {key: split if split in splits else None for key, split in _SPLITS.items() if key in config}
    dropped = ("dataset_path", "dataset_name", "tag", "include")
    rest = {key: value for key, value in config.items() if key not in dropped}
    return {**rest, **known, "custom_dataset": partial(_dataset, splits)}


def _dataset(splits: Mapping[str, list[Record]], **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(records) for split, records in splits.items()})


def _records(folder: Path, stem: str, convert: Callable[[Record], Record]) -> list[Record]:
    path = next((p for end in (".jsonl.gz", ".jsonl") if (p := folder / (stem + end)).is_file()), None)
    if path is None:
        raise EvaluationError(f"{folder} holds no {stem}.jsonl or {stem}.jsonl.gz, which this task needs")
    found = []
    for number, line in enumerate(_lines(path), 1):
        try:
            found.append(convert(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{path}, line {number}: not the record this task needs ({type(error).__name__}: {error})"
            ) from None
    return found


def _lines(path: Path) -> Iterator[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines: Iterable[str] = file
            yield from (line for line in lines if line.strip())
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
