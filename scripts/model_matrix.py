"""Print the matrix model x check as Markdown (docs/models.md shows it). Two to three minutes; arguments: kinds.

Each row is a tiny random model of that architecture's real class in the installed transformers, put through the
checks of tests/helpers/matrix.py. Exits with 1 where a check fails.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
import transformers  # noqa: E402

from helpers.matrix import CHECKS, EXPECTED, Subject  # noqa: E402
from helpers.tiny import KINDS, REFUSED_KINDS, SEEING_KINDS, tiny  # noqa: E402
from neuraldb_faiss.errors import NeuralDBError  # noqa: E402
from neuraldb_faiss.solver.editor import Editor  # noqa: E402

FAILED = "FAILS"


def row(kind: str) -> list[str]:
    """Cells of one supported kind: name, FFN, an answer a check, the way residuals are solved."""
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(kind, Path(folder) / "db")
        name = subject.site.module_name.replace(f".{subject.site.layer}.", ".{}.")
        cells = [f"`{kind}`", f"`{name}`"]
        for check, run in CHECKS.items():
            expected = EXPECTED.get((kind, check))
            try:
                run(subject)
                cells.append("yes" if expected is None else FAILED)
            except NeuralDBError as error:
                cells.append("no[^attention]" if expected is not None and expected in str(error) else FAILED)
            except Exception as error:  # a check that fails is a cell of the table, and the exit code
                print(f"{kind}, {check}: {type(error).__name__}: {error}", file=sys.stderr)
                cells.append(FAILED)
        subject.db.close()
        return [*cells, subject.way()]


def told(kind: str) -> str:
    """What a refused kind's user reads."""
    model, tokenizer = tiny(kind)
    try:
        Editor.new(model, tokenizer, layer=1)
    except NeuralDBError as error:
        return str(error)
    return FAILED


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"


def main(wanted: Sequence[str]) -> int:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    failed = False
    head = ("model type", "FFN's down-projection", *CHECKS, "solved by")
    sections = (("Text", KINDS), ("Text and images (the text part)", SEEING_KINDS))
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for title, kinds in sections:
        print(f"\n### {title}\n")
        for line in table(head, (row(kind) for kind in kinds if not wanted or kind in wanted)):
            failed |= FAILED in line
            print(line, flush=True)
    print("\n### Refused\n")
    for line in table(
        ("model type", "what it says"),
        ((f"`{kind}`", told(kind)) for kind in REFUSED_KINDS if not wanted or kind in wanted),
    ):
        failed |= FAILED in line
        print(line, flush=True)
    print("\n[^attention]: The layer has a state-space mixer in attention's place: use `--residual memit`.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
