"""/openapi.json: the declared tables of fields as an OpenAPI 3.1 document."""

from typing import Any

from dslite.app.server.json_fields import (
    MOST_INTEGER,
    Exactly,
    Integer,
    IntegerList,
    Kind,
    Number,
    Object,
    ObjectList,
    OneOf,
    RequestField,
    Support,
    Table,
    TextList,
)
from dslite.app.server.routes import DescribedRoute

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def openapi_document(routes: tuple[DescribedRoute, ...], version: str) -> dict[str, Any]:
    """The document of some routes. `version` is that of dslite."""
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "dslite serve", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],  # a server that was started without a key asks for none
    }


def _operation(route: DescribedRoute) -> dict[str, Any]:
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    operation: dict[str, Any] = {
        "summary": route.about,
        "responses": {
            "200": {"description": "the answer"},
            "default": {"description": "an error", "content": {"application/json": error}},
        },
    }
    if "{model}" in route.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    if route.body is not None:
        schema = {"schema": _table(route.body)}
        operation["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return operation


def _table(table: Table) -> dict[str, Any]:
    """The schema of an object: the fields that are honoured, and those that are accepted without effect."""
    fields = (field for field in table.fields.values() if field.support is not Support.REFUSED)
    return {"type": "object", "properties": {field.name: _field(field) for field in fields}}


def _field(field: RequestField) -> dict[str, Any]:
    about = field.about if field.support is Support.HONOURED else f"accepted without effect: {field.about}"
    if field.default:
        about += f"; without it: {field.default}"
    schema = _kind(field.kind)
    return {"description": about, **({"anyOf": [schema, {"type": "null"}]} if schema else {})}


def _kind(kind: Kind) -> dict[str, Any]:
    """The JSON schema of a field's values; empty where a later check reads them."""
    match kind:
        case Integer():
            return {"type": "integer", **_bounds(kind.low, min(kind.high, MOST_INTEGER))}
        case Number():
            return {"type": "number", **_bounds(kind.low, kind.high)}
        case Exactly():
            return {"type": "boolean" if kind.type is bool else "string"}
        case TextList():
            text = {"type": "string", "maxLength": kind.length}
            return {"anyOf": [text, {"type": "array", "items": text, "maxItems": kind.most}]}
        case IntegerList():
            return {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": kind.most}
        case Object():
            return _table(kind.fields)
        case ObjectList():
            return {"type": "array", "items": _table(kind.fields), "minItems": 1}
        case OneOf():
            return {"enum": list(kind.words)}
    return {}


def _bounds(low: float, high: float) -> dict[str, float]:
    """Infinite bounds are left out: JSON has none."""
    named = {"minimum": low, "maximum": high}
    return {name: value for name, value in named.items() if abs(value) != float("inf")}
