"""Run what needs a GPU, in a few minutes, and write one JSON: python scripts/gpu_check.py OUT

Searching 100,000 and 1,000,000 keys of Llama-3-8B's size against torch's brute force; a random model of that shape with
and without facts, at decode and prefill; how often the host waits; facts solved a second; `pytest -m gpu`. Where memory
is short: --layers 8 --keys 100000. To try the script itself: --device cpu --small.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for gpu_check.json")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu")
    parser.add_argument("--keys", type=int, nargs="+", help="numbers of keys [default: 100000 1000000]")
    parser.add_argument("--layers", type=int, help="decoder layers of the model [default: 32]")
    parser.add_argument("--facts", type=int, help="facts to solve [default: 64]")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--no-tests", action="store_true", help="leave pytest -m gpu out")
    return parser.parse_args(given)


def missing_gpu(device: str) -> str | None:
    """Why it cannot run there, in one line."""
    if not device.startswith("cuda"):
        return None
    import torch

    from neuraldb_faiss.index.faiss_module import gpu_count

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU: run it where there is one, or try it with --device cpu --small"
    if gpu_count() == 0:
        return (
            "FAISS sees no GPU: uninstall faiss-cpu and install the extra gpu (pip install 'neuraldb-faiss[gpu]'),"
            " never both"
        )
    return None


def gpu_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace", check=False)
    return {"exit_code": done.returncode, "summary": done.stdout.strip().splitlines()[-12:]}


def main(given: Sequence[str]) -> int:
    asked = arguments(given)
    if (why := missing_gpu(asked.device)) is not None:
        print(f"gpu_check: {why}", file=sys.stderr)
        return 1
    import torch

    from neuraldb_faiss.research.benchmarks.gpu import Bench, machine

    device = torch.device(asked.device)
    sizes = asked.keys or ([500, 2000] if asked.small else [100_000, 1_000_000])
    asked.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "arguments": list(given), "small": asked.small,
        "machine": machine(device), "failed": [],
    }  # fmt: skip

    def part(name: str, work: Callable[[], Any]) -> Any:
        """One part's figures, written at once; what fails is noted, and the rest goes on."""
        print(f"gpu_check: {name}", file=sys.stderr, flush=True)
        try:
            report[name] = work()
        except Exception:
            report["failed"].append({"part": name, "error": traceback.format_exc(limit=4)})
        path = asked.out / "gpu_check.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return report.get(name)

    bench = Bench(device, small=asked.small, layers=asked.layers)
    report["layers"] = bench.model.config.num_hidden_layers
    for size in sizes:
        source = bench.source(size)
        for kind in ("flat", "ivf") if size == min(sizes) else ("flat",):
            part(f"search_{kind}_{size}", lambda source=source, kind=kind: bench.search(source, kind, asked.repeats))
            part(f"lookup_{kind}_{size}", lambda source=source, kind=kind: bench.lookup(source, kind, asked.repeats))
        part(f"lookup_subject_{size}", lambda source=source: bench.lookup(source, "subject", asked.repeats))
        del source
    part("solve", lambda: bench.solve(asked.facts or (2 if asked.small else 64)))
    if not asked.no_tests:
        part("tests", gpu_tests)
    print(asked.out / "gpu_check.json")
    tests = report.get("tests", {"exit_code": 0})
    return int(bool(report["failed"]) or tests["exit_code"] not in (0, 5))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
