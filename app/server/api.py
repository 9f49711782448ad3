"""The routes: from an HTTP request to its response.

Every request takes the same way: the path is brought into its plain form (no doubled and no trailing slash, since
clients join base URLs and paths as they like), the guard checks the headers, the route answers. Errors of any kind
reach the client in OpenAI's shape.
"""

import asyncio
import difflib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from dslite.app.server.auth import RequestGuard
from dslite.app.server.bodies import BodyReader
from dslite.app.server.errors import ApiError, from_runtime, internal
from dslite.app.server.json_fields import parse_object
from dslite.app.server.limits import Limits
from dslite.app.server.requests import ParsedRequest, ServedModel, check_name, parse_chat, parse_completion
from dslite.app.server.responses import ChatResponse, CompletionResponse, ResponseFormatter
from dslite.app.server.streaming import EventStream, Json, collect, error_response, until_disconnected
from dslite.app.server.worker import Worker
from dslite.runtime.errors import DsliteError

_log = logging.getLogger("dslite.server")

Parse = Callable[[dict[str, Any], ServedModel, Limits], ParsedRequest]
Handler = Callable[[Request], Awaitable[Response]]

_CHAT = "use /v1/chat/completions (client.chat.completions in the openai package)"
_NO_ROUTES = {  # what clients try that this server does not have
    "/v1/responses": f"this server has no /v1/responses; {_CHAT}",
    "/v1/messages": f"this server speaks OpenAI's API, not Anthropic's; {_CHAT}",
    "/v1/embeddings": "this server makes no embeddings: the model generates text",
    "/v1/moderations": "this server does not moderate texts",
    "/v1/files": "this server stores no files",
    "/v1/engines": "engines were renamed to models: use /v1/models",
    "/completion": "use /v1/completions; llama.cpp's own route is not here",
    "/completions": "the API is under /v1: use /v1/completions, with a base URL that ends in /v1",
    "/chat/completions": "the API is under /v1: use /v1/chat/completions, with a base URL that ends in /v1",
    "/models": "the API is under /v1: use /v1/models, with a base URL that ends in /v1",
}
_FOREIGN_ROUTES = (
    ("/v1/v1", "the path has /v1 twice: the base URL ends in /v1 already"),
    ("/api", f"this server speaks OpenAI's API, not ollama's; {_CHAT}"),
    ("/v1/audio", "the model reads and writes text"),
    ("/v1/images", "the model reads and writes text"),
)


class Api:
    """The API over one model. `asgi` is what a server runs."""

    def __init__(
        self,
        served: ServedModel,
        limits: Limits,
        *,
        key: str | None = None,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """`key`: what clients must send. `hosts`, `origins`: as --allow-host and --allow-origin. Raises UsageError."""
        self.worker = Worker(served.engine, limits)
        self._served = served
        self._limits = limits
        self._guard = RequestGuard(key=key, hosts=hosts, origins=origins)
        self._bodies = BodyReader(limits)
        self._created = int(time.time())
        self._routes: dict[str, dict[str, Handler]] = {
            "/health": {"GET": self._health},
            "/v1/models": {"GET": self._models},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/completions": {"POST": self._complete},
        }
        self.asgi = Router(default=self._serve, redirect_slashes=False, lifespan=self._life)

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        yield
        self._bodies.close()
        await asyncio.to_thread(self.worker.stop, self._limits.grace_seconds)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response = await self._respond(request)
        response.headers.update(self._guard.cors_headers(request))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        """The response to any request; an error tells a client nothing about the inside."""
        try:
            return await self._route(request)
        except DsliteError as error:
            return error_response(from_runtime(error))
        except ClientDisconnect:
            return Response(status_code=499)  # it reaches no reader
        except Exception:
            _log.exception("a request failed")
            return error_response(internal())

    async def _route(self, request: Request) -> Response:
        path = _plain_path(request.scope["path"])
        handlers = self._handlers(path)
        if handlers is None:
            self._guard.check(request)
            raise ApiError(404, _no_route(path, self._routes), code="unknown_url")
        methods = ", ".join(sorted({*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"}))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": methods, **self._guard.preflight_headers(request)})
        if path != "/health":
            self._guard.check(request)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            raise ApiError(
                405, f"{path if path in self._routes else 'this route'} takes {methods}", headers={"Allow": methods}
            )
        return await handler(request)

    def _handlers(self, path: str) -> Mapping[str, Handler] | None:
        if path.startswith("/v1/models/"):
            return {"GET": self._model}
        return self._routes.get(path)

    async def _health(self, _: Request) -> Response:
        if not self.worker.alive:
            return Json({"status": "failed"}, 503)
        return Json({"status": "ok"})

    async def _models(self, _: Request) -> Response:
        return Json({"object": "list", "data": [self._card(name) for name in self._served.names]})

    async def _model(self, request: Request) -> Response:
        name = _plain_path(request.scope["path"]).removeprefix("/v1/models/")
        check_name(name, self._served)
        return Json(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "dslite",
            "root": self._served.names[0],
            "max_model_len": self._served.engine.context,
        }

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, parse_chat, ChatResponse)

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, parse_completion, CompletionResponse)

    async def _answer(self, request: Request, parse: Parse, formatter_of: type[ResponseFormatter]) -> Response:
        parsed = await self._bodies.parse(request, lambda body: parse(parse_object(body), self._served, self._limits))
        formatter = formatter_of(parsed, self._served.engine.tokenizer)
        stream = self.worker.submit(parsed.requests)
        if parsed.stream:
            return EventStream(stream, formatter, self._limits)
        try:
            await until_disconnected(collect(stream, formatter, self._limits.seconds), request.receive)
        finally:
            stream.close()
        return Json(formatter.answer())


def _plain_path(path: str) -> str:
    """A path without doubled and trailing slashes."""
    return re.sub(r"/{2,}", "/", path).rstrip("/") or "/"


def _no_route(path: str, routes: Iterable[str]) -> str:
    """What to do in place of a route that is not here."""
    if path in _NO_ROUTES:
        return _NO_ROUTES[path]
    for prefix, advice in _FOREIGN_ROUTES:
        if path.startswith(prefix + "/"):
            return advice
    close = difflib.get_close_matches(path[:100], routes, n=1, cutoff=0.8)
    if close:
        return f"there is no such route; did you mean {close[0]}?"
    return f"there is no such route; this server has {', '.join(routes)}"
