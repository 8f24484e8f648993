"""One record of a known format becomes one Fact. Fields without a place in Fact stay in its metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.fact import Fact
from neuraldb_faiss.facts.locality import locality_probes
from neuraldb_faiss.facts.metadata import clip
from neuraldb_faiss.facts.relations import Relations, own_relations

Record = Mapping[str, Any]


def convert(record: object, format: str, source: str, relations: Relations | None = None) -> Fact:
    """The fact that a record holds; `source` where it names none. Raises FactError naming the rule.

    relations: the words of a record with a relation and no prompt; the package's own (None).
    """
    known = _known(record)
    if format == "jsonl" and "prompt" not in known and "relation" in known:
        found = _triple(known, relations or own_relations())
    else:
        found = _CONVERTERS[format](known)
    return Fact.from_dict({"source": source, **found})


def detect(record: object) -> str:
    """The format of a record, told by a field that only this format has. Raises FactError if none has."""
    known = _known(record)
    if "target" in known or known.keys() >= {"relation", "object"}:
        return "jsonl"
    for mark, format in _MARKS:
        if mark in known:
            return format
    raise FactError(f"no known format has the fields {sorted(known)}; choose one of {', '.join(FORMATS)}")


def _known(record: object) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise FactError(f"the record is of type {type(record).__name__}; it must be a JSON object")
    # null is the same as absent: `datasets` fills absent fields with null
    return {name: value for name, value in record.items() if value is not None}


def _jsonl(record: Record) -> Record:
    return record


def _counterfact(record: Record) -> Record:
    return _nested(record) if "requested_rewrite" in record else _flat(record)


def _nested(record: Record) -> Record:
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, Mapping):
        raise FactError(f"requested_rewrite is of type {type(rewrite).__name__}; it must be one object")
    fact: dict[str, Any] = {
        "subject": _need(rewrite, "subject"),
        "prompt": _need(rewrite, "prompt"),
        "target": _label(_need(rewrite, "target_new")),
        "target_true": _known_truth(_label(rewrite.get("target_true"))),
        "relation": rewrite.get("relation_id"),
    }
    return {**fact, "metadata": {**_rest(record, {"requested_rewrite"}), **_wikidata_ids(rewrite)}}


def _flat(record: Record) -> Record:
    """EasyEdit's and KnowEdit's form (ground_truth), and MEMIT's list of requests (target_true)."""
    true = _known_truth(_label(record.get("target_true")))
    truth = [*([] if true is None else [true]), *filter(_known_truth, _strings(record, "ground_truth"))]
    used = {"prompt", "subject", "target_new", "target_true", "ground_truth", "relation_id", *_FLAT_PROBES}
    metadata = {**_rest(record, used), **_wikidata_ids(record)}
    _probes(metadata, "target_true_aliases", [other for other in dict.fromkeys(truth) if other != truth[0]])
    for name, key in _FLAT_PROBES.items():
        _probes(metadata, key, _strings(record, name))
    _add_locality(metadata, record.get("locality"))
    return {
        "subject": _need(record, "subject"),
        "prompt": _need(record, "prompt"),
        "target": _label(_need(record, "target_new")),
        "target_true": truth[0] if truth else None,
        "relation": record.get("relation_id"),
        "metadata": metadata,
    }


def _wikidata_ids(record: Record) -> dict[str, Any]:
    """The Q-ids of targets given as {"str": text, "id": Q-id}, as metadata."""
    found = {}
    for name, key in (("target_new", "target_id"), ("target_true", "target_true_id")):
        value = record.get(name)
        if isinstance(value, Mapping) and value.get("id"):
            found[key] = value["id"]
    return found


def _zsre(record: Record) -> Record:
    answers = list(filter(_known_truth, _strings(record, "answers")))
    alt = record.get("alt")
    # a null or blank alt says that the source found no counterfactual: the answer itself is the target
    edited = alt is not None and not (isinstance(alt, str) and not alt.strip())
    if not edited and not answers:
        raise FactError("neither alt nor answers gives a target; one of them must")
    metadata = _rest(record, {"src", "subject", "answers", "alt", "relation", *_ZSRE_PROBES})
    _probes(metadata, "target_true_aliases" if edited else "target_aliases", answers[1:])
    for name, key in _ZSRE_PROBES.items():
        _probes(metadata, key, _strings(record, name))
    return {
        "subject": _need(record, "subject"),
        "prompt": _need(record, "src"),
        "target": alt if edited else answers[0],
        "target_true": answers[0] if edited and answers else None,
        "relation": record.get("relation"),
        "metadata": metadata,
    }


def _questions(record: Record) -> Record:
    answers = _strings(record, "answers")
    if not answers:
        raise FactError("answers gives no target; it must hold at least one")
    metadata = _rest(record, {"subject", "question", "answers", "relation"})
    _probes(metadata, "target_aliases", answers[1:])
    return {
        "subject": _need(record, "subject"),
        "prompt": _need(record, "question"),
        "target": answers[0],
        "relation": record.get("relation"),
        "metadata": metadata,
    }


def _triple(record: Record, relations: Relations) -> Record:
    """A subject, relation and object of a knowledge base, put into the relation's words."""
    named, target = _need(record, "relation"), record.get("target", record.get("object"))
    if target is None:
        raise FactError("field 'object' is missing")
    relation = relations.find(named) if isinstance(named, str) else None
    if relation is None or not relation.prompt:
        raise FactError(
            f"the relation {clip(str(named))} has no wording: give the fact a prompt, or the relation one in a file of"
            " templates"
        )
    words: dict[str, Any] = {"statement": relation.statement} if relation.statement else {}
    if own_relations().find(relation.id) != relation:  # the package's own are at hand wherever the fact is
        words |= {name: list(texts) for name in ("questions", "paraphrases") if (texts := getattr(relation, name))}
    rest = _rest(record, {"subject", "relation", "object", "target"})
    return {"subject": _need(record, "subject"), "prompt": relation.prompt, "target": target, "relation": relation.id,
            **words, **rest}  # fmt: skip


_CONVERTERS: dict[str, Callable[[Record], Record]] = {
    "jsonl": _jsonl,
    "counterfact": _counterfact,
    "zsre": _zsre,
    "questions": _questions,
}
FORMATS = ("auto", *_CONVERTERS)
_MARKS = (
    ("requested_rewrite", "counterfact"),
    ("target_new", "counterfact"),
    ("src", "zsre"),
    ("question", "questions"),
    ("prompt", "jsonl"),
)
# the names of the source -> the one name every format has here; the values become lists
_FLAT_PROBES = {
    "rephrase_prompt": "paraphrase_prompts",
    "locality_prompt": "neighborhood_prompts",
    "locality_ground_truth": "neighborhood_truth",
}
_NO_TRUTH = "<|endoftext|>"
_ZSRE_PROBES = {
    "rephrase": "paraphrase_prompts",
    "loc": "neighborhood_prompts",
    "loc_ans": "neighborhood_truth",
}


def _add_locality(metadata: dict[str, Any], locality: Any) -> None:
    """EasyEdit's and KnowEdit's probes as neighbourhood prompts, behind those that are there. ``locality`` itself
    stays: evaluation tells its kinds apart."""
    prompts, answers = (metadata.get(name, []) for name in ("neighborhood_prompts", "neighborhood_truth"))
    probes = [pair for pair in locality_probes(locality) if pair[0] not in prompts]
    if probes and len(prompts) != len(answers):
        raise FactError("fields 'locality_prompt' and 'locality' stand together; give the first its ground truth too")
    _probes(metadata, "neighborhood_prompts", [*prompts, *(prompt for prompt, _ in probes)])
    _probes(metadata, "neighborhood_truth", [*answers, *(answer for _, answer in probes)])


def _known_truth(value: Any) -> Any:
    """The value, or None where it says that there is none: EasyEdit writes <|endoftext|> for an absent answer."""
    return None if value in ("", _NO_TRUTH) else value


def _need(record: Record, name: str) -> Any:
    if record.get(name) is None:
        raise FactError(f"field {name!r} is missing")
    return record[name]


def _rest(record: Record, used: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in used}


def _label(value: Any) -> Any:
    """The text of a Wikidata item given as {"str": text, "id": Q-id} or as the text alone."""
    return value.get("str") if isinstance(value, Mapping) else value


def _strings(record: Record, name: str) -> list[str]:
    """A field that holds one string, a list of them, or nothing."""
    value = record.get(name)
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise FactError(f"field {name!r} must be a string or a list of strings")
    return values


def _probes(metadata: dict[str, Any], key: str, values: list[str]) -> None:
    if values:
        metadata[key] = values
