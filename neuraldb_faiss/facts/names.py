"""What a fact's subject is called in texts."""

from __future__ import annotations

from typing import Any


def names_in_texts(subject: str, prompt: str, aliases: Any = ()) -> tuple[str, ...]:
    """The subject, its aliases, and the subject as the prompt has it where it stands inside a word ("Civics").

    Args:
        prompt: with {} for the subject, or with the subject itself.
        aliases: other names that the fact lists; anything but a list of texts counts as none.
    """
    listed = [name for name in aliases if isinstance(name, str)] if isinstance(aliases, list | tuple) else []
    mark = "{}" if "{}" in prompt else subject
    left, _, right = prompt.partition(mark)
    before = _word_end(left) if subject[:1].isalnum() else ""
    after = _word_start(right) if subject[-1:].isalnum() else ""
    whole = before + subject + after
    return tuple(dict.fromkeys((subject, whole, *listed)))


def _word_start(text: str) -> str:
    """The letters and digits that `text` begins with."""
    size = next((n for n, char in enumerate(text) if not char.isalnum()), len(text))
    return text[:size]


def _word_end(text: str) -> str:
    return _word_start(text[::-1])[::-1]
