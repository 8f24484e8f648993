"""What every experiment works with: settings, the model, facts and cases, databases, runs, and a folder for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import EvaluationError, did_you_mean
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.baselines.settings import METHODS as EDITORS
from neuraldb_faiss.research.datasets.cases import Case, read_cases
from neuraldb_faiss.research.evaluation.evaluate import Settings, Source, evaluate, run_identity
from neuraldb_faiss.research.evaluation.methods import Method, base, facts_identity, is_built, make_method
from neuraldb_faiss.runs import Row, Run, base_path, read_run
from neuraldb_faiss.store import atomic, files

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.models import FFNSite
    from neuraldb_faiss.research.evaluation.methods import Stage

# Settings of every experiment. "", 0 and [] stand for "the default" or "all".
COMMON: dict[str, Any] = {
    "model": "",  # folder or hub name
    "dataset": "counterfact",
    "cases": "",  # the file of cases, whose facts are edited
    "references": "",
    "facts": 200,  # how many of them
    "evaluate": 0,  # evaluate only the first so many; all facts are in place
    "metrics": [],
    "generations": 4,
    "seed": 0,
    "statistics": "statistics",  # folder of key statistics, for weight editors
    "build": {},  # how databases are built: layer, gamma, guard, keys, steps, lr, ...
    "method_settings": {},  # settings of each method, by its name
    "tasks": [],  # lm-evaluation-harness: names, or the presets paper and general
    "data": "",  # folder with local files for them
    "task_limit": 0,  # documents a task
}


@dataclass(frozen=True)
class Result:
    """rows: every figure, JSON values. table: Markdown. plots: SVG by name."""

    rows: Sequence[Row]
    table: str
    plots: Mapping[str, str]


def merged(about: Mapping[str, Any], *given: Mapping[str, Any]) -> dict[str, Any]:
    """COMMON and an experiment's defaults, with what is given, the last first.

    Raises:
        EvaluationError: a setting that the experiment does not have, or of another type.
    """
    config = {**COMMON, **about}
    for one in given:
        for name, value in one.items():
            if name not in config:
                hint = did_you_mean(name, config)
                raise EvaluationError(f"unknown setting {name!r}: this experiment has {', '.join(config)}.{hint}")
            if type(value) is not type(config[name]):
                raise EvaluationError(f"setting {name!r} is {value!r}: it must be of the kind of {config[name]!r}")
            config[name] = value
    for name in ("model", "cases"):
        if not config[name] and not (name == "cases" and config.get("asks")):
            raise EvaluationError(f"the experiment needs {name!r}: give --{name}, or set it in the --config file")
    return config


class Lab:
    """One experiment's workplace: everything it makes lies in `out` and is not made twice."""

    def __init__(self, config: Mapping[str, Any], out: Path, model: Any, tokenizer: Any, stage: Stage) -> None:
        self.config, self.out = config, out
        self.model, self.tokenizer, self.stage = model, tokenizer, stage
        names = tuple(config["metrics"]) or None
        self.settings = Settings(config["dataset"], names, config["generations"], seed=config["seed"])
        wanted = max(config.get("counts") or [config["facts"]])
        if config["cases"] and len(self._every) < wanted:
            raise EvaluationError(f"{config['cases']} holds {len(self._every)} cases, not the {wanted} asked for")

    @cached_property
    def _every(self) -> list[Case]:
        return read_cases(self.config["cases"], self.config["dataset"], references=self.config["references"] or None)

    @cached_property
    def corpus(self) -> list[str]:
        return [text for case in self._every for text in case.references]

    def facts(self, count: int | None = None) -> list[Fact]:
        """The first `count` facts of the file."""
        return [case.fact for case in self._every[: count or self.config["facts"]]]

    def cases(self, count: int | None = None) -> list[Case]:
        """Of these facts, the cases that are evaluated."""
        cases = self._every[: count or self.config["facts"]]
        return cases[: self.config["evaluate"]] if self.config["evaluate"] else cases

    # ---- databases

    def open_database(self) -> NeuralDB:
        """The one that the setting "database" names; without it, `database()`."""
        from neuraldb_faiss.database import NeuralDB

        return NeuralDB.open(self.config["database"]) if self.config["database"] else self.database()

    def site(self, db: NeuralDB) -> FFNSite:
        """Where the model is edited by `db`. Raises FingerprintError for another model's database."""
        from neuraldb_faiss.models.identity import check_model

        return check_model(db.config, self.model)

    def database(
        self, count: int | None = None, *, facts: Sequence[Fact] = (), name: str | None = None, **build: Any
    ) -> NeuralDB:
        """A database of the first `count` facts (or of `facts`), open at the generation that holds just these.

        Databases that differ only in `count` are one folder, which grows: residuals are solved once. `build` is
        what is built otherwise than the setting "build" says; the folder is named after it, or `name`.
        """
        from neuraldb_faiss.create import build as make
        from neuraldb_faiss.database import NeuralDB

        facts, how = facts or self.facts(count), {**self.config["build"], **build}
        told = "-".join(f"{option}={value}" for option, value in sorted(build.items()))
        path = self.out / "dbs" / _file(name or told or "db")
        if not is_built(path):
            files.ensure_folder(path.parent)
            with self.stage(f"building {path.name}", "fact") as report:
                make(facts, self.model, self.tokenizer, path, report=report, **how).close()
        with NeuralDB.open(path, "rw") as db:
            if len(db) < len(facts):
                with self.stage(f"adding to {path.name}", "fact") as report:
                    db.add(facts[len(db) :], self.model, self.tokenizer, report=report)
            generation = next((g.generation for g in db.history() if g.facts == len(facts)), None)
        if generation is None:
            raise EvaluationError(
                f"{path} never held just {len(facts)} facts: delete it, or ask for numbers of facts in rising order"
            )
        db = NeuralDB.open(path, generation=generation)
        if {(fact.identity, fact.target) for fact in db.facts()} != {(fact.identity, fact.target) for fact in facts}:
            raise EvaluationError(f"{path} holds other facts than {self.config['cases']} begins with: delete it")
        return db

    # ---- runs

    def method(self, name: str, db: NeuralDB, **settings: Any) -> Method:
        """A method over the facts of `db`, with the settings of the experiment and `settings`."""
        given = {**self.config["method_settings"].get(name, {}), **settings}
        if name in EDITORS and name != "ft":
            given = {"statistics": self.config["statistics"], "cache": self.out / "residuals", **given}
        return make_method(name, db, self.model, self.tokenizer, given, self.facts(len(db)))

    def evaluate(self, label: str, method: Method, facts: Sequence[Fact], count: int | None = None) -> Run:
        """The run `runs/LABEL.jsonl` of a method on the first `count` cases; gone on with where it is there."""
        path = self.out / "runs" / f"{_file(label)}.jsonl"
        rows = evaluate(
            self.model, self.tokenizer, self.cases(count), method, path, self.settings, self._source(facts),
            label=label, stage=self.stage,
        )  # fmt: skip
        run = read_run(path)
        return Run(path, run.header, {row["case"]: row for row in rows})

    def base(self, count: int | None = None) -> Run:
        """The base model's run on the first `count` cases."""
        source = self._source(())
        path = base_path(self.out / "runs" / "x", run_identity(base(), self.settings, source))
        rows = evaluate(
            self.model, self.tokenizer, self.cases(count), base(), path, self.settings, source, stage=self.stage
        )
        return Run(path, read_run(path).header, {row["case"]: row for row in rows})

    def general(self, label: str, method: Method, facts: Sequence[Fact]) -> Run | None:
        """General ability with the method in place, where the experiment names tasks."""
        if not self.config["tasks"]:
            return None
        from neuraldb_faiss.research.evaluation.harness import general_ability, read_arguments

        arguments = ["--tasks", ",".join(self.config["tasks"])]
        if self.config["task_limit"]:
            arguments += ["--limit", str(self.config["task_limit"])]
        tasks = read_arguments(arguments, Path(self.config["data"]) if self.config["data"] else None)
        path = self.out / "runs" / f"{_file(label)}-tasks.jsonl"
        about = {"model": self._printed, **facts_identity(facts)}
        general_ability(self.model, self.tokenizer, method, path, tasks, about, label=label, stage=self.stage)
        return read_run(path)

    def _source(self, facts: Sequence[Fact]) -> Source:
        return Source(self.config["cases"], self._printed, facts, self.corpus, self.config["references"] or None)

    @cached_property
    def _printed(self) -> str:
        from neuraldb_faiss.models import edit_defaults, find_site
        from neuraldb_faiss.models.fingerprint import fingerprint

        build = self.config["build"]
        module = build.get("ffn_module")
        layer = build.get("layer", edit_defaults(self.model, module)[0].layer)
        return fingerprint(self.model, find_site(self.model, layer, module)).describe()

    # ---- results

    def write(self, result: Result) -> list[Path]:
        """rows.jsonl, table.md and the plots, each put in place when it is whole; their paths."""
        texts = {"rows.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in result.rows)}
        texts["table.md"] = result.table
        texts |= {f"{name}.svg": plot for name, plot in result.plots.items()}
        files.ensure_folder(self.out)
        paths = []
        for name, text in texts.items():
            path = self.out / name
            atomic.write_file(path, text.encode())
            paths.append(path)
        return paths


def _file(label: str) -> str:
    return "".join(char if char.isalnum() or char in "-.=" else "-" for char in label)
