"""docs/api.md from the tables of fields: `python -m dslite.app.server.api_page > docs/api.md`."""

import json
from collections.abc import Iterable

from dslite.app.server.json_fields import NoOp, Object, ObjectList, RequestField, Support, Table
from dslite.app.server.limits import Limits
from dslite.app.server.request_fields import MESSAGE_PART, chat_fields, completion_fields

_HEAD = """\
# The API of `dslite serve`

This page is made from the tables in [app/server/request_fields.py](../app/server/request_fields.py) by
`python -m dslite.app.server.api_page`; a test holds it equal to them.

| route | |
| --- | --- |
| `POST /v1/chat/completions` | a chat, through the model's own template |
| `POST /v1/completions` | texts or token ids to go on with |
| `GET /v1/models`, `GET /v1/models/NAME` | the names of the model that is served, and its context (`max_model_len`) |
| `GET /health` | 200, or 503 after a failure that needs a new start; no key |

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
ends. A comment line is sent after {silence:g} seconds without an event. Idle connections are kept for {keep:g} seconds.

## The same seed
The same body with a `seed` gives the same text alone, beside other requests and with a cached prefix, where the model
runs in float32 on the CPU (`--dtype float32`). In bfloat16, or on a GPU, sums may differ in their last bits between
batch sizes, and near ties may fall the other way. Of `n` answers the k-th is drawn with the seed plus k.
"""


def api_page() -> str:
    """The whole page, in Markdown."""
    limits = Limits()
    head = _HEAD.replace("{silence:g}", f"{limits.silence_seconds:g}").replace(
        "{keep:g}", f"{limits.keep_alive_seconds:g}"
    )
    return (
        head
        + "".join(_route("POST /v1/chat/completions", chat_fields(limits)))
        + "".join(_route("POST /v1/completions", completion_fields(limits)))
        + "".join(_object("A part of a message's `content`", MESSAGE_PART))
    )


def _route(title: str, table: Table) -> Iterable[str]:
    yield from _object(title, table)
    for field in table.fields.values():
        if isinstance(field.kind, Object | ObjectList):
            yield from _object(f"{title}: `{field.name}`", field.kind.fields, level=3)


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
