"""What to use in place of a route that clients try and this server does not have."""

import difflib
from collections.abc import Iterable

_CHAT = "use /v1/chat/completions (client.chat.completions in the openai package)"
_NO_ROUTES = {  # what clients try that this server does not have
    "/v1/messages": f"this server speaks OpenAI's API alone; {_CHAT}",
    "/v1/embeddings": "this server makes no embeddings: the model generates text; use a model made for them",
    "/v1/moderations": "this server does not moderate texts",
    "/v1/files": "this server stores no files",
    "/v1/engines": "engines were renamed to models: use /v1/models",
    "/completion": "use /v1/completions; llama.cpp's own route is not here",
    "/completions": "the API is under /v1: use /v1/completions, with a base URL that ends in /v1",
    "/chat/completions": "the API is under /v1: use /v1/chat/completions, with a base URL that ends in /v1",
    "/responses": "the API is under /v1: use /v1/responses, with a base URL that ends in /v1",
    "/embeddings": "this server makes no embeddings: the model generates text; use a model made for them",
    "/models": "the API is under /v1: use /v1/models, with a base URL that ends in /v1",
}
_FOREIGN_ROUTES = (
    ("/v1/v1", "the path has /v1 twice: the base URL ends in /v1 already"),
    ("/api", f"this server speaks OpenAI's API, not ollama's; {_CHAT}"),
    ("/v1/responses", "the server stores no responses: POST /v1/responses answers, and keeps nothing"),
    ("/v1/audio", "the model reads and writes text"),
    ("/v1/images", "the model reads and writes text"),
)


def advice(path: str, routes: Iterable[str]) -> str:
    """Why there is no such route, and what to use; `routes` are those that there are."""
    if path in _NO_ROUTES:
        return _NO_ROUTES[path]
    for prefix, reason in _FOREIGN_ROUTES:
        if path.startswith(prefix + "/"):
            return reason
    close = difflib.get_close_matches(path[:100], routes, n=1, cutoff=0.8)
    if close:
        return f"there is no such route; did you mean {close[0]}?"
    return f"there is no such route; this server has {', '.join(routes)}"
