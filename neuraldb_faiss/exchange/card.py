"""The card of a database: README.md, as Hugging Face's hub shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

from neuraldb_faiss.store import Store

LIBRARY = "neuraldb-faiss"
_SHOWN = 50  # sources


def card(store: Store, *, name: str, license: str | None = None) -> str:
    """The text of the card: YAML for the hub, then base model, layer, facts, gate and sources for people.

    Args:
        name: how the card calls the database: the folder or the repository.
        license: as the hub abbreviates them ("mit"); left out by default.
    """
    generation = store.catalog.generations()[-1]
    config = store.config(generation.generation)
    base = _hub_name(config.model_name)
    data = ModelCardData(
        base_model=base, library_name=LIBRARY, license=license,
        tags=[LIBRARY, "knowledge-editing", "model-editing", "faiss"],
    )  # fmt: skip
    described = config.model.describe()
    figures = {
        "base model": f"[{base}](https://huggingface.co/{base})" if base else _code(described),
        "fingerprint": _code(described),
        "layer": config.layer,
        "facts": f"{generation.facts:,}",
        "entries": f"{generation.entries:,}",
        "gate γ": config.gamma,
        "residual": _code(config.residual),
        "generation": f"{generation.generation} ({generation.time})",
    }
    if not base:
        del figures["fingerprint"]
    return "\n".join([
        "---", data.to_yaml().strip(), "---", "", f"# {_code(name)}", "",
        f"An editable database of facts for a frozen language model, made with `{LIBRARY}`. Attached to its base",
        "model, it changes what the model says about these facts, and no weight.", "",
        "| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in figures.items()), "",
        "```python", "from neuraldb_faiss import NeuralDB", "",
        f"db = NeuralDB.from_pretrained({name.replace(chr(10), ' ')!r})",
        "with db.attach(model):", "    model.generate(...)", "```", "",
        *_sources(store.catalog.count_sources(generation.generation)),
    ]) + "\n"  # fmt: skip


def _sources(counted: dict[str, int]) -> list[str]:
    if not counted:
        return ["The facts name no sources."]
    lines = ["| source | facts |", "|---|---|"]
    lines += [f"| {_code(source)} | {number:,} |" for source, number in list(counted.items())[:_SHOWN]]
    if len(counted) > _SHOWN:
        lines.append(f"| and {len(counted) - _SHOWN:,} more | |")
    return lines


def _code(text: Any) -> str:
    """Anyone's text as a code span that neither Markdown nor a table takes apart."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))[:200]
    return f"`{shown.replace('`', chr(39)).replace('|', '/')}`"


def _hub_name(name: Any) -> str | None:
    """The model's name on the hub; None for a folder of somebody's machine."""
    if not isinstance(name, str) or Path(name).is_absolute():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name
