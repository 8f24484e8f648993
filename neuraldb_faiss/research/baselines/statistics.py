"""C0: the uncentred second moment of keys over text that an edit should leave alone.

C0 = 1/n Σ k kᵀ over all n tokens of the text, k the input of a layer's down-projection (as in ROME and MEMIT, which
take Wikipedia). A database never needs it; the weight editors do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.edits.pipeline import Progress, Report
from neuraldb_faiss.errors import BuildError, FingerprintError
from neuraldb_faiss.facts.readers import read_texts
from neuraldb_faiss.models import FFNSite, Fingerprint, find_site
from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.fingerprint import fingerprint
from neuraldb_faiss.models.identity import model_name
from neuraldb_faiss.models.interventions import frozen, on_input, stop_at
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.research.baselines import arrays

FOLDER = "statistics"
TOKENS = 1_000_000
MAX_LENGTH = 1024
_CPU_TOKENS, _GPU_TOKENS = 4096, 16384  # places in one forward pass


@dataclass(frozen=True, slots=True)
class Moment:
    """C0 of one layer: `matrix` float64 [d1, d1], over `tokens` tokens; `sha256` of its bytes."""

    layer: int
    tokens: int
    matrix: np.ndarray
    sha256: str

    def on(self, device: torch.device) -> Tensor:
        """`matrix` as a float64 tensor on `device`, or on the CPU where that has no float64 (MPS)."""
        place = device if device.type in ("cpu", "cuda") else torch.device("cpu")
        return torch.from_numpy(np.array(self.matrix)).to(place)


class Statistics:
    """A folder of second moments, of any number of models, layers and texts."""

    def __init__(self, folder: str | Path = FOLDER) -> None:
        self.folder = Path(folder)

    def moments(self, model: Any, sites: Sequence[FFNSite]) -> dict[int, Moment]:
        """C0 of each site's layer; where there are several of one layer, that of the most tokens.

        Raises:
            BuildError: some are missing; the message holds the command that makes them.
            CorruptError: a file is damaged.
        """
        known: dict[int, list[tuple[int, str, dict[str, Any]]]] = {}
        for name, record in arrays.records(self.folder):
            known.setdefault(record["layer"], []).append((record["tokens"], name, record))
        found: dict[int, Moment] = {}
        missing = []
        for site in sites:
            mine = fingerprint(unwrap(model), site)
            fitting = [entry for entry in known.get(site.layer, ()) if _matches(entry[2], mine)]
            if not fitting:
                missing.append(site.layer)
                continue
            tokens, name, record = max(fitting, key=lambda entry: entry[:2])
            found[site.layer] = Moment(site.layer, tokens, arrays.load(self.folder, name, record), record["sha256"])
        if missing:
            raise BuildError(self._missing(model, missing))
        return found

    def _missing(self, model: Any, layers: Sequence[int]) -> str:
        listed = ",".join(map(str, layers))
        command = f"neuraldb statistics TEXT.jsonl --model {model_name(model) or 'MODEL'} --layers {listed}"
        return (
            f"{self.folder} has no key statistics of layer {listed} of this model, which the method needs: "
            f"make them with `{command} --out {self.folder}`"
        )


def as_statistics(given: Statistics | str | Path | None) -> Statistics:
    """The statistics of a folder, or of the default one."""
    return given if isinstance(given, Statistics) else Statistics(given or FOLDER)


def make_statistics(
    model: Any,
    tokenizer: Any,
    source: str,
    folder: str | Path = FOLDER,
    *,
    layers: Sequence[int],
    tokens: int = TOKENS,
    max_length: int = MAX_LENGTH,
    report: Report | None = None,
) -> dict[int, Path]:
    """Make C0 of `layers` from the text of `source` and keep it in `folder`; what is there already stays.

    Args:
        source: a file of JSON lines (plain or gzipped) with the field "text", or "datasets:NAME[:SPLIT]" for a
            Hugging Face dataset with such a column.
        tokens: texts are taken in their order up to so many tokens.
        max_length: of each text, the first so many tokens (the reference takes what the model's positions hold).
        report: counts tokens.

    Returns:
        The .npy file (float64 [d1, d1]) of each layer. Its name holds the layer, the tokens used, and a hash over
        model fingerprint, layer and token ids.

    Raises:
        BuildError: no text, or a key that is not finite. FactError: the source cannot be read. ModelError: no such
        layer.
    """
    if tokens < 1 or max_length < 1:
        raise BuildError(f"statistics need at least one token: tokens is {tokens}, max_length {max_length}")
    model, folder = unwrap(model), Path(folder)
    sites = [find_site(model, layer) for layer in sorted(set(layers))]
    if not sites:
        raise BuildError("statistics need at least one layer")
    rows = _rows(tokenizer, source, tokens, max_length)
    used = sum(len(row) for row in rows)
    corpus = hashlib.sha256(b"".join(len(row).to_bytes(8, "little") + row.tobytes() for row in rows)).hexdigest()
    prints = {site.layer: fingerprint(model, site).to_json() for site in sites}
    names = {site.layer: _name(site, prints[site.layer], corpus, used) for site in sites}
    there = {name for name, _ in arrays.records(folder)}
    wanted = [site for site in sites if names[site.layer] not in there]
    for layer, matrix in _moments(model, wanted, rows, used, report).items() if wanted else ():
        record = {
            "kind": "second moment of keys",
            "layer": layer,
            "tokens": used,
            "texts": len(rows),
            "max_length": max_length,
            "source": Path(source).name if Path(source).exists() else source,
            "corpus": corpus,
            "fingerprint": prints[layer],
        }
        arrays.save(folder, names[layer], matrix, record)
    return {layer: folder / f"{name}.npy" for layer, name in names.items()}


def _name(site: FFNSite, printed: str, corpus: str, tokens: int) -> str:
    digest = hashlib.sha256(f"{printed} {site.layer} {corpus} {tokens}".encode()).hexdigest()
    return f"layer{site.layer:02}-{tokens}tokens-{digest[:16]}"


def _matches(record: dict[str, Any], mine: Fingerprint) -> bool:
    try:
        return Fingerprint.from_json(record["fingerprint"]).matches(mine)
    except (FingerprintError, KeyError, TypeError):
        return False


def _rows(tokenizer: Any, source: str, tokens: int, max_length: int) -> list[np.ndarray]:
    """Token ids (int32) of the texts, the last one cut so that their number is `tokens`, or all there are."""
    rows: list[np.ndarray] = []
    left = tokens
    for text in read_texts(source):
        ids = tokenizer(text, truncation=True, max_length=min(max_length, left), verbose=False)["input_ids"]
        if ids:
            rows.append(np.array(ids, np.int32))
            left -= len(ids)
        if left <= 0:
            break
    if not rows:
        raise BuildError(f"{source} holds no text to take statistics from")
    return rows


def _moments(
    model: Any, sites: Sequence[FFNSite], rows: Sequence[np.ndarray], total: int, report: Report | None
) -> dict[int, np.ndarray]:
    device = input_device(model)
    sums = {site.layer: torch.zeros(site.d1, site.d1, dtype=torch.float64, device=_wide_device(site)) for site in sites}
    done = 0
    with frozen(model), torch.no_grad():
        for batch in by_length([len(row) for row in rows], _CPU_TOKENS if device.type == "cpu" else _GPU_TOKENS):
            ids, mask = pad([rows[i].tolist() for i in batch], left=False, device=device)
            _add_keys(model, sites, ids, mask, sums)
            done += int(mask.sum())
            if report is not None:
                report(Progress(done, total, 0, None))
    for layer, matrix in sums.items():
        if not matrix.isfinite().all():
            raise BuildError(f"keys of layer {layer} are not finite: load the model with --dtype float32")
    return {layer: (matrix / total).cpu().numpy() for layer, matrix in sums.items()}


def _add_keys(model: Any, sites: Sequence[FFNSite], ids: Tensor, mask: Tensor, sums: dict[int, Tensor]) -> None:
    """Add Σ k kᵀ of one batch; the pass ends at the last of the sites (they ascend)."""

    def taking(site: FFNSite) -> Any:
        def take(hidden: Tensor) -> None:
            keys = hidden.reshape(ids.numel(), -1)[mask.flatten().to(hidden.device) == 1]
            wide = keys.to(sums[site.layer].device, torch.float64)
            sums[site.layer].addmm_(wide.T, wide)

        return take

    with ExitStack() as stack:
        *others, last = sites
        for site in others:
            stack.enter_context(on_input(site.module, taking(site)))
        stack.enter_context(stop_at(last.module, taking(last)))
        model(input_ids=ids, attention_mask=mask, use_cache=False)


def _wide_device(site: FFNSite) -> torch.device:
    """Where float64 can be computed: the module's own device, unless that kind has none (MPS)."""
    device: torch.device = next(site.module.parameters()).device
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")
