"""The routes of the server and what they are for, as docs/api.md and /openapi.json tell it."""

from dataclasses import dataclass

from dslite.app.server.json_fields import Table
from dslite.app.server.limits import Limits
from dslite.app.server.request_fields import chat_fields, completion_fields
from dslite.app.server.responses_request import response_fields
from dslite.app.server.token_requests import detokenize_fields, tokenize_fields


@dataclass(frozen=True)
class DescribedRoute:
    """A method and a path. `body`: the fields of a request; None where it has no body."""

    method: str
    path: str
    about: str
    body: Table | None = None


def described_routes(limits: Limits) -> tuple[DescribedRoute, ...]:
    """All routes, the most used first."""
    return (
        DescribedRoute("POST", "/v1/chat/completions", "a chat, through the model's own template", chat_fields(limits)),
        DescribedRoute("POST", "/v1/completions", "texts or token ids to go on with", completion_fields(limits)),
        DescribedRoute("POST", "/v1/responses", "OpenAI's newer route: one answer, of text", response_fields(limits)),
        DescribedRoute("GET", "/v1/models", "the names of the model that is served, its context (`max_model_len`)"),
        DescribedRoute("GET", "/v1/models/{model}", "one of them"),
        DescribedRoute("POST", "/tokenize", "the token ids of a text or a chat", tokenize_fields(limits)),
        DescribedRoute("POST", "/detokenize", "the text of token ids", detokenize_fields(limits)),
        DescribedRoute("GET", "/version", "the version of dslite"),
        DescribedRoute("GET", "/openapi.json", "these routes and their fields, as OpenAPI 3.1"),
        DescribedRoute("GET", "/health", "200, or 503 after a failure that needs a new start; no key"),
    )
