"""What a client did wrong, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from neuraldb_faiss.errors import FingerprintError, NeuralDBError

SOON = {"Retry-After": "2"}


class ApiError(NeuralDBError):
    """An answer that is an error: its HTTP status and the fields of OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        message = _whole(message)
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = None if param is None else _whole(param)
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": kind(self.status), "param": self.param, "code": self.code}}


def _whole(text: str) -> str:
    """Without the halves of surrogate pairs that it may quote."""
    return text.encode(errors="replace").decode()


def kind(status: int) -> str:
    """OpenAI's word for errors of this status."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "invalid_request_error" if status < 500 else "server_error")


def loading() -> ApiError:
    return ApiError(503, "the server is loading its model: ask again later", code="loading", headers=SOON)


def stopping() -> ApiError:
    return ApiError(503, "the server is shutting down: ask again later", code="shutting_down", headers=SOON)


def unreadable(database: str, why: NeuralDBError) -> ApiError:
    """Of a database that cannot answer now. Paths on the server are not told to clients."""
    message = f"the database {database} cannot be read now; the server's log says more"
    if isinstance(why, FingerprintError):
        message = (
            f"the database {database} was replaced by one that was built with another model or layer: put back one that"
            " fits, or start the server with the model that this one was built with"
        )
    return ApiError(503, message, code="unreadable")


def busy(why: str) -> ApiError:
    return ApiError(429, f"{why}: try again later", code="too_many_requests", headers={"Retry-After": "1"})


def too_slow(seconds: float) -> ApiError:
    message = f"no answer within {seconds:g} seconds: ask for fewer tokens, or start the server with a longer --timeout"
    return ApiError(504, message, code="timeout")


def model_failed(error: Exception) -> ApiError:
    what = "the model ran out of memory" if "OutOfMemory" in type(error).__name__ else "the model failed"
    return ApiError(500, f"{what} ({type(error).__name__}); the server's log says more")
