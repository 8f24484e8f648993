"""Objectives of residuals: name, one line of help, and where each is defined.

Options of the command line, help texts and errors read this table, which imports no torch. Another package adds an
objective by an entry point in the group `neuraldb_faiss.objectives`, whose object is an `ObjectiveKind`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuraldb_faiss.errors import ConfigError, CorruptError
from neuraldb_faiss.registry import Registry, load
from neuraldb_faiss.strict_json import shown

if TYPE_CHECKING:
    from neuraldb_faiss.solver.objectives.base import Objective

DEFAULT = "memit"


@dataclass(frozen=True, slots=True)
class ObjectiveKind:
    """One objective.

    Attributes:
        name: as in `--residual NAME`, and in a database's settings.
        help: in one line.
        target: "module:class" of a `base.Objective`, made without arguments.
        piece: facts that are solved and staged together; a killed build loses one such piece at most.
        guard: the one that its residuals are for unless the user says otherwise; another one must fire at the same
            place (`GuardKind.place`).
        guessed: whether "sampled" begins at first guesses (`solver.first_guess`) where enough entries are solved.
        optimizer: how it is minimised unless the user says otherwise (`ResidualConfig`). With "adam" the settings are
            those that the objective itself has by default; "sampled" has its own.
    """

    name: str
    help: str
    target: str
    piece: int = 16
    optimizer: str = "adam"
    guard: str = "subject"
    guessed: bool = False

    def load(self) -> Objective:
        """Import it."""
        objective: Objective = load(self.target)()
        return objective


REGISTRY = Registry(
    "residual",
    "neuraldb_faiss.objectives",
    (
        ObjectiveKind(
            "memit", "equation 21: MEMIT's", "neuraldb_faiss.solver.objectives.memit:Memit", 48, "sampled", guessed=True
        ),
        ObjectiveKind(
            "pmet",
            "PMET's, with a second vector at the attention that is not kept",
            "neuraldb_faiss.solver.objectives.pmet:Pmet",
        ),
        ObjectiveKind(
            "answer",
            "for where the answer to a prompt begins, in a chat too",
            "neuraldb_faiss.solver.objectives.answer:Answer",
            48,
            "sampled",
            "answer",
        ),
        ObjectiveKind(
            "none", "zeros: keys only, to measure gates and lookups", "neuraldb_faiss.solver.objectives.none:Zeros", 512
        ),
    ),
    ConfigError,
)


def names() -> tuple[str, ...]:
    """Every objective that there is."""
    return tuple(REGISTRY.kinds)


def check_stored(name: str) -> None:
    """Raises CorruptError where the stored name of an objective is none of this program or of an installed package."""
    if name not in REGISTRY.kinds:
        raise CorruptError(f"the stored setting residual is {shown(name)}, which is not installed here")
