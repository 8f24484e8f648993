"""General ability: EleutherAI's lm-evaluation-harness on the model as it is now, attached or edited."""

from __future__ import annotations

import argparse
import copy
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tokenizers.processors import TemplateProcessing

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.extras import extra
from neuraldb_faiss.models.tokenization import appended_tokens, encode_prompt
from neuraldb_faiss.research.evaluation.local_tasks import LOCAL_TASKS, local_configs
from neuraldb_faiss.research.evaluation.methods import Method, applied, silent
from neuraldb_faiss.runs import Row, RunWriter, surroundings

if TYPE_CHECKING:
    from neuraldb_faiss.research.evaluation.methods import Stage

# Names for several tasks. The paper's six; "general" adds three.
PAPER = ("sciq", "mmlu", "commonsense_qa", "arc_challenge", "wsc273", "lambada_openai")
PRESETS = {"paper": PAPER, "general": (*PAPER, "logiqa", "arc_easy", "winogrande")}
_RESAMPLES = 1000  # for the harness' own errors of what is no mean; its default takes minutes
_NO_POOL = "DISABLE_MULTIPROC"  # the harness' own variable
BATCH = 16  # the harness' own default of 1 wastes any machine

# The harness' arguments that have no meaning here, and what to say instead.
_OURS = {
    "model": "the model is the database's (or --model before the --)",
    "model_args": "the model is the database's (or --model before the --)",
    "device": "give --device before the --",
    "config": "give its settings as arguments",
    "wandb_args": "results are in --out", "wandb_config_args": "results are in --out",
    "trackio_args": "results are in --out", "hf_hub_log_args": "results are in --out",
}  # fmt: skip


@dataclass(frozen=True)
class Tasks:
    """The harness' arguments, read. names: as they were asked for, presets opened. config: the harness' own."""

    names: tuple[str, ...]
    config: Any
    data: Path | None

    def identity(self) -> dict[str, Any]:
        """What decides the figures."""
        kept = ("num_fewshot", "limit", "samples", "system_instruction", "apply_chat_template",
                "fewshot_as_multiturn", "gen_kwargs", "seed")  # fmt: skip
        told = {name: getattr(self.config, name) for name in kept}
        return {"tasks": list(self.names), "local_data": self.data is not None, **told}


def read_arguments(arguments: Sequence[str], data: Path | None = None) -> Tasks:
    """lm-evaluation-harness' own arguments, by its own parser.

    Args:
        data: a folder with data files; tasks of LOCAL_TASKS then take their records from it, not from a hub.

    Raises:
        EvaluationError: the harness is not installed; an argument it does not know, or that has no meaning here;
            no task, or an unknown one.
    """
    with extra("lm-eval"):
        from lm_eval._cli.run import Run
        from lm_eval.config.evaluate_config import EvaluatorConfig
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    parser = _Parser()
    commands = parser.add_subparsers(dest="command")
    Run.create(commands)
    given = parser.parse_args(["run", *arguments])
    for name, instead in _OURS.items():
        if getattr(given, name, None) is not None:
            raise EvaluationError(f"lm-eval: --{name} has no meaning here: {instead}")
    if not given.tasks:
        raise EvaluationError(f"lm-eval: name --tasks, as in --tasks sciq,arc_easy, or {' or '.join(PRESETS)}")
    try:
        config = EvaluatorConfig.from_cli(given)
    except (ValueError, TypeError, OSError) as error:
        raise EvaluationError(f"lm-eval: {error}") from None
    asked = [name for task in given.tasks for name in task.split(",") if name]
    names = dict.fromkeys(name for one in asked for name in PRESETS.get(one, (one,)))
    return Tasks(tuple(names), config, data)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage; its subcommands are of this class too."""

    def error(self, message: str) -> NoReturn:
        raise EvaluationError(f"lm-eval: {message} (`lm-eval run --help` lists its arguments)")


def general_ability(
    model: Any, tokenizer: Any, method: Method, out: str | Path, tasks: Tasks, about: Mapping[str, Any], *,
    label: str | None = None, stage: Stage | None = None,
) -> dict[str, Row]:  # fmt: skip
    """Run the tasks one by one with the method in place; the run's rows by case.

    The run at `out` gets a row for each document ("task/7") and a row for each task with the harness' own figures.
    Tasks that are whole there are not run again.

    Args:
        about: JSON values for the header: model, facts.
        label: what tables call the run, where the method's name does not tell enough.

    Raises:
        EvaluationError: an unknown task, local data that is missing, data that cannot be loaded, or `out` is another
            run's.
    """
    told = surroundings(model) | ({"label": label} if label is not None else {})
    with RunWriter(out, run_identity(method, tasks, about), told) as run:
        todo = [name for name in tasks.names if name not in run.rows]
        if todo:
            with extra("lm-eval"):
                from lm_eval.models.huggingface import HFLM
            manager = _manager(tasks, todo)
            specs = {name: _spec(name, tasks, manager) for name in todo}
            size = tasks.config.batch_size if tasks.config.batch_size != 1 else BATCH
            wrapped = HFLM(
                pretrained=model, tokenizer=_to_continue(tokenizer), batch_size=size,
                max_batch_size=tasks.config.max_batch_size or 64,
            )  # fmt: skip
            with applied(method, stage or silent):
                for name, spec in specs.items():
                    run.add(_evaluate(wrapped, name, spec, tasks.config, manager))
        return dict(run.rows)


def _to_continue(tokenizer: Any) -> Any:
    """The tokenizer, or a copy that puts no special token behind a text: the harness goes on behind its prompts."""
    if not getattr(tokenizer, "is_fast", False) or not appended_tokens(tokenizer):
        return tokenizer
    text = "a"
    before = encode_prompt(tokenizer, text)[: -len(encode_prompt(tokenizer, text, special=False))]
    names = tokenizer.convert_ids_to_tokens(before)
    copied = copy.deepcopy(tokenizer)
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A"], special_tokens=list(dict(zip(names, before, strict=True)).items())
    )
    return copied


def run_identity(method: Method, tasks: Tasks, about: Mapping[str, Any]) -> dict[str, Any]:
    """What decides whether a run's file may be gone on with; `about` counts only where the model is edited."""
    told = {"kind": "lm-eval", "method": method.name, "model": about["model"], **tasks.identity()}
    return told if method.name == "base" else {**told, **about, "method_settings": dict(method.identity)}


def _manager(tasks: Tasks, names: Sequence[str]) -> Any:
    """Knows the harness' tasks. Listing them all takes seconds, so that it is left out where none is wanted."""
    from lm_eval.tasks import TaskManager

    local = tasks.data is not None and set(names) <= set(LOCAL_TASKS)
    return TaskManager(
        include_path=tasks.config.include_path, include_defaults=not local, metadata=tasks.config.metadata or {}
    )


def _spec(name: str, tasks: Tasks, manager: Any) -> list[Any]:
    """What the harness is given for a task's name."""
    if tasks.data is not None and name in LOCAL_TASKS:
        return local_configs(name, tasks.data)
    path = Path(name)
    if name.endswith(".yaml") and path.is_file():
        from lm_eval.tasks._yaml_loader import load_yaml

        return [load_yaml(path)]
    matches: list[Any] = manager.match_tasks([name])
    if not matches:
        raise EvaluationError(
            f"unknown task {name!r}: `lm-eval ls tasks` lists them; {' and '.join(PRESETS)} stand for several"
        )
    return matches


def _evaluate(wrapped: Any, name: str, spec: list[Any], config: Any, manager: Any) -> Iterator[Row]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=config.output_path) if config.output_path else None
    seeds = config.seed or [None] * 4
    try:
        with redirect_stdout(sys.stderr), _no_forks():  # stdout is for our figures
            found = simple_evaluate(
                model=wrapped, tasks=spec, num_fewshot=config.num_fewshot, batch_size=config.batch_size,
                use_cache=config.use_cache, limit=config.limit, samples=config.samples,
                check_integrity=config.check_integrity, bootstrap_iters=_RESAMPLES, write_out=config.write_out,
                log_samples=True,
                evaluation_tracker=tracker, system_instruction=config.system_instruction,
                apply_chat_template=config.apply_chat_template, fewshot_as_multiturn=bool(config.fewshot_as_multiturn),
                gen_kwargs=config.gen_kwargs or None, task_manager=manager, predict_only=config.predict_only,
                random_seed=seeds[0], numpy_random_seed=seeds[1], torch_random_seed=seeds[2],
                fewshot_random_seed=seeds[3], confirm_run_unsafe_code=config.confirm_run_unsafe_code,
                metadata=config.metadata or None,
            )  # fmt: skip
    except (OSError, ValueError, ConnectionError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise EvaluationError(
            f"lm-eval: task {name!r} failed: {text or type(error).__name__}"
            " (where no model hub is reachable, --data FOLDER reads local files)"
        ) from error
    if found is None:  # only the first of several processes gets the figures
        return
    samples = found.pop("samples")
    if tracker is not None:
        tracker.save_results_aggregated(results=found, samples=samples)
        if config.log_samples:
            for task, own in samples.items():
                tracker.save_results_samples(task_name=task, samples=own)
    documents = [row for task, own in samples.items() for row in _documents(name, task, own)]
    yield from documents
    means = _means(documents, _averaged(found["configs"]))
    yield {"case": name, "task": name, "documents": len(documents), **means, "harness": _plain(found["results"])}


@contextmanager
def _no_forks() -> Iterator[None]:
    """Have the harness resample in this process: its pool of forked workers can hang where torch has begun threads."""
    before = os.environ.get(_NO_POOL)
    os.environ[_NO_POOL] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_POOL]
        else:
            os.environ[_NO_POOL] = before


def _documents(name: str, task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """A row a document: the metrics that are one number for it."""
    for sample in samples:
        values = {key: _number(sample[key]) for key in sample["metrics"] if _number(sample.get(key)) is not None}
        filtered = "" if sample["filter"] == "none" else f"/{sample['filter']}"
        yield {"case": f"{task}/{sample['doc_id']}{filtered}", "of": name, **values}


def _averaged(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The metrics whose figure is the mean over documents; a perplexity, say, is not."""
    listed = [one for config in configs.values() for one in config.get("metric_list") or ()]
    return list(dict.fromkeys(one["metric"] for one in listed if one.get("aggregation", "mean") == "mean"))


def _means(documents: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    known = {name: [row[name] for row in documents if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float) or type(value).__module__ == "numpy":
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number if number == number and abs(number) != float("inf") else None
    return None


def _plain(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float | str]]:
    """The harness' own table as JSON values."""
    return {
        task: {key: number if (number := _number(value)) is not None else str(value) for key, value in own.items()}
        for task, own in results.items()
    }
