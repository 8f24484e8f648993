"""Prompts that an edit must leave alone, as EasyEdit and KnowEdit write them: the field ``locality``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from neuraldb_faiss.errors import FactError

_SHOWN = 80


def locality_probes(locality: Any) -> list[tuple[str, str]]:
    """Every (prompt, true answer) of the field, each once; of several right answers the first.

    Known shapes: ``{kind: [{"prompt": text, "ground_truth": answer}, ...]}`` (KnowEdit; the kinds are
    Relation_Specificity, Forgetfulness and the like), ``{kind: {"prompt": text or list, "ground_truth": the same}}``
    (EasyEdit), and either without kinds. An answer is a text, or a list (of lists) of texts.

    Raises FactError for anything else, and for a probe without a prompt or an answer.
    """
    groups = list(locality.values()) if isinstance(locality, Mapping) and "prompt" not in locality else [locality]
    return list(dict.fromkeys(pair for group in groups for pair in _pairs(group)))


def _pairs(group: Any) -> Iterator[tuple[str, str]]:
    for probe in group if isinstance(group, list) else [] if group is None else [group]:
        if not isinstance(probe, Mapping):
            raise FactError(f"field 'locality' holds no probe but {str(probe)[:_SHOWN]!r}; see docs/cookbook.md")
        prompts, answers = probe.get("prompt"), probe.get("ground_truth")
        if not isinstance(prompts, list):
            prompts, answers = [prompts], [answers]
        if not isinstance(answers, list) or len(answers) != len(prompts):
            raise FactError(f"field 'locality' needs one 'ground_truth' a 'prompt': {str(probe)[:_SHOWN]!r}")
        for prompt, answer in zip(prompts, map(_first, answers), strict=True):
            if not all(isinstance(text, str) and text.strip() for text in (prompt, answer)):
                raise FactError(f"field 'locality': a probe lacks 'prompt' or 'ground_truth': {str(probe)[:_SHOWN]!r}")
            yield prompt, answer


def _first(answer: Any) -> Any:
    while isinstance(answer, list) and answer:
        answer = answer[0]
    return answer
