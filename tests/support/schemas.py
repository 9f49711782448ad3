"""JSON schemas of many kinds, drawn from a seed: those that a library may enforce, and those that it must refuse."""

import random
from typing import Any

_PATTERNS = ["^[a-z]{1,5}$", "[0-9]{2}", "^(ab|cd)+$", "^[A-Z][a-z]{0,3}$", r"^\d{3}-\d{2}$"]
_FORMATS = ["date", "time", "uuid", "ipv4", "email", "date-time"]
_WORDS = ["a", "b", "name", "größe", "键", "x y", "$id", "é"]
_ODD: list[dict[str, Any]] = [
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "array", "contains": {"type": "integer"}},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"not": {"type": "string"}},
    {"type": "object", "propertyNames": {"pattern": "^a"}},
    {"$ref": "https://example.com/schema.json"},
    {"type": "string", "pattern": "a(?=b)"},
    {"enum": []},
    {"type": "integer", "minimum": 5, "maximum": 4},
    {"type": "nonsense"},
]


def bounded_schema(number: int) -> dict[str, Any]:
    """An object whose strings, lists and numbers are bounded, so that each answer is short."""
    draw = random.Random(number)
    names = draw.sample(_WORDS, draw.randint(1, 3))
    properties = {name: _value(draw, depth=2, bounded=True) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def any_schema(number: int) -> dict[str, Any]:
    """A schema of the kinds of the JSON Schema test suite, also such as nothing satisfies or a library refuses."""
    draw = random.Random(1000 + number)
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice(_ODD)
    if kind == 1:
        return {"$defs": {"t": _value(draw, 1)}, "type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 3}
    if kind == 2:
        tree = {
            "type": "object",
            "properties": {"v": _value(draw, 0), "next": {"$ref": "#/$defs/n"}},
            "required": ["v"],
        }
        return {"$ref": "#/$defs/n", "$defs": {"n": tree | {"additionalProperties": False}}}
    if kind == 3:
        return {"type": "array", "prefixItems": [_value(draw, 1), _value(draw, 1)], "items": False, "minItems": 1}
    if kind == 4:
        return {"allOf": [{"type": "integer", "minimum": draw.randint(-9, 9)}, {"maximum": 20}]}
    return _value(draw, depth=3)


def _value(draw: random.Random, depth: int, *, bounded: bool = False) -> dict[str, Any]:
    """`bounded`: no texts without a greatest length, which names of further properties and some formats are."""
    kind = draw.randrange(12 if depth else 8)
    if bounded and kind in (6, 10):
        kind = 0
    low = draw.randint(-50, 50)
    simple: list[dict[str, Any]] = [
        {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 8)},
        {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 200)},
        {"type": "number", "exclusiveMinimum": low, "maximum": low + 5, "multipleOf": 0.5},
        {"enum": draw.sample(["red", 1, None, True, 'x"y', -2.5, [1], {"k": 2}], 3)},
        {"type": ["boolean", "null"]},
        {"type": "string", "pattern": draw.choice(_PATTERNS), "maxLength": 12},
        {"type": "string", "format": draw.choice(_FORMATS)},
        {"const": draw.choice(["only", 7, None, ["a", 1]])},
    ]
    if kind < 8:
        return simple[kind]
    if kind == 8:
        return {
            "type": "array",
            "items": _value(draw, depth - 1, bounded=bounded),
            "minItems": draw.randint(0, 1),
            "maxItems": 3,
        }
    if kind == 9:
        return {"anyOf": [_value(draw, depth - 1, bounded=bounded), _value(draw, depth - 1, bounded=bounded)]}
    if kind == 10:
        return {"type": "object", "additionalProperties": _value(draw, 0), "maxProperties": 2}
    names = draw.sample(_WORDS, 2)
    return {
        "type": "object",
        "properties": {name: _value(draw, depth - 1, bounded=bounded) for name in names},
        "required": names[:1],
        "additionalProperties": False,
    }
