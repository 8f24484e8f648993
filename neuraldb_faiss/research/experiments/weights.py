"""Figures 3 and 4: ω = K1ᵀ S k, the weights that a linear editor gives to every fact's residual.

An edited W_out adds R1 ω to the output of key k (eqs. 6-10): a lookup in which all facts answer at once. NeuralDB's ω
has one 1, or none. Drawn for the edited prompts, their paraphrases, and neighbour prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.models import find_site
from neuraldb_faiss.models.sites import FFNSite
from neuraldb_faiss.research.baselines import layer_kernel, reading
from neuraldb_faiss.research.baselines.reading import Place
from neuraldb_faiss.research.datasets.cases import Case
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {"methods": ["memit", "alphaedit"], "layer": -1}  # -1: NeuralDB's own


def run(lab: Lab) -> Result:
    with lab.database() as db:
        layer = lab.config["layer"] if lab.config["layer"] >= 0 else db.layer
        site = find_site(lab.model, layer)
        places = _places(lab.cases())
        keys = {kind: inputs_at(lab.model, lab.tokenizer, site, [place for place, _ in own])
                for kind, own in places.items()}  # fmt: skip
        owners = {kind: np.array([number for _, number in own], np.int64) for kind, own in places.items()}
        omegas: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        for name in lab.config["methods"]:
            given = dict(lab.config["method_settings"].get(name, {}))
            given.pop("layers", None)
            kernel = layer_kernel(name, lab.model, lab.tokenizer, lab.facts(), layer=layer,
                                  statistics=lab.config["statistics"], **given)  # fmt: skip
            omegas[name] = {kind: kernel.omega(own).cpu().numpy() for kind, own in keys.items()}
    rows = [
        {"method": name, "layer": layer, "facts": len(lab.facts()), "prompts": kind, **_figures(omega, owners[kind])}
        for name, own in omegas.items()
        for kind, omega in own.items()
    ]
    drawn = {name: _plot(own, owners) for name, own in omegas.items()}
    return Result(rows, _table(rows), drawn)


def _places(cases: Sequence[Case]) -> dict[str, list[tuple[Place, int]]]:
    """Texts, where their key is read, and the number of the case: at the subject's end, or at the text's for
    neighbours, whose subject the records do not name."""
    edited, again, others = [], [], []
    for number, case in enumerate(cases):
        fact = case.fact
        edited.append(((fact.text, fact.subject_span), number))
        for prompt in case.paraphrases:
            start = prompt.find(fact.subject)
            if start >= 0:
                again.append(((prompt, (start, start + len(fact.subject))), number))
        for prompt, _ in case.neighbours:
            text = prompt.rstrip()
            others.append(((text, (len(text) - 1, len(text))), number))
    return {"edited": edited, "paraphrase": again, "neighbour": others}


def inputs_at(model: Any, tokenizer: Any, site: FFNSite, places: Sequence[Place]) -> Tensor:
    """Key (the down-projection's input) at the token that holds each span's last character: float32 [n, d1]."""
    return reading.inputs_at(model, tokenizer, site.module, places) if places else torch.empty(0, site.d1)


def _figures(omega: np.ndarray[Any, Any], owner: np.ndarray[Any, Any]) -> dict[str, float | int]:
    """own: weight of the prompt's own fact. other: of all others together, in absolute value, and of the largest."""
    if not len(omega):
        return {"n": 0}
    own = omega[np.arange(len(omega)), owner]
    rest = np.abs(omega)
    rest[np.arange(len(omega)), owner] = 0
    return {
        "n": len(omega), "own_mean": float(own.mean()), "own_sd": float(own.std()),
        "others_sum": float(rest.sum(axis=1).mean()), "others_largest": float(rest.max(axis=1).mean()),
    }  # fmt: skip


def _plot(omegas: dict[str, np.ndarray[Any, Any]], owners: dict[str, np.ndarray[Any, Any]]) -> str:
    series: dict[str, Sequence[float]] = {}
    for kind, omega in omegas.items():
        if len(omega):
            own = np.zeros(omega.shape, bool)
            own[np.arange(len(omega)), owners[kind]] = True
            series[f"{kind}: its own fact"] = omega[own].tolist()
            series[f"{kind}: all others"] = omega[~own].tolist()
    return plots.histogram({name: values for name, values in series.items() if values}, x="ω")


def _table(rows: Sequence[Row]) -> str:
    lines = ["| method | prompts | n | own fact | others, sum of abs | others, largest |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for row in rows:
        if row["n"]:
            own = f"{row['own_mean']:.3f} ± {row['own_sd']:.3f}"
            lines.append(
                f"| {row['method']} | {row['prompts']} | {row['n']} | {own} | {row['others_sum']:.3f} |"
                f" {row['others_largest']:.3f} |"
            )
    return "\n".join(lines) + "\n"
