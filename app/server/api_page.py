"""docs/api.md from the tables of fields: `python -m dslite.app.server.api_page > docs/api.md`."""

import json
from collections.abc import Iterable

from dslite.app.server.json_fields import NoOp, Object, ObjectList, RequestField, Support, Table
from dslite.app.server.limits import Limits
from dslite.app.server.messages import MESSAGE_PART
from dslite.app.server.responses_request import INPUT_CALL, INPUT_MESSAGE, INPUT_OUTPUT
from dslite.app.server.routes import DescribedRoute, described_routes

_HEAD = """\
# The API of `dslite serve`

This page is made from the declared fields ([app/server/request_fields.py](../app/server/request_fields.py) and its
neighbours) by `python -m dslite.app.server.api_page`; a test holds it equal to them.

| route | |
| --- | --- |
{routes}
Every answer has an `X-Request-Id`: the request's own, where it sent one of at most 128 letters, digits, `.`, `_`, `:`
and `-`. The log names it where something fails.

Doubled and trailing slashes are ignored. `null` counts as absent everywhere, and 256.0 is a whole number. A field that
is in none of the tables is refused with 400 and the name that may have been meant.

## Who may use it
Without `--api-key-env` the server answers programs of this machine alone: it refuses a `Host` other than localhost,
unless `--allow-host NAME` names it (`host.docker.internal` for containers). Pages in a browser are refused unless
`--allow-origin URL` names their origin, with or without a key. Both flags are repeatable, neither takes `*`, and
neither lifts the key. `/health` needs none.

## Errors
`{"error": {"message", "type", "param", "code"}}`, as OpenAI's. Status 400: the request is wrong (`param` names the
field; `context_length_exceeded` is a prompt that does not fit); 401, 403: key, Host, origin; 404: model or route; 408:
a body or a reader too slow; 413, 415: the body; 500: the server's own output says why; 503: too much at once
(`Retry-After`), or shutting down; 504: `--timeout`.

## Streams
Server-sent events, ended by `data: [DONE]`, or by one event with an error object where something failed or the server
ends. Those of `/v1/responses` have names, and the last of them is `response.completed`, `response.incomplete` (cut) or
`error`. A comment line is sent after {silence:g} seconds without an event. Idle connections are kept for
{keep:g} seconds.

## Functions
A conversation may hold calls and their results (`tool_calls` and the role `tool`; `function_call` and
`function_call_output` in `/v1/responses`). The model's template has no place for them, so they are written as text, one
line each, JSON without line ends:

```
Assistant: Call of weather: {"city":"Paris"}
User: Result of weather: {"celsius":21}
```

A result that is not JSON is written as a JSON string. Whatever stands in one, it begins no line and forms no special
token.

With `tool_choice` that names one function of `tools`, or is `"required"` where there is one, the answer is a call: the
system message defines the function, the answer begins as `Call of NAME:`, and its arguments are forced into the schema
of `parameters`. Cut by its limit of tokens it ends as `length`, and is not whole JSON. With `"none"` the definitions
are not part of the prompt. `"auto"`, which is also what a request with `tools` alone means, is refused: the model was
not trained to decide when to call a function.

## The same seed
The same body with a `seed` gives the same text alone, beside other requests and with a cached prefix, where the model
runs in float32 on the CPU (`--dtype float32`). In bfloat16, or on a GPU, sums may differ in their last bits between
batch sizes, and near ties may fall the other way. Of `n` answers the k-th is drawn with the seed plus k.
"""


def api_page() -> str:
    """The whole page, in Markdown."""
    limits = Limits()
    routes = described_routes(limits)
    head = _HEAD.replace("{silence:g}", f"{limits.silence_seconds:g}").replace(
        "{keep:g}", f"{limits.keep_alive_seconds:g}"
    )
    return (
        head.replace("{routes}", "".join(map(_line, routes)))
        + "".join(_bodies(routes))
        + "".join(_object("A message of `input`", INPUT_MESSAGE))
        + "".join(_object("A call in `input`", INPUT_CALL))
        + "".join(_object("Its output in `input`", INPUT_OUTPUT))
        + "".join(_object("A part of a message's `content`", MESSAGE_PART))
    )


def _line(route: DescribedRoute) -> str:
    return f"| `{route.method} {route.path}` | {_cell(route.about)} |\n"


def _bodies(routes: Iterable[DescribedRoute]) -> Iterable[str]:
    """The tables of all bodies."""
    shown: list[Table] = []
    for route in routes:
        if route.body is not None:
            yield from _object(f"{route.method} {route.path}", route.body)
            yield from _inner_objects(f"{route.method} {route.path}: ", route.body, shown)


def _inner_objects(title: str, table: Table, shown: list[Table]) -> Iterable[str]:
    """The tables of a table's objects; one that several fields share is shown with the first of them."""
    for field in table.fields.values():
        if isinstance(field.kind, Object | ObjectList) and field.kind.fields not in shown:
            shown.append(field.kind.fields)
            yield from _object(f"{title}`{field.name}`", field.kind.fields, level=3)
            yield from _inner_objects(f"{title}`{field.name}`.", field.kind.fields, shown)


def _object(title: str, table: Table, level: int = 2) -> Iterable[str]:
    yield f"\n{'#' * level} {title}\n"
    yield "| honoured | value | without it | |\n| --- | --- | --- | --- |\n"
    for field in table.with_support(Support.HONOURED):
        yield f"| `{field.name}` | {_cell(field.kind.text)} | {_cell(field.default)} | {_about(field)} |\n"
    yield from _by_reason("accepted without effect", table.with_support(Support.HARMLESS))
    yield from _by_reason("refused", table.with_support(Support.REFUSED))


def _by_reason(title: str, fields: Iterable[RequestField]) -> Iterable[str]:
    """A table with one line for each reason and set of values that pass."""
    lines: dict[tuple[str, str], list[str]] = {}
    for field in fields:
        lines.setdefault((field.about, _no_op(field)), []).append(f"`{field.name}`")
    if not lines:
        return
    passes = title == "refused"
    yield f"\n| {title} | because |{' passes |' if passes else ''}\n| --- | --- |{' --- |' if passes else ''}\n"
    for (about, no_op), names in lines.items():
        yield f"| {', '.join(names)} | {_cell(about)} |{f' {no_op} |' if passes else ''}\n"


def _about(field: RequestField) -> str:
    passes = _no_op(field)
    return _cell(field.about) + (f" ({passes} asks for nothing)" if passes else "")


def _no_op(field: RequestField) -> str:
    return ", ".join(value.text if isinstance(value, NoOp) else f"`{json.dumps(value)}`" for value in field.no_op)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(api_page(), end="")
