"""Events, errors and conversations as JSON, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import (
    CheckpointError,
    ConfigError,
    ContextFullError,
    DsliteError,
    ModelUnavailableError,
    NumericsError,
    OutOfMemoryError,
    UsageError,
)
from dslite.runtime.events import Candidate, Compiling, Done, Event, Loading, LoadingEvent, Prefilling, Timing, Token
from dslite.runtime.text.message import Message

_EVENTS: dict[str, type[Event | LoadingEvent]] = {
    kind.__name__: kind for kind in (Loading, Compiling, Prefilling, Token, Done)
}
_ERRORS: dict[str, type[DsliteError]] = {
    kind.__name__: kind
    for kind in (
        DsliteError,
        UsageError,
        ModelUnavailableError,
        CheckpointError,
        ConfigError,
        OutOfMemoryError,
        ContextFullError,
        NumericsError,
    )
}


def event_object(event: Event | LoadingEvent) -> dict[str, Any]:
    """An event as JSON: its fields, and its class as `event`."""
    if isinstance(event, Token) and event.top is None:  # most of them; asdict copies in depth
        return {"event": "Token", **vars(event)}
    return {"event": type(event).__name__, **asdict(event)}


def parse_event(raw: Mapping[str, Any]) -> Event | LoadingEvent:
    """An event from its JSON. Raises KeyError, TypeError, ValueError."""
    fields = {key: value for key, value in raw.items() if key != "event"}
    kind = _EVENTS[raw["event"]]
    if kind is Token:
        return _token(fields)
    if kind is Done:
        fields["token_ids"] = tuple(fields["token_ids"])
        fields["timing"] = Timing(**fields["timing"])
        fields["end"] = None if fields["end"] is None else _token(fields["end"])
    return kind(**fields)


def _token(fields: Mapping[str, Any]) -> Token:
    top = fields["top"]
    return Token(**{**fields, "top": None if top is None else tuple(Candidate(**each) for each in top)})


def error_object(error: DsliteError) -> dict[str, Any]:
    """An error as JSON: message, remedy, and the nearest class that `parse_error` knows."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    return {"error": name, "message": error.message, "remedy": error.remedy}


def parse_error(raw: Mapping[str, Any]) -> DsliteError:
    """An error from its JSON. Raises KeyError."""
    return _ERRORS[raw["error"]](raw["message"], raw["remedy"])


def message_objects(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as JSON."""
    return [asdict(message) for message in messages]


def parse_messages(raw: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A conversation from its JSON. Raises KeyError, TypeError."""
    return [
        Message(each["role"], each["content"], None if each["token_ids"] is None else tuple(each["token_ids"]))
        for each in raw
    ]


def parse_params(raw: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from their JSON. Raises UsageError, TypeError."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return SamplingParams(**values)
