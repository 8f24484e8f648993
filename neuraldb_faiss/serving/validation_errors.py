"""What is wrong with a body, for who sent it: where pydantic refuses a value, this says so in the API's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuraldb_faiss.serving.errors import ApiError

# pydantic's kinds of errors -> what is said behind the field's name; {...} from the error's context.
_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is no field that this server knows: leave it out",
    "string_type": "must be a text",
    "string_unicode": "holds half of a surrogate pair",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} item(s)",
    "too_long": "must have at most {max_length} items",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "literal_error": "must be one of {expected}",
}


def invalid(error: Mapping[str, Any], content_type: str) -> ApiError:
    """The answer to a body, or a query, in which pydantic found this error."""
    kind, where = error["type"], error["loc"][1:]
    if kind == "json_invalid":
        return ApiError(400, f"the body is no JSON: {error['ctx']['error']}")
    if not where and "json" not in content_type:
        return ApiError(400, "send JSON, with the header Content-Type: application/json")
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in where]
    param = "".join(parts).lstrip(".") or None
    words = _WORDS.get(kind, "has a value that is not taken here").format_map(error.get("ctx") or {})
    return ApiError(400, f"{param or 'the body'} {words}", param=param, code="invalid_value")


def wrong(param: str, words: str) -> ApiError:
    """The answer to a field that holds what it must not."""
    return ApiError(400, f"{param} {words}", param=param, code="invalid_value")
