"""Table 5: one layer against several, by algorithm 1 ("new") and by MEMIT's spreading ("old").

new: layer by layer, keys and residuals are computed with the earlier layers' databases attached, and the layer gets a
database of its own. old: one residual a fact is solved at the last layer, and every layer takes a share of what is
still missing there, 1 / (layers left), with the earlier ones attached. All of a variant's databases are attached at
once when it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits.pipeline import Report
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import edit_defaults
from neuraldb_faiss.research.baselines.reading import outputs_at
from neuraldb_faiss.research.evaluation.methods import Method, is_built
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.research.experiments.table1 import report
from neuraldb_faiss.solver.editor import Edited, Editor
from neuraldb_faiss.store import files

DEFAULTS: dict[str, Any] = {"layers": [], "variants": ["single", "new", "old"]}  # none: the default and two before it


def run(lab: Lab) -> Result:
    usual = edit_defaults(lab.model)[0].layer
    layers = sorted(lab.config["layers"]) or [layer for layer in range(usual - 2, usual + 1) if layer >= 0]
    runs = []
    for variant in lab.config["variants"]:
        if variant not in _VARIANTS:
            raise EvaluationError(f"unknown variant {variant!r}: choose of {', '.join(_VARIANTS)}")
        used = layers[-1:] if variant == "single" else layers
        paths = _VARIANTS[variant](lab, used)
        label = f"{variant}: {'layer' if len(used) == 1 else 'layers'} {', '.join(map(str, used))}"
        identity = {"variant": variant, "layers": used, "build": lab.config["build"]}
        method = Method("neuraldb", identity, partial(_inside, lab, paths))
        runs.append(lab.evaluate(label, method, lab.facts()))
    return report([*runs, lab.base()])


@contextmanager
def attached(lab: Lab, paths: Sequence[Path]) -> Iterator[None]:
    """The model with all of these databases attached."""
    with ExitStack() as stack:
        for path in paths:
            db = stack.enter_context(NeuralDB.open(path))
            stack.enter_context(db.attach(lab.model, lab.tokenizer))
        yield


def _inside(lab: Lab, paths: Sequence[Path], _: Report) -> AbstractContextManager[None]:
    return attached(lab, paths)


def _single(lab: Lab, layers: Sequence[int]) -> list[Path]:
    with lab.database(layer=layers[-1]) as db:
        return [db.path]


def _new(lab: Lab, layers: Sequence[int]) -> list[Path]:
    paths: list[Path] = []
    for layer in layers:
        with attached(lab, paths):
            editor = _editor(lab, layer)
            paths.append(_build(lab, editor, "new", layers))
    return paths


def _old(lab: Lab, layers: Sequence[int]) -> list[Path]:
    with lab.database(layer=layers[-1]) as top:
        facts = top.facts()
        residuals = top.snapshot.residuals(np.array([fact.entry for fact in facts], np.int64))
        solved = {fact.identity: row for fact, row in zip(facts, residuals, strict=True)}
        block = _editor(lab, layers[-1]).site.block
    bare = _values(lab, block, facts)
    paths: list[Path] = []
    for number, layer in enumerate(layers):
        with attached(lab, paths):
            now = _values(lab, block, facts)
            missing = {key: solved[key] - (now[key] - bare[key]) for key in solved}
            shares = {key: value / (len(layers) - number) for key, value in missing.items()}
            plain = _editor(lab, layer)
            fields = {name: getattr(plain, name) for name in Editor.__dataclass_fields__}
            paths.append(_build(lab, Given(**fields, residuals=shares), "old", layers))
    return paths


_VARIANTS: dict[str, Callable[[Lab, Sequence[int]], list[Path]]] = {"single": _single, "new": _new, "old": _old}


@dataclass(frozen=True)
class Given(Editor):
    """An editor that is told its residuals, by the fact's identity; facts of one entry share their mean."""

    residuals: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        means = [np.stack([self.residuals[fact.identity] for fact in group]).mean(axis=0) for group in groups]
        return [
            Edited(np.asarray(mean, np.float32), None, (None,) * len(group))
            for mean, group in zip(means, groups, strict=True)
        ]


def _editor(lab: Lab, layer: int) -> Editor:
    return Editor.new(lab.model, lab.tokenizer, **{**lab.config["build"], "layer": layer})


def _build(lab: Lab, editor: Editor, variant: str, layers: Sequence[int]) -> Path:
    # What is in the earlier layers decides what belongs into this one, so the name tells all of them.
    named = "-".join(str(layer) for layer in layers)
    path = lab.out / "dbs" / f"{variant}-{named}-layer={editor.site.layer}"
    if not is_built(path):
        files.ensure_folder(path.parent)
        with lab.stage(f"building {path.name}", "fact") as progress:
            changes.build(lab.facts(), editor, path, report=progress).close()
    return path


def _values(lab: Lab, block: Any, facts: Sequence[Fact]) -> dict[str, np.ndarray[Any, Any]]:
    """The block's output at each subject's last token, on the model as it is."""
    places = [(fact.text, fact.subject_span) for fact in facts]
    values: torch.Tensor = outputs_at(lab.model, lab.tokenizer, block, places)
    return {fact.identity: row for fact, row in zip(facts, values.numpy(), strict=True)}
