"""Print the matrix model x check as Markdown (docs/models.md shows it). Two to three minutes.

    python scripts/model_matrix.py                            every kind
    python scripts/model_matrix.py llama qwen2                these
    python scripts/model_matrix.py models/qwen2.5-0.5b ...    folders of models, with their own weights

Each row is a tiny random model of that architecture's real class in the installed transformers, or a real one, put
through the checks of tests/helpers/matrix.py. Exits with 1 where a check fails.
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
from neuraldb_faiss.models import load_model  # noqa: E402
from neuraldb_faiss.solver.editor import Editor  # noqa: E402

FAILED = "FAILS"
HEAD = ("FFN's down-projection", *CHECKS, "solved by")


def real(model: Path) -> list[str]:
    """Cells of a model with its own weights, which edits its usual layer."""
    with tempfile.TemporaryDirectory() as folder:
        return cells_of(Subject(model.name, Path(folder) / "db", load_model(model, device="cpu"), layer=None))


def row(kind: str) -> list[str]:
    """Cells of one supported kind."""
    with tempfile.TemporaryDirectory() as folder:
        return cells_of(Subject(kind, Path(folder) / "db"))


def cells_of(subject: Subject) -> list[str]:
    """Name, FFN, an answer a check, the way residuals are solved."""
    name = subject.site.module_name.replace(f".{subject.site.layer}.", ".{}.")
    cells = [f"`{subject.kind}`", f"`{name}`"]
    for check, run in CHECKS.items():
        expected = EXPECTED.get((subject.kind, check))
        try:
            run(subject)
            cells.append("yes" if expected is None else FAILED)
        except NeuralDBError as error:
            cells.append("no[^attention]" if expected is not None and expected in str(error) else FAILED)
        except Exception as error:  # a check that fails is a cell of the table, and the exit code
            print(f"{subject.kind}, {check}: {type(error).__name__}: {error}", file=sys.stderr)
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
    if folders := [Path(one) for one in wanted if Path(one).is_dir()]:
        for line in table(("model", *HEAD), map(real, folders)):
            failed |= FAILED in line
            print(line, flush=True)
        return int(failed)
    sections = (("Text", KINDS), ("Text and images (the text part)", SEEING_KINDS))
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    for title, kinds in sections:
        print(f"\n### {title}\n")
        for line in table(("model type", *HEAD), (row(kind) for kind in kinds if not wanted or kind in wanted)):
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
