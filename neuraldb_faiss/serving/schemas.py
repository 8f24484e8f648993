"""What answers look like, for the description of the interface; nothing is checked by these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error, as OpenAI's clients read it."""

    error: ErrorDetail


class Status(BaseModel):
    status: Literal["ok", "ready", "loading", "stopping", "failed"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Message(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: str | None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatChoice(BaseModel):
    index: int
    message: Message
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class TextAnswer(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class FactRow(BaseModel):
    """A live fact; fields that are empty are left out."""

    id: str
    subject: str
    prompt: str
    target: str
    target_true: str | None = None
    relation: str | None = None
    source: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    entry: int
    time: str
    residual: str
    loss: float | None
    nll: float | None
    probability: float | None
    took: bool | None
    made: int | None
    ended: int | None
    state: str
    sources: list[str]


class FactPage(BaseModel):
    object: Literal["list"]
    database: str
    generation: int
    data: list[FactRow]
    next: int | None


class GenerationRow(BaseModel):
    generation: int
    time: str
    command: str
    added: int
    updated: int
    removed: int
    facts: int
    entries: int
    digest: str
    kept: bool


class GenerationPage(BaseModel):
    object: Literal["list"]
    database: str
    generation: int
    data: list[GenerationRow]
    next: int | None


class JobBody(BaseModel):
    """A change: `GET /jobs/{id}` says how far it is."""

    id: str
    object: Literal["job"]
    kind: Literal["add", "update", "remove", "rollback"]
    database: str
    created: int
    state: Literal["queued", "running", "succeeded", "failed"]
    done: int
    total: int
    generation: int | None
    added: int
    updated: int
    removed: int
    untaken: list[str]
    unheard: list[str]
    error: str | None


class FactName(BaseModel):
    id: str
    subject: str
    prompt: str
    target: str


class StatedFact(FactName):
    statement: str


class FiredToken(BaseModel):
    position: int
    token: str
    entry: int
    score: float
    facts: list[FactName]


class NamedSubject(BaseModel):
    """An entry whose subject the text names. score: the best cosine of its keys, needed: what is asked for there."""

    position: int
    token: str
    entry: int
    facts: list[FactName]
    score: float | None
    needed: float
    fired: bool
    reason: str | None
    why: str | None


class Explanation(BaseModel):
    database: str
    generation: int
    gamma: float | None
    guard: str | None
    prompt_tokens: int
    tokens: list[str]
    text: str
    fired: list[FiredToken]
    named: list[NamedSubject]
    delivery: str
    stated: list[StatedFact]


# An answer may come as server-sent events instead.
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
