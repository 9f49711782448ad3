"""Declared tables of JSON fields, and the one reader that checks a client's object against such a table.

A table says of each field: its name, the values it takes, the values that ask for nothing, and whether the server
honours it, accepts it without effect, or refuses it and why. From the table come validation, the hint for a misspelt
name, and docs/api.md; there are no model classes beside it.

pydantic and msgspec were considered. Both check types well, but neither knows values that ask for nothing, reasons for
a refusal or a hint for an unknown name, so the table would have stood beside their classes. Importing pydantic takes 55
to 100 ms and msgspec 40 ms (one core, warm) of a start that takes 130 ms for starlette and uvicorn together, and each
would be one more dependency of `dslite[serve]`, for a reader of about 100 lines.
"""

import difflib
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn, Protocol

from dslite.app.server.errors import ApiError, invalid

MOST_INTEGER = 2**63 - 1
_MOST_VALUES = 500_000  # parsing holds Python's lock: 40 ms for 500,000 token ids, 0.9 s for the 8 million of 16 MB
_NO_SEPARATORS = bytes(byte for byte in range(256) if byte not in b'",{[')
_SHOWN = 60  # characters of a value that an error repeats


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object from a request's body. Raises ApiError; NaN and infinity are not JSON."""
    if _has_too_many_values(body):
        raise invalid(f"the body has more than {_MOST_VALUES:,} values: commas, braces and brackets outside of texts")
    try:
        value = json.loads(str(body, "utf-8-sig"), parse_constant=_refuse_constant)
    except ApiError:
        raise
    except json.JSONDecodeError as error:  # the place of the fault goes into the error, the body does not
        raise invalid(f"the body is not valid JSON at character {error.pos}") from None
    except UnicodeDecodeError:
        raise invalid("the body is not valid JSON: it is not UTF-8") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError:
        raise invalid(f"the body has a number of more than {sys.get_int_max_str_digits():,} digits") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


def _has_too_many_values(body: bytes) -> bool:
    """Whether a body has more commas, braces and brackets outside of texts than may be parsed.

    It takes at most 50 ms. Without escaped characters a quote begins or ends a text, so behind every second one is
    what lies outside.
    """
    if len(body) <= _MOST_VALUES:
        return False
    separators = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_SEPARATORS)
    if len(separators) <= _MOST_VALUES:
        return False
    quotes = separators.count(b'"')
    return quotes > 2 * _MOST_VALUES or sum(map(len, separators.split(b'"')[::2])) > _MOST_VALUES


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(f"the body is not valid JSON: {name} is not a JSON number")


class Kind(Protocol):
    """The values that a field takes. `text` completes "it must be …"."""

    @property
    def text(self) -> str: ...

    def read(self, value: Any, path: str) -> Any:
        """The value in Python's terms. Raises ApiError; `path` names the field in it."""


def fail(value: Any, path: str, must: str) -> NoReturn:
    raise invalid(f"{path} is {shown(value)}; it must be {must}", path)


@dataclass(frozen=True)
class Integer:
    """A whole number; 256.0 is one, as clients that compute in floating point send it."""

    low: float = 0
    high: float = MOST_INTEGER

    @property
    def text(self) -> str:
        if self.high == math.inf:
            return "a whole number"
        high = "2^63 - 1" if self.high == MOST_INTEGER else str(self.high)
        return f"a whole number from {self.low} to {high}"

    def read(self, value: Any, path: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not self.low <= value <= self.high:
            fail(value, path, self.text)
        return value


ANY_INTEGER = Integer(-math.inf, math.inf)


@dataclass(frozen=True)
class Number:
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    def read(self, value: Any, path: str) -> float:
        if type(value) not in (int, float) or not self.low <= value <= self.high:
            fail(value, path, self.text)
        return float(value)


@dataclass(frozen=True)
class Exactly:
    """A value of one type."""

    type: type
    text: str

    def read(self, value: Any, path: str) -> Any:
        if type(value) is not self.type:
            fail(value, path, self.text)
        return value


BOOLEAN = Exactly(bool, "true or false")
TEXT = Exactly(str, "a text")


@dataclass(frozen=True)
class Anything:
    """A value that a later check reads, or that has no effect."""

    text: str = "any value"

    def read(self, value: Any, path: str) -> Any:
        return value


@dataclass(frozen=True)
class TextList:
    """A text, or a list of texts; empty ones ask for nothing."""

    most: int
    length: int

    @property
    def text(self) -> str:
        return f"a text or a list of at most {self.most} texts, each of at most {self.length} characters"

    def read(self, value: Any, path: str) -> list[str]:
        texts = [value] if type(value) is str else value
        if type(texts) is not list or len(texts) > self.most:
            fail(value, path, self.text)
        if not all(type(text) is str and len(text) <= self.length for text in texts):
            fail(value, path, self.text)
        return [text for text in texts if text]


@dataclass(frozen=True)
class IntegerList:
    """A list of whole numbers."""

    most: int
    high: int = MOST_INTEGER

    @property
    def text(self) -> str:
        return f"a list of at most {self.most} whole numbers from 0"

    def read(self, value: Any, path: str) -> list[int]:
        if type(value) is not list or len(value) > self.most:
            fail(value, path, self.text)
        if not all(type(item) is int and 0 <= item <= self.high for item in value):
            fail(value, path, self.text)
        return value


@dataclass(frozen=True)
class Object:
    """An object with a table of its own."""

    fields: "Table"
    text: str = "an object"

    def read(self, value: Any, path: str) -> dict[str, Any]:
        if type(value) is not dict:
            fail(value, path, self.text)
        return read_fields(self.fields, value, f"{path}.")


@dataclass(frozen=True)
class ObjectList:
    """A list of at least one object, each with the same table."""

    fields: "Table"
    text: str

    def read(self, value: Any, path: str) -> list[dict[str, Any]]:
        if type(value) is not list or not value:
            fail(value, path, self.text)
        for place, item in enumerate(value):
            if type(item) is not dict:
                fail(item, f"{path}[{place}]", "an object")
        return [read_fields(self.fields, item, f"{path}[{place}].") for place, item in enumerate(value)]


class Support(Enum):
    """What the server does with a field."""

    HONOURED = "honoured"
    HARMLESS = "accepted without effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class NoOp:
    """Values that ask for nothing, where they are too many to list."""

    text: str
    matches: Callable[[Any], bool]


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]
    text: str

    def read(self, value: Any, path: str) -> Any:
        if type(value) is not str or value not in self.words:
            fail(value, path, self.text)
        return value


@dataclass(frozen=True)
class RequestField:
    """One field of a JSON object. null and the values of `no_op` count as absent."""

    name: str
    support: Support
    kind: Kind
    about: str  # the meaning, or the reason why it has no effect or is refused
    no_op: tuple[Any, ...] = ()
    default: str = ""
    stands_for: str = ""  # the name under which the value is kept, where clients know it by several

    @property
    def key(self) -> str:
        return self.stands_for or self.name

    def asks_nothing(self, value: Any) -> bool:
        return value is None or any(
            other.matches(value) if isinstance(other, NoOp) else _same(value, other) for other in self.no_op
        )


@dataclass(frozen=True)
class Table:
    """The fields of one JSON object by their names."""

    fields: Mapping[str, RequestField] = field(default_factory=dict)

    @classmethod
    def of(cls, *groups: Iterable[RequestField]) -> "Table":
        return cls({item.name: item for group in groups for item in group})

    def with_support(self, support: Support) -> Sequence[RequestField]:
        return [item for item in self.fields.values() if item.support is support]


def honoured(name: str, kind: Kind, about: str, **more: Any) -> RequestField:
    return RequestField(name, Support.HONOURED, kind, about, **more)


def harmless(about: str, *names: str) -> list[RequestField]:
    """Fields of any value that change nothing in the answer."""
    return [RequestField(name, Support.HARMLESS, Anything(), about) for name in names]


def refused(about: str, names: str | Sequence[str], *no_op: Any) -> list[RequestField]:
    """Fields that would be ignored in silence, were they not refused; `no_op` are the values that pass."""
    names = names.split() if isinstance(names, str) else names
    return [RequestField(name, Support.REFUSED, Anything(), about, no_op) for name in names]


def read_fields(table: Table, raw: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The honoured values of an object, by the key of each field; absent ones are left out.

    Raises ApiError for an unknown name, a refused field, a wrong value, and two names of one field that disagree.
    """
    read: dict[str, Any] = {}
    for name, value in raw.items():
        known = table.fields.get(name)
        if known is None:
            if value is not None:
                raise _unknown(table, name, path)
            continue
        if known.support is Support.HARMLESS or known.asks_nothing(value):
            continue
        if known.support is Support.REFUSED:
            raise invalid(f"{path}{name} is not supported: {known.about}", path + name)
        value = known.kind.read(value, path + name)
        if known.key in read and not _same(read[known.key], value):
            raise invalid(f"{path}{name} contradicts {path}{known.key}: they are two names of one field", path + name)
        read[known.key] = value
    return read


def _unknown(table: Table, name: str, path: str) -> ApiError:
    param = path + name[:_SHOWN]
    close = difflib.get_close_matches(name[:_SHOWN], table.fields, n=1, cutoff=0.6)
    hint = f"; did you mean {path}{close[0]}?" if close else ""
    return invalid(f"the request has an unknown field {shown(path + name)}{hint}", param)


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values: true is not 1, and 1.0 is 1."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return bool(value == other)


def shown(value: Any) -> str:
    """A value as JSON for an error, cut to a line; the work does not grow with the value."""
    if isinstance(value, list | dict) and value:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        value = value[: _SHOWN + 1]
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return "a number of more than 60 digits"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number too large"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
