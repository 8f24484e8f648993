"""One fact: what is edited, said as text. No model, no files."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.joining import SEPARATORS, separator
from neuraldb_faiss.facts.metadata import HALF_PAIR, MetadataCopy, broken_metadata, clip, kind_of
from neuraldb_faiss.facts.statement import fill, sentence, whole
from neuraldb_faiss.strict_json import is_text

MARK = "{}"
_FIELDS = ("id", "subject", "prompt", "target", "target_true", "relation", "source", "metadata")


@dataclass(frozen=True, slots=True)
class Fact:
    """(subject, prompt) -> target: the edit "this prompt about this subject is answered with target".

    subject      the thing the fact is about, as it is written in texts
    prompt       a template with one ``{}`` where the subject stands, or a text that holds the subject once
    target       the new object, without a leading space (the model side adds one)
    id           defaults to ``identity``
    target_true  the object it replaces, where known
    relation     name of the relation (Wikidata's P103, say); source: where the fact was read
    metadata     JSON values; known keys: paraphrase_prompts, neighborhood_prompts, neighborhood_truth,
                 attribute_prompts, generation_prompts, case_id, aliases (other names of the subject, a list),
                 separator (what stands between text and target: "" or " "; see ``separator``), statement (the fact
                 as a sentence), questions, paraphrases (other prompts of it); in these three ``{}`` is the subject,
                 and in the statement ``{target}`` the target

    White space around subject, prompt and target is dropped. A verbatim subject is looked for at word
    boundaries first ("Java" in "Java and JavaScript" is found once), and anywhere only if there is none.

    Raises FactError, naming the rule: a field that is no string; an empty subject, prompt or target; a
    subject that is not in the prompt, or is there more than once; a subject that holds ``{}``; metadata that
    JSON cannot hold, or of more than some four million characters; half of a surrogate pair in any text; aliases,
    questions or paraphrases that are no list of texts; a statement that is no text; another separator.
    """

    subject: str
    prompt: str
    target: str
    id: str = ""
    target_true: str | None = None
    relation: str | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    _start: int = field(init=False, repr=False, compare=False, default=0)
    _identity: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        for name in ("subject", "prompt", "target"):
            object.__setattr__(self, name, _text(name, getattr(self, name)).strip())
            if not getattr(self, name):
                raise FactError(f"the {name} is empty; write at least one character besides white space")
        for name in ("target_true", "relation", "source"):
            value = getattr(self, name)
            object.__setattr__(self, name, _text(name, value) if value is not None and value != "" else None)
        if not isinstance(self.metadata, Mapping):
            raise FactError(f"metadata is {kind_of(self.metadata)}; it must map names to JSON values")
        object.__setattr__(self, "metadata", MetadataCopy().of(self.metadata, "metadata"))
        self._check_known()
        object.__setattr__(self, "_start", _locate(self.subject, self.prompt))
        object.__setattr__(self, "_identity", _identify(self.subject, self.template))
        object.__setattr__(self, "id", _text("id", self.id) or self._identity)

    @property
    def identity(self) -> str:
        """20 hex digits of SHA-256 over subject and template, both in Unicode NFC with white space folded.

        Equal for ``{}`` and the subject written out; a new target for the same identity is an update.
        """
        return self._identity

    @property
    def template(self) -> str:
        """The prompt with exactly one ``{}`` in place of the subject."""
        if MARK in self.prompt:
            return self.prompt
        return self.prompt[: self._start] + MARK + self.prompt[self._start + len(self.subject) :]

    @property
    def text(self) -> str:
        """The prompt with the subject filled in. Other braces stay as they are (no str.format)."""
        if MARK not in self.prompt:
            return self.prompt
        return self.prompt[: self._start] + self.subject + self.prompt[self._start + len(MARK) :]

    @property
    def subject_span(self) -> tuple[int, int]:
        """(start, end) of the subject in ``text``, in characters, end exclusive."""
        return self._start, self._start + len(self.subject)

    @property
    def separator(self) -> str:
        """What stands between ``text`` and ``target``: as the metadata say, else one space, or nothing where the
        script has none there (see ``neuraldb_faiss.facts.joining``)."""
        said = self.metadata.get("separator")
        return said if said in SEPARATORS else separator(self.text, self.target)

    @property
    def statement(self) -> str:
        """The fact as one sentence on one line: the metadata's ``statement``, else ``text`` and ``target`` with a full
        stop. A prompt that asks is answered: "Who leads Acme? Ann Lee."; one that is a subject and a clause gets its
        verb: "Acme, located in" states "Acme is located in Rome."

        Examples:
            >>> Fact("Acme", "The head of {} is", "Ann Lee").statement
            'The head of Acme is Ann Lee.'
        """
        own = self.metadata.get("statement")
        if isinstance(own, str) and own.strip():
            return " ".join(fill(own, self.subject, self.target).split())
        return sentence(whole(self.text, self.subject), self.separator, self.target)

    @property
    def questions(self) -> tuple[str, ...]:
        """Questions that the target answers, from the metadata, the subject filled in."""
        return self._texts("questions")

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """Other texts that the target continues: the metadata's ``paraphrases``, else their ``paraphrase_prompts``,
        the subject filled in."""
        return self._texts("paraphrases") or self._texts("paraphrase_prompts")

    def _texts(self, name: str) -> tuple[str, ...]:
        listed = self.metadata.get(name)
        texts = listed if isinstance(listed, list) else []
        return tuple(fill(text, self.subject) for text in texts if isinstance(text, str) and text.strip())

    def _check_known(self) -> None:
        """Raises FactError for metadata that would be read, and cannot be."""
        for broken in broken_metadata(self.metadata).values():
            raise FactError(broken)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what is None or empty is left out. ``from_dict`` gives an equal fact back."""
        values = ((name, getattr(self, name)) for name in _FIELDS)
        return {name: dict(v) if name == "metadata" else v for name, v in values if v}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """A fact from its JSON form. Fields that Fact does not have are kept in the metadata.

        Raises FactError where a required field is missing or a rule of Fact is broken.
        """
        for name in ("subject", "prompt", "target"):
            if record.get(name) is None:
                raise FactError(f"field {name!r} is missing; a fact needs subject, prompt and target")
        given = {name: record[name] for name in _FIELDS if record.get(name) is not None}
        extra = {name: v for name, v in record.items() if name not in _FIELDS and v is not None}
        metadata = given.get("metadata", {})
        if extra and isinstance(metadata, Mapping):
            twice = sorted(extra.keys() & metadata.keys())
            if twice:
                raise FactError(f"field {twice[0]!r} is given twice: beside the metadata and in it; drop one")
            given["metadata"] = {**metadata, **extra}
        return cls(**given)


def fold_space(text: str) -> str:
    """Unicode NFC, every run of white space one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _identify(subject: str, template: str) -> str:
    # str.split() takes \x1f for white space, so folded text never holds the separator
    joined = f"{fold_space(subject)}\x1f{fold_space(template)}"
    return hashlib.sha256(joined.encode()).hexdigest()[:20]


def _locate(subject: str, prompt: str) -> int:
    """Where the subject, or the ``{}`` for it, starts in the prompt; FactError if that is not one place."""
    if MARK in subject:
        raise FactError(f"subject {clip(subject)} holds {MARK}, which marks the subject's place in a prompt")
    parts = prompt.split(MARK)
    if len(parts) > 2:
        raise FactError(f"the prompt holds {MARK} {len(parts) - 1} times: {clip(prompt)}; keep one")
    if len(parts) == 2:
        # judged in the text as the model gets it, so that a template is as good as the text it was cut from
        text, start = subject.join(parts), len(parts[0])
        if any(at != start and _is_word(text, at, subject) for at in _find(text, subject)):
            raise FactError(
                f"the prompt holds both {MARK} and subject {clip(subject)}: {clip(prompt)}; keep one of them"
            )
        return start
    places = list(_find(prompt, subject))
    if not places:
        raise FactError(f"subject {clip(subject)} is not in the prompt {clip(prompt)}; write {MARK} where it stands")
    places = [at for at in places if _is_word(prompt, at, subject)] or places
    if len(places) > 1:
        raise FactError(
            f"subject {clip(subject)} is in the prompt {len(places)} times: {clip(prompt)}; "
            f"write {MARK} for one of them and other words for the rest"
        )
    return places[0]


def _find(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _is_word(text: str, at: int, part: str) -> bool:
    end = at + len(part)
    return not (at > 0 and _in_word(text[at - 1])) and not (end < len(text) and _in_word(text[end]))


def _in_word(char: str) -> bool:
    # a combining mark belongs to the letter before it: "Cafe" is no word of "Cafe\u0301"
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise FactError(f"the {name} is {kind_of(value)}; it must be a string")
    if not is_text(value):
        raise FactError(f"the {name} {value[:80]!a} {HALF_PAIR}")
    return value
