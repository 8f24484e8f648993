"""What clients send, checked; and what they are sent back, as OpenAI's API words it."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from neuraldb_faiss.serving.errors import ApiError

_Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Stops = Annotated[list[_Stop], Field(max_length=4), BeforeValidator(_listed)]
_OnePrompt = Annotated[list[str], Field(min_length=1, max_length=1), BeforeValidator(_listed)]

# Parameters that would change the answer and are not supported, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class Generating(BaseModel):
    """What both kinds of completion have in common. Fields that change nothing (`user`, ...) are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: _Stops | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    def check(self) -> None:
        """Raises ApiError for what would silently be answered otherwise than asked."""
        for name, value in (self.model_extra or {}).items():
            if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
                raise ApiError(
                    400, f"{name} is not supported: leave it out", param=name, code="unsupported_parameter"
                )  # fmt: skip
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is only for stream: true", param="stream_options")

    @property
    def wants_usage(self) -> bool:
        """In a stream."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Completion(Generating):
    prompt: _OnePrompt


class _Part(BaseModel):
    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_parts)]

    def to_template(self) -> dict[str, str]:
        """As chat templates take it."""
        text = "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Chat(Generating):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class Explain(BaseModel):
    """A prompt, or messages; max_tokens: of the greedy answer that is looked at too."""

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    max_tokens: int = Field(1, ge=1)


class Facts(BaseModel):
    """Facts as `Fact.from_dict` reads them; a list alone will do."""

    facts: list[dict[str, Any]] = Field(min_length=1)
    on_conflict: Literal["error", "first", "last"] = "error"

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, given: Any) -> Any:
        return {"facts": given} if isinstance(given, list) else given


def usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class Shape:
    """One answer as OpenAI's API words it, whole or in chunks."""

    def __init__(self, request: Generating) -> None:
        self._chat = isinstance(request, Chat)
        self._wants_usage = request.wants_usage
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, text: str, reason: str, usage: dict[str, int]) -> dict[str, Any]:
        part = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": usage}

    def first(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}}, None)] if self._chat else []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"delta": {"content": text}} if self._chat else {"text": text}, None)

    def last(self, reason: str, usage: dict[str, int]) -> list[dict[str, Any]]:
        """What a stream ends with."""
        end = self._chunk({"delta": {}} if self._chat else {"text": ""}, reason)
        return [end, {**end, "choices": [], "usage": usage}] if self._wants_usage else [end]

    def _chunk(self, part: dict[str, Any], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        nothing = {"usage": None} if self._wants_usage else {}
        return {**self._head, "object": kind, "choices": [choice], **nothing}
