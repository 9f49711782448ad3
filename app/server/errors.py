"""Errors in OpenAI's shape: an HTTP status, and an object with a message, the parameter at fault and a code."""

from collections.abc import Mapping
from typing import Any

from dslite.runtime.errors import ContextFullError, DsliteError, NumericsError, UsageError


class ApiError(DsliteError):
    """A request that is refused or has failed. `code` and `param` are for programs to look at."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None) -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(400, message, param=param)


def context_exceeded(context: int, count: str) -> ApiError:
    """A prompt that does not fit. Clients look for these words, and read the context from them as bare digits."""
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens. However, your prompt resulted in {count} tokens, "
        "and the answer needs room too. Please reduce the length of the prompt.",
        code="context_length_exceeded",
    )


def busy(message: str) -> ApiError:
    """The server is full; the same request may succeed in a moment."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": "1"})


def from_runtime(error: DsliteError) -> ApiError:
    """An error of the runtime in a client's terms: what is wrong with the request, and nothing about the machine."""
    if isinstance(error, ApiError):
        return error
    text = f"{error.message}; {error.remedy}" if error.remedy else error.message
    if isinstance(error, ContextFullError):
        return ApiError(400, error.message, code="context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(400, text)
    if isinstance(error, NumericsError):
        return ApiError(500, error.message, code="not_finite")
    return internal()


def internal() -> ApiError:
    """A fault of the server itself; its own output has the reason."""
    return ApiError(500, "the server failed to answer; its own output says why", code="internal_error")
