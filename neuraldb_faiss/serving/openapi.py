"""The description of the server's interface (OpenAPI), and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.serving.schemas import ErrorBody

_ABOUT = (
    "Databases of facts before a language model, for clients of OpenAI's API. Facts are listed and changed over the"
    " same port; changes are jobs."
)
_PLAIN = {"type": "string"}
_HEADERS = {
    "X-NeuralDB": "The database, by its name; `none` for the model alone.",
    "X-NeuralDB-Delivery": "How facts reach this request.",
    "X-Request-Id": "What the log calls this request; made where it is missing, and sent back.",
}
_ANSWERED = {
    "X-Request-Id": "What the log calls the request.",
    "X-NeuralDB-Generation": "The generation of the database that answered.",
    "X-NeuralDB-Delivery": "How facts reached the request.",
    "X-NeuralDB-Grounded": "Ids of the facts that were stated, percent-encoded.",
}
_DELIVERED = "completions"  # the tag of routes that deliver facts, as does /explain
POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Frame-Options": "DENY"}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application as it answers now."""
    schema = get_openapi(title="neuraldb", version="1", description=_ABOUT, routes=app.routes)
    parts = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # bodies that cannot be read get ErrorBody, as all do
        parts.pop(unused, None)
    for name, part in ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}").pop("$defs").items():
        parts[name] = part
    parts["ErrorBody"] = {
        name: value
        for name, value in ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}").items()
        if name != "$defs"
    }
    schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, _, operation in operations(schema):
        operation["responses"].pop("422", None)
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        operation["responses"]["default"] = {"description": "An error", "content": error}
        tags = operation.get("tags", [])
        delivers = _DELIVERED in tags or path == "/explain"
        asked = ["X-Request-Id"]
        if "server" not in tags:
            operation["security"] = [{}, {"token": []}]
            asked += ["X-NeuralDB"] * (not path.startswith(("/jobs", "/v1/models")))
            asked += ["X-NeuralDB-Delivery"] * (delivers and "requestBody" in operation)
        values = {"X-NeuralDB-Delivery": {"type": "string", "enum": list(DELIVERIES)}}
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "header", "required": False, "description": _HEADERS[name],
             "schema": values.get(name, _PLAIN)}
            for name in asked
        )  # fmt: skip
        for status, answer in operation["responses"].items():
            told = _ANSWERED if delivers and status.startswith("2") else {"X-Request-Id": _ANSWERED["X-Request-Id"]}
            answer["headers"] = {name: {"description": about, "schema": _PLAIN} for name, about in told.items()}
    return schema


def operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) of a document."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def page(schema: Mapping[str, Any]) -> str:
    """The document as a page that needs no script, and nothing from elsewhere."""
    parts = "".join(_operation(schema, *one) for one in operations(schema))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(schema['info']['title'])}</title><style>{_STYLE}</style>"
        f"<main><h1>{escape(schema['info']['title'])}</h1><p>{escape(schema['info']['description'])}"
        " The same for programs: <a href=openapi.json>openapi.json</a>. Tokens are sent as"
        f" <code>Authorization: Bearer TOKEN</code>.</p>{parts}</main></html>"
    )


_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0}main{max-width:60rem;margin:auto;"
    "padding:1rem}section{border-top:1px solid #8886;padding:.5rem 0}h2{font-size:1.1rem}h2 b{display:inline-block;"
    "min-width:5rem}table{border-collapse:collapse;font-size:.9rem}td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
    "pre{overflow:auto;background:#8882;padding:.6rem}"
)


def _operation(schema: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [
        (one["name"], f"{one['in']}, {_type(schema, one['schema'])}", one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    example = ""
    if body is not None:
        resolved = _resolved(schema, body)
        rows += [
            (name, f"body, {_type(schema, one)}" + (", required" if name in resolved.get("required", []) else ""),
             one.get("description", ""))
            for name, one in resolved.get("properties", {}).items()
        ]  # fmt: skip
        example = "".join(
            f"<pre>{escape(json.dumps(one, ensure_ascii=False))}</pre>" for one in resolved.get("examples", [])
        )
    table = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{escape(about)}" for name, kind, about in rows
    )
    answers = ", ".join(
        f"{status} {_type(schema, _schema_of(answer))}" for status, answer in operation["responses"].items()
    )
    about = escape(operation.get("description", operation.get("summary", "")))
    return (
        f"<section><h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2><p>{about}</p><table>{table}</table>"
        f"{example}<p>Answers: {escape(answers)}</p></section>"
    )


def _schema_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    content = answer.get("content", {})
    return next((one.get("schema", {}) for one in content.values()), {})


def _resolved(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference stands for; of alternatives the first with fields."""
    if "$ref" in part:
        found: Mapping[str, Any] = schema["components"]["schemas"][part["$ref"].rpartition("/")[2]]
        return _resolved(schema, found)
    for one in part.get("anyOf", []):
        inner = _resolved(schema, one)
        if "properties" in inner:
            return {**inner, "examples": part.get("examples", inner.get("examples", []))}
    return part


def _type(schema: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in part:
        return str(part["$ref"].rpartition("/")[2])
    if "enum" in part:
        return " | ".join(json.dumps(one) for one in part["enum"])
    if "const" in part:
        return json.dumps(part["const"])
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_type(schema, one) for one in part["anyOf"]))
    if part.get("type") == "array":
        return f"list of {_type(schema, part.get('items', {}))}"
    return str(part.get("type", "anything"))
