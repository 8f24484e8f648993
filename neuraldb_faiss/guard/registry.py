"""Guard kinds: name, one line of help, default gamma, and where the gate is made.

Options of the command line, settings, help texts and errors read this table. Another package adds a kind by an entry
point in the group `neuraldb_faiss.guards`, whose object is a `GuardKind`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuraldb_faiss.errors import ConfigError
from neuraldb_faiss.registry import Registry, load

if TYPE_CHECKING:
    from neuraldb_faiss.guard.gate import Gate

DEFAULT = "subject"


@dataclass(frozen=True, slots=True)
class GuardKind:
    """What must hold in the text before the gate is asked.

    Attributes:
        name: as in `--guard NAME`, and in a database's settings.
        help: in one line.
        gamma: the default gate, a cosine: the paper's where the cosine alone decides; lower where the text must name
            the subject, for then it need only tell the subject from a namesake (measured in docs/gate.md); 0 where no
            cosine is asked for.
        target: "module:attribute", called as `attribute(source, gamma, tokenizer, plain)` with a snapshot, the gate,
            the model's tokenizer (None unless `reads_text`) and what makes a matcher for the plain gate. It returns a
            `gate.Gate`.
        reads_text: whether it finds names in the text.
        place: where entries fire, and what their residuals are solved for: at the "subject" that a text names, or where
            the "answer" to a prompt begins. One does not stand in for the other.
        looks_ahead: whether it also reads the token behind a name, which not every server has at hand.
    """

    name: str
    help: str
    gamma: float
    target: str
    reads_text: bool = True
    looks_ahead: bool = False
    place: str = "subject"

    def load(self) -> Callable[..., Gate]:
        """What makes the gate."""
        maker: Callable[..., Gate] = load(self.target)
        return maker


REGISTRY = Registry(
    "guard",
    "neuraldb_faiss.guards",
    (
        GuardKind(
            "subject",
            "a fact fires only where the text ends with its subject, or an alias of it",
            0.45,
            "neuraldb_faiss.guard.subject:make",
        ),
        GuardKind(
            "whole-words",
            "as subject, and in a prompt no word goes on behind the subject",
            0.45,
            "neuraldb_faiss.guard.whole_words:make",
            looks_ahead=True,
        ),
        GuardKind(
            "none",
            "the cosine alone decides, as in the paper",
            0.65,
            "neuraldb_faiss.guard.none:make",
            reads_text=False,
        ),
        GuardKind(
            "answer",
            "a fact fires once, where the answer to a prompt that asks for it begins (with --residual answer)",
            0.0,
            "neuraldb_faiss.grounding.answer_gate:make",
            place="answer",
        ),
    ),
    ConfigError,
)
