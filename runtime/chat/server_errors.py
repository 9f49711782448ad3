"""What the errors of OpenAI-compatible servers mean.

Each server has its own shape and wording; `read_error` maps them to five kinds. The shapes and wordings are those of
OpenAI, vLLM, SGLang, llama.cpp, ollama, LM Studio, text-generation-inference, TensorRT-LLM, TabbyAPI, transformers
serve, and of hosts; the tests hold recorded bodies of each.
"""

import email.utils
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError

MAX_MESSAGE = 300  # characters of a server's message that are shown

_MESSAGE_KEYS = ("message", "detail", "msg", "error", "error_message", "reason", "title", "errors")
_CONTEXT_STATUSES = (None, 400, 413, 422, 500)
_OVERLOADED_STATUSES = (429, 503, 529)
_CONTEXT_CODES = re.compile(
    r"context_(length|window|size)|exceed_context|string_above_max_length|prompt_too_long", re.I
)
_CONTEXT_WORDS = re.compile(
    r"context[ _-](length|size|window|limit)|context the overflows|n_keep\b.*n_ctx"
    r"|max(imum)?[ _](model|sequence|seq|prompt|input|total|allowed)([ _](input|prompt|sequence))?"
    r"[ _](len(gth)?|tokens)"
    r"|(prompt|input|inputs|messages)\b.{0,60}\b(is|are) too (long|large)|prompt too long"
    r"|reduce the length of the (messages|input|prompt)|max_tokens must be at least 1, got -\d"
    r"|token count\b.{0,40}\bexceeds|exceeds? (the )?max(imum)?[ _](number of |num_)?tokens"
    r"|\b(prompt|inputs?|messages|tokens)\b.{0,20}\bexceeds? (the )?(max|configured limit)"
    r"|(token|length) limit|too many tokens|range of input length"
    r"|`inputs`.{0,60}must (be <=|have less than)",
    re.IGNORECASE | re.DOTALL,
)
_CONTEXT_SIZES = tuple(  # the first that matches: messages name the size of the prompt as well, often before the limit
    re.compile(pattern + r"(\d[\d,]*)", re.IGNORECASE)
    for pattern in (
        r"(?:>=?|<=|less than|n_ctx|\[1,)\s*\(?",
        r"max(?:imum)?[ _](?:\w+[ _]){0,3}?(?:len|length|tokens)(?: allowed| is| of|:)?\s*\(?",
        r"limit(?: of| is|:)? ",
        r"(?:context|model|prompt|sequence|allowed|seq)[ _](?:length|len|size|window)(?: of(?: only)?| is|:)?\s*\(?",
    )
)

# In this order: what changes least comes first.
OPTIONAL_FIELDS = (
    "stream_options",
    "stream",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "temperature",
)


class ErrorKind(Enum):
    """What can be done about a server's error."""

    CONTEXT_FULL = "context full"
    OVERLOADED = "overloaded"  # the same request may be sent again later
    REFUSED_OPTION = "refused option"  # the request may be sent again without a field
    AUTHENTICATION = "authentication"
    NOT_FOUND = "not found"
    OTHER = "other"


@dataclass(frozen=True)
class ServerError:
    """A server's error. `status` None: it came within the answer. `context` in tokens, where the server says it."""

    kind: ErrorKind
    message: str
    status: int | None = None
    context: int | None = None
    retry_after: float | None = None  # seconds
    fields: frozenset[str] = frozenset()  # request fields that it names

    def to_exception(self, host: str) -> DsliteError:
        """The error for the user, with the contract's exit code."""
        said = self.message
        match self.kind:
            case ErrorKind.CONTEXT_FULL:
                return ContextFullError(said, "shorten the prompt, or start a new chat")
            case ErrorKind.AUTHENTICATION:
                return ModelUnavailableError(
                    f"{host} refuses the {'request' if self.status == 403 else 'key'}: {said}",
                    "put the right one into a variable, and name it with --endpoint-key-env",
                )
            case ErrorKind.NOT_FOUND:
                return ModelUnavailableError(
                    f"{host} says: {said}", "name one of its models with --model, and check the path of --endpoint"
                )
            case ErrorKind.OVERLOADED:
                later = f"in {self.retry_after:,.0f} s" if self.retry_after else "in a moment"
                return DsliteError(f"{host} is busy: {said}", f"try again {later}")
        if self.status is None:
            return DsliteError(f"{host} broke off the answer: {said}", "what came is kept; ask again")
        remedy = f"the server does not take {', '.join(sorted(self.fields))}" if self.fields else ""
        if self.status == 402:
            remedy = "the account that the key belongs to has no balance left: top it up, or use another key"
        if 300 <= self.status < 400:
            remedy = "put the address of the server itself into --endpoint: redirects are not followed"
        return DsliteError(f"{host} answers with status {self.status}: {said}", remedy)


class ServerRefusal(Exception):
    """A response that is an error, for the caller to mend or to raise as a DsliteError."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.message)
        self.error = error


def read_error(status: int, text: str, headers: Mapping[str, str] | None = None) -> ServerError:
    """What a response with a status other than 200 means."""
    return _classify(status, _parse(text), text, headers or {})


def error_in_stream(chunk: Mapping[str, Any], event_type: str = "message") -> ServerError | None:
    """The error that a chunk of an answer is; None for a chunk that is none."""
    is_error = bool(chunk.get("error")) or chunk.get("object") == "error"
    if not is_error and (event_type != "error" or chunk.get("choices")):
        return None
    return _classify(None, chunk, "", {})


def _classify(status: int | None, raw: Any, text: str, headers: Mapping[str, str]) -> ServerError:
    message = (_message_of(raw) or _text_of(raw, text)).strip()[:MAX_MESSAGE] or "no reason given"
    if status is not None and 300 <= status < 400 and (place := headers.get("location")):
        message = f"it redirects to {place[:MAX_MESSAGE]}"
    codes = " ".join(str(value) for key in ("code", "type", "error_type") for value in _values_of(raw, key))
    fields = _fields_of(raw, message)
    context = _context_of(raw, message)
    kind = ErrorKind.OTHER
    if status in _CONTEXT_STATUSES and (
        _CONTEXT_CODES.search(codes) or _CONTEXT_WORDS.search(message) or (status == 413 and "rate_limit" not in codes)
    ):
        kind = ErrorKind.CONTEXT_FULL
    elif status in (401, 403):
        kind = ErrorKind.AUTHENTICATION
    elif status in (404, 405):
        kind = ErrorKind.NOT_FOUND
    elif status in _OVERLOADED_STATUSES and "insufficient_quota" not in codes:
        kind = ErrorKind.OVERLOADED
    elif status in (400, 422, 501) and fields:
        kind = ErrorKind.REFUSED_OPTION
    return ServerError(
        kind,
        message,
        status,
        context if kind is ErrorKind.CONTEXT_FULL else None,
        _retry_after(headers) if kind is ErrorKind.OVERLOADED else None,
        fields,
    )


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _message_of(raw: Any, depth: int = 0) -> str:
    """The first text under a key that names one; of FastAPI's lists the places and texts of all entries."""
    if isinstance(raw, str):
        return raw
    if depth > 4:
        return ""
    if isinstance(raw, list):
        return "; ".join(filter(None, (_message_of(entry, depth + 1) for entry in raw[:10])))
    if not isinstance(raw, dict):
        return ""
    said = next(filter(None, (_message_of(raw.get(key), depth + 1) for key in _MESSAGE_KEYS)), "")
    place = raw.get("loc")
    return f"{'.'.join(map(str, place[:10]))}: {said}" if isinstance(place, list) and said else said


def _text_of(raw: Any, text: str) -> str:
    return text if raw is None or not isinstance(raw, dict) else json.dumps(raw) if raw else ""


def _dicts(raw: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects of an error, itself first."""
    if isinstance(raw, list) and depth < 4:
        for entry in raw[:10]:
            yield from _dicts(entry, depth + 1)
    elif isinstance(raw, dict):
        yield raw
        for key in ("error", "detail", "errors") if depth < 4 else ():
            yield from _dicts(raw.get(key), depth + 1)


def _values_of(raw: Any, key: str) -> list[Any]:
    return [entry[key] for entry in _dicts(raw) if isinstance(entry.get(key), str | int)]


def _fields_of(raw: Any, message: str) -> frozenset[str]:
    """Request fields that the error names as its `param`, as a place, or in its message."""
    named = {str(value) for value in _values_of(raw, "param")}
    for entry in _dicts(raw):
        place = entry.get("loc")
        named |= {str(part) for part in place[:10]} if isinstance(place, list) else set()
    known = {*OPTIONAL_FIELDS, "max_tokens", "max_completion_tokens"}
    return frozenset((named | set(re.findall(r"\w+", message))) & known)


def _context_of(raw: Any, message: str) -> int | None:
    counts = [value for value in _values_of(raw, "n_ctx") if isinstance(value, int)]
    if not counts:
        found = (pattern.search(message) for pattern in _CONTEXT_SIZES)
        counts = [int(match.group(1).replace(",", "")[:12]) for match in found if match]
    return next((count for count in counts if count > 0), None)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: a number, or a date (RFC 9110, 10.2.3)."""
    lower = {name.lower(): value for name, value in headers.items()}
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = lower.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d*)?", value):
            return float(value) * scale
        if value:
            try:
                return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
            except (ValueError, TypeError, OverflowError):
                continue
    return None
