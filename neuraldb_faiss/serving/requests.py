"""What clients send, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema

from neuraldb_faiss.serving import body_schemas
from neuraldb_faiss.serving.contents import Prompt, Turn, read_messages, read_one_prompt, read_prompt
from neuraldb_faiss.serving.delivery_headers import read_delivery
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.fields import check_extra
from neuraldb_faiss.serving.sampling import Sampling

_MOST_LIKELIEST = 20  # alternatives told for each token

_Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Whole = Annotated[int, Field(strict=True)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _messages_if_any(value: Any) -> list[Turn] | None:
    return None if value is None else read_messages(value)


def _unless_false(value: Any) -> Any:
    return None if value is False else value


_Delivery = Annotated[str | None, PlainValidator(read_delivery), WithJsonSchema(body_schemas.DELIVERY)]
_Stops = Annotated[
    list[_Stop], Field(max_length=4), BeforeValidator(_listed, json_schema_input_type=list[_Stop] | _Stop)
]


class _StreamOptions(BaseModel):
    """include_obfuscation: of OpenAI's own; nothing is obfuscated here."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def _with(example: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Completes the schema of a body that may have fields which nothing is done with."""

    def complete(schema: dict[str, Any]) -> None:
        body_schemas.known_fields(schema)
        schema["examples"] = [example]

    return complete


class Generating(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="allow")  # `check` judges the rest

    model: str
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: _Whole | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    max_tokens: _Whole | None = Field(None, ge=1)
    n: _Whole | None = Field(None, ge=1)
    stop: _Stops | None = None
    stop_token_ids: Annotated[list[_Whole], Field(max_length=64)] | None = None
    seed: _Whole | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    neuraldb_delivery: _Delivery = None

    def check(self) -> None:
        """Raises ApiError for what would silently be answered otherwise than asked."""
        check_extra(self.model_extra or {})
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is only for stream: true", param="stream_options")

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer, at most, as asked."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many alternatives are told for each token, with its log-probability; None: nothing is told."""
        return None

    @property
    def wants_usage(self) -> bool:
        """In a stream."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, number: int) -> Sampling:
        """How the answer with this number, among `n` to one prompt, is drawn."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=None if self.seed is None else self.seed + number,
        )


class Completion(Generating):
    model_config = ConfigDict(json_schema_extra=_with(body_schemas.COMPLETION))

    prompt: Annotated[list[Prompt], PlainValidator(read_prompt), WithJsonSchema(body_schemas.PROMPTS)]
    logprobs: Annotated[_Whole | None, BeforeValidator(_unless_false)] = Field(None, ge=0, le=_MOST_LIKELIEST)

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


class Chat(Generating):
    model_config = ConfigDict(json_schema_extra=_with(body_schemas.CHAT))

    messages: Annotated[list[Turn], PlainValidator(read_messages), WithJsonSchema(body_schemas.MESSAGES)]
    max_completion_tokens: _Whole | None = Field(None, ge=1)
    logprobs: bool | None = Field(None, strict=True)
    top_logprobs: _Whole | None = Field(None, ge=0, le=_MOST_LIKELIEST)
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs is only for logprobs: true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            told = "max_tokens and max_completion_tokens differ: give one of them"
            raise ApiError(400, told, param="max_tokens")

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class Explain(BaseModel):
    """A prompt, or messages; max_tokens: of the greedy answer that is looked at too."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [body_schemas.EXPLAIN]})

    prompt: Annotated[Prompt | None, PlainValidator(read_one_prompt), WithJsonSchema(body_schemas.ONE_PROMPT)] = None
    messages: Annotated[list[Turn] | None, PlainValidator(_messages_if_any), WithJsonSchema(body_schemas.MESSAGES)] = (
        None
    )
    max_tokens: _Whole = Field(1, ge=1)
    neuraldb_delivery: _Delivery = None
