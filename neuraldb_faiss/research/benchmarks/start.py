"""What a command costs before its work begins: early refusals, light commands, and a first answer."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.benchmarks import synthetic
from neuraldb_faiss.store import atomic

LENGTH = 20  # tokens of the answer, as `neuraldb generate` has them by default
# Wrong commands by what is wrong, and a part of what they are told. DB and OTHER are databases of different models,
# MODEL a folder that passes for one, FACTS a table of one fact, TEXT a file that is none of these, BAD a table whose
# prompt lacks its subject.
REFUSALS: Mapping[str, tuple[str, str]] = {
    "build: no facts file": ("build none.csv --model MODEL --out new", "none.csv does not exist"),
    "build: no table": ("build TEXT --model MODEL --out new", "line 1: neither JSON nor the header of a table"),
    "build: a bad row": ("build BAD --model MODEL --out new", "line 2: subject 'Nokia' is not in the prompt"),
    "build: no model": ("build FACTS --model /no/model --out new", "there is no model at /no/model"),
    "build: other files": ("build FACTS --model MODEL --out .", "holds other files"),
    "build: no place": ("build FACTS --model MODEL --out TEXT/new", "that is a file"),
    "build: finished": ("build FACTS --model MODEL --out DB", "is a finished database"),
    "build: half a fact": ("build --subject Nokia --model MODEL --out new", "--target is missing"),
    "build: gamma": ("build FACTS --model MODEL --out new --gamma 7", "gamma is 7.0"),
    "build: no {}": ("build FACTS --model MODEL --out new --kl-prompt x", "must hold one {}"),
    "add: no facts": ("add DB", "say which facts"),
    "add: no facts file": ("add DB none.csv", "none.csv does not exist"),
    "remove: nobody": ("remove DB --subject Nobody", "no live fact fits"),
    "remove: nobody to solve": ("remove DB --subject Nobody --model MODEL", "no live fact fits"),
    "generate: no database": ("generate nothing x", "no database at nothing"),
    "generate: no model": ("generate DB x --model /no/model", "there is no model at /no/model"),
    "generate: gamma": ("generate DB x --model MODEL --gamma 7", "gamma is 7.0"),
    "chat: no database": ("chat nothing", "no database at nothing"),
    "explain: no database": ("explain nothing x", "no database at nothing"),
    "explain: no folder": ("explain DB x --model MODEL --html no/page.html", "there is no folder no"),
    "test: no asks": ("test DB --asks none", "there is no file of asks none"),
    "eval: no database": ("eval nothing --dataset zsre --cases x --out r", "no database at nothing"),
    "eval: no cases": ("eval DB --dataset zsre --cases none --out r", "none does not exist"),
    "lm-eval: no database": ("lm-eval nothing --out r -- --tasks x", "no database at nothing"),
    "experiment: no model": ("experiment table1 --out r", "the experiment needs 'model'"),
    "experiment: no cases": ("experiment table1 --model MODEL --cases none --out r", "no file of cases none"),
    "report: no run": ("report none --out page.html", "there is no run none"),
    "statistics: no text": ("statistics none --model MODEL", "there is no text file none"),
    "tune-layer: no facts": ("tune-layer MODEL --facts none", "none does not exist"),
    "calibrate: no text": ("calibrate DB --text none --model MODEL", "there is no text file none"),
    "import: no file": ("import none.safetensors --out new", "there is no file"),
    "import: no safetensors": ("import TEXT --out new", "is no safetensors file"),
    "inspect: no database": ("inspect nothing", "no database at nothing"),
    "inspect: no model": ("inspect DB --model /no/model", "there is no model at /no/model"),
    "merge: no database": ("merge DB nothing --out new", "no database at nothing"),
    "merge: finished": ("merge DB DB --out DB", "is a finished database"),
    "merge: other models": ("merge DB OTHER --out new --model MODEL", "only databases of one model"),
    "rebuild: no database": ("rebuild nothing --model MODEL --out new", "no database at nothing"),
    "serve: no database": ("serve nothing", "no database at nothing"),
    "serve: no model": ("serve DB --model /no/model", "there is no model at /no/model"),
    "solve: no database": ("solve nothing", "no database at nothing"),
}
LIGHT: Mapping[str, str] = {"help": "--help", "facts": "facts DB", "info": "info DB"}
# What `generate` is compared with: the same model, prompt and length, by transformers alone.
_PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
logging.disable_progress_bar()
name, prompt, length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
ids = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=int(length), do_sample=False)[0]))
"""


@dataclass(frozen=True)
class _Ended:
    """How a process ended: its exit code, what it printed, and its processor time in seconds, user and system."""

    code: int
    printed: str
    seconds: float


def places(folder: Path) -> dict[str, str]:
    """Make what REFUSALS and LIGHT name in `folder`; the paths by those names."""
    for name, width in (("DB", 64), ("OTHER", 32)):
        synthetic.make(folder / name, 3, d1=width, d2=16).close()
    (folder / "MODEL").mkdir()
    head = "subject,prompt,target\n"
    atomic.write_file(folder / "MODEL" / "config.json", b"{}")
    atomic.write_file(folder / "FACTS", f"{head}Nokia,The CEO of {{}} is,Justin Hotard\n".encode())
    atomic.write_file(folder / "BAD", f"{head}Nokia,The CEO of Acme is,Justin Hotard\n".encode())
    atomic.write_file(folder / "TEXT", b"A sentence.\n")
    return {name: str(folder / name) for name in ("DB", "OTHER", "MODEL", "FACTS", "BAD", "TEXT")}


def arguments(line: str, place: Mapping[str, str]) -> list[str]:
    """The arguments of a line of REFUSALS or LIGHT, its names replaced by paths."""
    found = []
    for word in line.split():
        first, slash, rest = word.partition("/")
        found.append(f"{place[first]}{slash}{rest}" if first in place else word)
    return found


def bench_start(work: Path, *, db: Path | None, repeats: int) -> dict[str, Any]:
    """Run every command `repeats` times, each in a process of its own, behind one that is not counted.

    Args:
        work: an empty folder; the commands run in it.
        db: a database with a model, for `generate` of its first fact's prompt against transformers alone, in turns.

    Returns:
        Processor seconds of each command: median, low and high.

    Raises:
        EvaluationError: a command that must be refused was not, or another one failed.
    """
    place = places(work)
    found: dict[str, dict[str, float]] = {}
    for name, (line, told) in REFUSALS.items():
        runs = [_neuraldb(arguments(line, place), work) for _ in range(1 + repeats)]
        if any(one.code not in (1, 2) or told not in one.printed for one in runs):
            raise EvaluationError(f"`neuraldb {line}` was not refused with {told!r}: {runs[-1].printed}")
        found[name] = _spread(runs[1:])
    light = {name: _spread(_good(arguments(line, place), work, 1 + repeats)[1:]) for name, line in LIGHT.items()}
    report: dict[str, Any] = {
        "repeats": repeats, "threads": os.environ.get("OMP_NUM_THREADS", "all"), "python": platform.python_version(),
        "cpu_seconds": light, "slowest_refusal_cpu_seconds": max(one["median"] for one in found.values()),
        "refusals_cpu_seconds": found,
    }  # fmt: skip
    return report if db is None else {**report, **_answering(db, work, repeats)}


def _answering(db: Path, work: Path, repeats: int) -> dict[str, Any]:
    with NeuralDB.open(db) as database:
        name, facts = database.config.model_name, database.facts(limit=1)
    if name is None or not facts:
        raise EvaluationError(f"{db} records no model, or holds no fact: name another with --db")
    ours = ["generate", str(db.absolute()), facts[0].text, "--model", str(Path(name).absolute()) if Path(name).exists()
            else name, "--device", "cpu", "--max-new-tokens", str(LENGTH)]  # fmt: skip
    plain = [sys.executable, "-c", _PLAIN, ours[4], facts[0].text, str(LENGTH)]
    runs = [(_good(ours, work, 1)[0], _run(plain, work)) for _ in range(1 + repeats)][1:]
    ratios = sorted(one.seconds / other.seconds for one, other in runs)
    return {
        "generate_cpu_seconds": _spread([one for one, _ in runs]),
        "transformers_cpu_seconds": _spread([other for _, other in runs]),
        "generate_to_transformers_ratio": round(median(ratios), 3),
        "generate_to_transformers_ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def _good(given: Sequence[str], work: Path, times: int) -> list[_Ended]:
    runs = [_neuraldb(given, work) for _ in range(times)]
    if any(one.code for one in runs):
        raise EvaluationError(f"`neuraldb {' '.join(given)}` failed: {runs[-1].printed}")
    return runs


def _neuraldb(given: Sequence[str], work: Path) -> _Ended:
    return _run([sys.executable, "-m", "neuraldb_faiss.cli", *given], work)


def _run(command: Sequence[str], work: Path) -> _Ended:
    """Compiled modules are kept, as an installed package has them."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=work, env=kept, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8",
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return _Ended(done.returncode, done.stdout, seconds)


def _spread(runs: Sequence[_Ended]) -> dict[str, float]:
    seconds = sorted(one.seconds for one in runs)
    return {"median": round(median(seconds), 3), "low": round(seconds[0], 3), "high": round(seconds[-1], 3)}
