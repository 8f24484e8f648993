"""What a fact's subject is called in texts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from neuraldb_faiss.facts.joining import is_spaceless


def names_in_texts(subject: str, prompt: str, aliases: Any = ()) -> tuple[str, ...]:
    """The subject, its aliases, and the subject as the prompt has it where it stands inside a word ("Civics").

    Args:
        prompt: with {} for the subject, or with the subject itself.
        aliases: other names that the fact lists; anything but a list of texts counts as none.
    """
    listed = [name for name in aliases if isinstance(name, str)] if isinstance(aliases, list | tuple) else []
    # Prompts are mostly one of few templates.
    before, after = _joined(prompt, "{}") if "{}" in prompt else _joined.__wrapped__(prompt, subject)
    if not (before or after or listed):
        return (subject,)
    whole = (before if _in_word(subject[:1]) else "") + subject + (after if _in_word(subject[-1:]) else "")
    return tuple(dict.fromkeys((subject, whole, *listed)))


@lru_cache(maxsize=4096)
def _joined(prompt: str, mark: str) -> tuple[str, str]:
    """The letters and digits that stand right before and behind the mark. Those of a script without spaces are no
    part of a word there."""
    left, _, right = prompt.partition(mark)
    return _word_start(left[::-1])[::-1], _word_start(right)


def _word_start(text: str) -> str:
    """The letters and digits that `text` begins with."""
    size = next((n for n, char in enumerate(text) if not _in_word(char)), len(text))
    return text[:size]


def _in_word(char: str) -> bool:
    return char.isalnum() and not is_spaceless(char)
