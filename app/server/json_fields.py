"""Reading a client's JSON object field by field: a wrong one is named, and nothing is taken for what it is not."""

import json
import math
from typing import Any, NoReturn

from dslite.app.server.errors import ApiError, invalid


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object from a request's body. Raises ApiError; NaN and infinity are no JSON."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except ApiError:
        raise
    except (ValueError, RecursionError) as error:
        # Where it broke is told, and none of the body.
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise invalid(f"the body is not valid JSON{place}") from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise invalid(f"the body is not valid JSON: {name} is not a JSON number")


class JsonFields:
    """A JSON object whose fields are asked for by name and kind; null counts as absent."""

    def __init__(self, raw: dict[str, Any], prefix: str = "") -> None:
        self._raw = raw
        self._prefix = prefix

    def get(self, name: str) -> Any:
        return self._raw.get(name)

    def fail(self, name: str, must: str) -> NoReturn:
        param = self._prefix + name
        raise invalid(f"{param} is {_shown(self._raw.get(name))}; it must be {must}", param)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(name, f"a number from {low:g} to {high:g}")
        return value if math.isfinite(value) else None

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            self.fail(name, "a text")
        return value

    def object(self, name: str) -> "JsonFields":
        value = self.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return JsonFields(value, f"{self._prefix}{name}.")

    def only(self, name: str, *allowed: Any, why: str) -> None:
        """Refuse a wish that would be silently ignored."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise invalid(f"{self._prefix}{name} is not supported: {why}", self._prefix + name)


def _shown(value: object) -> str:
    """A value as JSON, short: it goes back into an error."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
