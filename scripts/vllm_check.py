"""vLLM against Hugging Face, with a database and without: the same prompts, the same greedy answers.

    python scripts/vllm_check.py --model MODEL --db DB --out FOLDER

Run by scripts/vllm_check.sh in an environment that has both. Each engine runs in a process of its own. Writes
vllm_check.json and vllm_check.md; exits with 1 where an answer differs. DB loses its first fact while this runs: give a
copy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BATCH = 16
NEW_TOKENS = 12
CHUNK = 24  # tokens a step where prefill is chunked
BLOCK = 32  # tokens of a block of the prefix cache
SPEED_PROMPTS, SPEED_TOKENS, SPEED_RUNS = 32, 48, 7
FILLER = [
    "The",
    "train",
    "left",
    "the",
    "station",
    "early",
    "in",
    "the",
    "morning",
    "and",
    "crossed",
    "the",
    "river",
    "before",
    "the",
    "sun",
    "had",
    "come",
    "up.",
    "Nobody",
    "on",
    "board",
    "spoke",
    "much,",
    "for",
    "most",
    "of",
    "the",
    "passengers",
    "were",
    "still",
    "asleep,",
    "and",
    "the",
    "few",
    "who",
    "were",
    "awake",
    "looked",
    "out",
    "of",
    "the",
    "window",
    "at",
    "the",
    "fields,",
    "the",
    "villages",
    "and",
    "the",
    "long",
    "rows",
    "of",
    "trees",
    "beside",
    "the",
    "road.",
    "Later,",
    "somebody",
    "opened",
    "a",
    "book",
    "and",
    "read:",
]

# What is compared with Hugging Face. chunk: tokens a step. refresh: a fact is removed while the engine runs.
ENGINES: dict[str, dict[str, Any]] = {
    "eager": {"eager": True, "edited": True, "refresh": True},
    "eager, chunked prefill": {"eager": True, "edited": True, "chunk": CHUNK},
    "compiled": {"eager": False, "edited": True},
    "eager, no database": {"eager": True, "edited": False},
    "compiled, no database": {"eager": False, "edited": False},
}
SPEEDS = {"speed, eager": True, "speed, compiled": False}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--db", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", nargs="*", choices=["served", *ENGINES, *SPEEDS], help="parts to run [default: all]")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def prompts(db: str) -> tuple[list[str], str]:
    """16 prompts of facts, every other one behind a text whose length differs; and the first fact's id."""
    from neuraldb_faiss import NeuralDB

    facts = NeuralDB.open(db).facts(limit=BATCH)
    asked = []
    for number in range(BATCH):
        fact = facts[number % len(facts)]
        text = fact.prompt.format(fact.subject)
        if number % 2 or number >= len(facts):
            text = f"{' '.join(FILLER[: 40 + number])} {text}"
        asked.append(text)
    return asked, facts[0].id


# ---- Hugging Face


def answer_hf(model_name: str, db: str, asked: list[str]) -> dict[str, Any]:
    import torch

    from neuraldb_faiss import NeuralDB
    from neuraldb_faiss.models import load_model

    model, tokenizer = load_model(model_name, device="cpu", dtype="float32")
    tokenizer.padding_side = "left"
    batch = tokenizer(asked, return_tensors="pt", padding=True)

    def answers() -> list[str]:
        with torch.no_grad():
            out = model.generate(
                **batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        return tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    base = answers()
    with NeuralDB.open(db).attach(model, tokenizer):
        edited = answers()
    tokens = [int(n) for n in batch["attention_mask"].sum(dim=1)]
    return {"base": base, "edited": edited, "prompt_tokens": tokens}


# ---- vLLM, in a process of its own


def engine(task: dict[str, Any], **more: Any) -> Any:
    from vllm import LLM

    return LLM(
        model=task["model"], dtype="float32", max_model_len=512, max_num_seqs=BATCH, enforce_eager=task["eager"],
        enable_prefix_caching=True, block_size=BLOCK, **more,
    )  # fmt: skip


def answer_vllm(task: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    if task["edited"]:
        os.environ["NEURALDB_PATH"] = task["db"]
    start = time.perf_counter()
    llm = engine(task, **({"max_num_batched_tokens": task["chunk"]} if "chunk" in task else {}))
    found: dict[str, Any] = {"load_seconds": round(time.perf_counter() - start, 1)}
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS)

    def answers() -> tuple[list[str], int]:
        out = llm.generate(task["prompts"], greedy, use_tqdm=False)
        return [one.outputs[0].text for one in out], sum(one.num_cached_tokens or 0 for one in out)

    found["answers"], found["cached_tokens"] = answers()
    found["answers_again"], found["cached_tokens_again"] = answers()
    if task.get("refresh"):
        from neuraldb_faiss import NeuralDB
        from neuraldb_faiss.integrations.vllm.plugin import refresh

        NeuralDB.open(task["db"], "rw").remove([task["fact"]])
        found["answers_before_refresh"] = answers()[0]
        found["generation"] = refresh(llm)
        found["answers_refreshed"], found["cached_tokens_refreshed"] = answers()
    return found


def compare_speed(task: dict[str, Any]) -> dict[str, Any]:
    """Two engines on the same cores take turns, so that what else the machine does meets both."""
    edited = engine(task, additional_config={"neuraldb": {"path": task["db"]}})
    plain = engine(task)
    found: dict[str, list[float]] = {"with_database": [], "without": []}
    for turn in range(SPEED_RUNS + 1):
        for name, llm in (("with_database", edited), ("without", plain)):
            measured = speed(llm)
            if turn:  # the first warms up
                found[name].append(round(measured, 1))
    return found


def speed(llm: Any) -> float:
    """Tokens generated a second by prompts that nobody has asked yet."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    texts = [" ".join(FILLER[number % 40 : number % 40 + 16]) for number in range(SPEED_PROMPTS)]
    how = SamplingParams(temperature=0, max_tokens=SPEED_TOKENS, ignore_eos=True)
    start = time.perf_counter()
    out = llm.generate(texts, how, use_tqdm=False)
    return sum(len(one.outputs[0].token_ids) for one in out) / (time.perf_counter() - start)


def run_stage(name: str, task: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    given, result = folder / "task.json", folder / "result.json"
    given.write_text(json.dumps(task), encoding="utf-8")
    result.unlink(missing_ok=True)
    log = folder / f"{name.replace(', ', '-').replace(' ', '-')}.log"
    command = [
        sys.executable, __file__, "--model", arguments.model, "--db", arguments.db, "--out", str(arguments.out),
        "--stage", name, "--task", str(given), "--result", str(result),
    ]  # fmt: skip
    print(f"{name} ...", file=sys.stderr, flush=True)
    with log.open("w", encoding="utf-8") as stream:
        subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, env=environment())
    if not result.exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{name}: no result; the end of its log:\n{tail}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEURALDB_")}
    return {"VLLM_CPU_KVCACHE_SPACE": "2", **kept}


def answer_served(arguments: argparse.Namespace, asked: list[str], folder: Path) -> list[str]:
    """By the server of `vllm serve`, 16 requests at once; the database named by --additional-config.

    The command `vllm` itself fails with vllm-cpu 0.32: it looks for a package called vllm.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", arguments.model, "--served-model-name",
        "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512",
        "--enforce-eager",
        "--additional-config", json.dumps({"neuraldb": {"path": arguments.db}}),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    print("served ...", file=sys.stderr, flush=True)
    log = folder / "served.log"
    with log.open("w", encoding="utf-8") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment())
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"{url}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise SystemExit(f"vllm serve did not start; the end of its log:\n{end}")
            time.sleep(1)
        with ThreadPoolExecutor(BATCH) as pool:
            return list(pool.map(lambda text: _complete(url, text), asked))
    finally:
        server.terminate()
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _complete(url: str, text: str) -> str:
    body = {"model": "m", "prompt": text, "temperature": 0, "max_tokens": NEW_TOKENS}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as reply:
        return str(json.load(reply)["choices"][0]["text"])


# ---- comparing


def differing(asked: list[str], wanted: list[str], found: list[str]) -> list[dict[str, str]]:
    rows = zip(asked, wanted, found, strict=True)
    return [{"prompt": text, "hugging_face": one, "vllm": other} for text, one, other in rows if one != other]


def main() -> int:
    given = arguments()
    if given.stage:
        task = json.loads(given.task.read_text(encoding="utf-8"))
        stage = compare_speed if given.stage in SPEEDS else answer_vllm
        given.result.write_text(json.dumps(stage(task)), encoding="utf-8")
        return 0
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    logs = Path.cwd()
    asked, fact = prompts(given.db)
    facts = _facts(given.db)
    print("Hugging Face ...", file=sys.stderr, flush=True)
    hf = answer_hf(given.model, given.db, asked)
    changed = sum(one != other for one, other in zip(hf["base"], hf["edited"], strict=True))
    failures: dict[str, Any] = {}
    engines: dict[str, Any] = {}

    def compare(what: str, wanted: list[str], found: list[str]) -> None:
        failures.update({what: rows} if (rows := differing(asked, wanted, found)) else {})

    chosen = given.only or ["served", *ENGINES, *SPEEDS]
    speeds = {
        name: run_stage(name, {"eager": eager, "model": given.model, "db": given.db}, logs, given)
        for name, eager in SPEEDS.items()
        if name in chosen
    }
    if "served" in chosen:
        engines["served"] = {"answers": answer_served(given, asked, logs)}
        compare("served", hf["edited"], engines["served"]["answers"])
    # The one that removes a fact comes last.
    for name in sorted((name for name in ENGINES if name in chosen), key=lambda name: "refresh" in ENGINES[name]):
        task = {**ENGINES[name], "model": given.model, "db": given.db, "prompts": asked, "fact": fact}
        engines[name] = found = run_stage(name, task, logs, given)
        wanted = hf["edited" if task["edited"] else "base"]
        compare(name, wanted, found["answers"])
        compare(f"{name}, from the prefix cache", wanted, found["answers_again"])
        if not found["cached_tokens_again"]:
            failures[f"{name}, from the prefix cache"] = "nothing came from the prefix cache"
        if task.get("refresh"):
            compare(f"{name}, fact removed, not refreshed", wanted, found["answers_before_refresh"])
            rest = answer_hf(given.model, given.db, asked)["edited"]
            compare(f"{name}, refreshed", rest, found["answers_refreshed"])
            if rest == wanted:
                failures[f"{name}, refreshed"] = "removing the fact changed no answer"
    if changed < BATCH // 2:
        failures["database"] = f"it changes only {changed} of {BATCH} answers"
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {_cpu()}",
        "versions": _versions(),
        "model": Path(given.model).name,
        "facts": facts,
        "dtype": "float32",
        "prompts": asked,
        "new_tokens": NEW_TOKENS,
        "answers_changed_by_the_database": changed,
        "hugging_face": hf,
        "engines": engines,
        "tokens_per_second": speeds,
        "differing": failures,
    }
    (folder / "vllm_check.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "vllm_check.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    return 1 if failures else 0


def markdown(report: dict[str, Any]) -> str:
    lines = [
        f"# vLLM against Hugging Face: {report['model']}, {report['date']}",
        "",
        f"{report['hardware']}; {', '.join(f'{name} {number}' for name, number in report['versions'].items())};"
        f" {report['dtype']}, greedy, {report['new_tokens']} tokens, {len(report['prompts'])} prompts at once."
        f" The database changes {report['answers_changed_by_the_database']} of the answers.",
        "",
        "| engine | answers as Hugging Face's | again, from the prefix cache (tokens found there) |",
        "|---|---|---|",
    ]
    for name, found in report["engines"].items():
        again = "–"
        if "answers_again" in found:
            again = f"{_equal(report, f'{name}, from the prefix cache')} ({found['cached_tokens_again']})"
        lines.append(f"| {name} | {_equal(report, name)} | {again} |")
    for name, found in report["engines"].items():
        if "answers_refreshed" in found:
            told = _equal(report, f"{name}, refreshed")
            lines += ["", f"A fact removed, and the running engine refreshed ({name}): {told} as Hugging Face's."]
    if report["tokens_per_second"]:
        lines += ["", "| tokens/s, middle (least to most) | with the database | without |", "|---|---|---|"]
    for name, found in report["tokens_per_second"].items():
        shown = [f"{values[len(values) // 2]} ({values[0]} to {values[-1]})" for values in map(sorted, found.values())]
        lines.append(f"| {name.removeprefix('speed, ')} | {' | '.join(shown)} |")
    if report["tokens_per_second"]:
        lines += [
            "",
            f"{SPEED_RUNS} turns each of {SPEED_PROMPTS} prompts of 16 words with {SPEED_TOKENS} new tokens each,"
            f" {BATCH} at once; the two engines take turns on the same cores.",
        ]
    if report["differing"]:
        lines += ["", "Differing: " + ", ".join(report["differing"])]
    return "\n".join(lines) + "\n"


def _equal(report: dict[str, Any], what: str) -> str:
    rows, total = report["differing"].get(what, []), len(report["prompts"])
    return f"{total - len(rows)} of {total}" if isinstance(rows, list) else str(rows)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("vllm-cpu", "torch", "transformers", "neuraldb-faiss")}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _facts(db: str) -> int:
    from neuraldb_faiss import NeuralDB

    return len(NeuralDB.open(db))


if __name__ == "__main__":
    sys.exit(main())
