"""Sentence that states a fact: for people, and for a model that reads it in its context."""

from __future__ import annotations

import re

from neuraldb_faiss.facts.joining import is_spaceless

SUBJECT, TARGET = "{}", "{target}"
_MARKS = re.compile(r"\{\}|\{target\}")
# What stands between a subject and its clause, and what makes it a sentence: "Acme, which was founded in" becomes "Acme
# was founded in".
_CLAUSES = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r", (?:who|which|that) (?=\w)", " "),
        (r", whose (?=\w)", "'s "),
        (r", (?=(?:built|created|developed|formed|formulated|founded|produced|started|written) (?:at|by|for|in|on)\b)",
         " was "),
        (r", (?=(?:based|called|located|named|owned|performing|playing|released) (?:after|at|by|for|in|on|the)\b)",
         " is "),
        (r", (?=(?:a|an|from|in)\b)", " is "),
        (r", (?=speaker of\b)", " is a "),
    )
)  # fmt: skip
_CLOSING = "\"'”’»)]}」』）"
_ENDS = ".!?…。．！？"
_QUESTION = ("?", "？", "؟")


def fill(template: str, subject: str, target: str | None = None) -> str:
    """The template with the subject for every ``{}``, and for every ``{target}`` the target where one is given."""
    values = {SUBJECT: subject, TARGET: TARGET if target is None else target}
    return _MARKS.sub(lambda mark: values[mark[0]], template)


def whole(text: str, subject: str) -> str:
    """The text with its verb, where it is a subject and what a comma joins to it ("Acme, located in"), so that it is a
    sentence once it is continued; else as it is."""
    if text.startswith(f"{subject}, "):
        for pattern, put in _CLAUSES:
            found = pattern.match(text, len(subject))
            if found:
                return subject + put + text[found.end() :]
    return text


def sentence(text: str, separator: str, target: str) -> str:
    """What a prompt says with its target behind it, as one sentence on one line.

    A question is kept as one, with the target as its answer: "Who leads Acme? Ann Lee." A full stop comes where the
    target does not end a sentence itself.
    """
    between = " " if text.rstrip().endswith(_QUESTION) and not is_spaceless(target[:1]) else separator
    return " ".join(stopped(text + between + target).split())


def stopped(text: str) -> str:
    """The text with a full stop, of its script, where it ends no sentence yet."""
    text = text.rstrip()
    if text.rstrip(_CLOSING).endswith(tuple(_ENDS)):
        return text
    letters = [char for char in text[-8:] if char.isalpha()]
    return text + ("。" if letters and is_spaceless(letters[-1]) and _is_east_asian(letters[-1]) else ".")


def _is_east_asian(char: str) -> bool:
    """Whether its script ends sentences with an ideographic full stop (Thai and its neighbours have none)."""
    return char >= "\u2e80"
