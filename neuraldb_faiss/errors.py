"""Every error a user can cause. The command line prints the message as one line and exits with 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: " Did you mean NAME?", or nothing where no known name is near."""
    near = difflib.get_close_matches(given, list(known), n=2)
    return f" Did you mean {' or '.join(near)}?" if near else ""


class NeuralDBError(Exception):
    """Base of all errors that name their cause and their cure."""


class FactError(NeuralDBError):
    """A fact, or a file of facts, breaks a rule."""


class ConflictError(FactError):
    """Two targets for one subject and prompt, where only one can be meant."""


class ModelError(NeuralDBError):
    """A model cannot be loaded, has no FFN where one was looked for, or ran past the database attached to it."""


class FingerprintError(ModelError):
    """A database meets another model, layer or revision than it was built with."""


class BuildError(NeuralDBError):
    """Keys or residuals could not be computed."""


class StoreError(NeuralDBError):
    """A database folder is missing, cannot be written, or cannot be used as asked."""


class FormatError(StoreError):
    """The folder is no database, or was written by a newer format."""


class CorruptError(StoreError):
    """Stored bytes are not the bytes that were written."""


class CompactedError(StoreError):
    """A generation is asked for that a compaction or a repair has ended."""


class LockedError(StoreError):
    """Another process is writing."""


class SearchError(NeuralDBError):
    """The index cannot be made or searched (FAISS missing, unknown kind, bad settings)."""


class ConfigError(BuildError, SearchError):
    """A setting that was given has a value it cannot have."""


class EvaluationError(NeuralDBError):
    """An evaluation is asked for something it does not know, or meets a run or a data file that does not fit."""


class ServeError(NeuralDBError):
    """A server cannot be started as asked."""
