"""What is noted of one request while it is answered, for the log."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request
from starlette.types import Scope

HEADER = "X-Request-Id"
_KEY = "neuraldb.record"
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass
class RequestRecord:
    """One request.

    Attributes:
        id: as the client's header X-Request-Id says, or made. route: without what stands for ids in it.
        database: the one that is asked, "none" for the model alone. generation: of the database that answers.
        prompt_tokens, completion_tokens: as `usage` counts them.
        error: the error's code. prompt, answer: their texts, kept only where the log is to hold them.
    """

    id: str
    method: str
    route: str
    started: float = field(default_factory=time.monotonic)
    database: str | None = None
    generation: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    prompt: Any = None
    answer: Any = None

    @classmethod
    def begin(cls, scope: Scope, given: str | None, route: str) -> RequestRecord:
        """Of a request whose header says that it is called `given`; `of` finds it from now on."""
        name = given if given is not None and _ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        record = scope[_KEY] = cls(name, scope["method"], route)
        return record

    @staticmethod
    def of(request: Request) -> RequestRecord:
        return RequestRecord.of_scope(request.scope)

    @staticmethod
    def of_scope(scope: Scope) -> RequestRecord:
        return cast(RequestRecord, scope[_KEY])

    def usage(self, prompt: int, made: int) -> None:
        """Tokens of the prompts and of the answers."""
        self.prompt_tokens, self.completion_tokens = prompt, made

    def fields(self, status: int, content: bool) -> dict[str, Any]:
        """What the log says of it, in order. content: the texts too."""
        told = {
            "id": self.id,
            "method": self.method,
            "route": self.route,
            "status": status,
            "milliseconds": round(1000 * (time.monotonic() - self.started), 1),
            "database": self.database,
            "generation": self.generation,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "error": self.error,
            **({"prompt": self.prompt, "answer": self.answer} if content else {}),
        }
        return {name: value for name, value in told.items() if value is not None}
