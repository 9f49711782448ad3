"""The routes: from an HTTP request to its response.

Every request takes the same way: the path is brought into its plain form (no doubled and no trailing slash, since
clients join base URLs and paths as they like), the guard checks the headers, the route answers. Errors of any kind
reach the client in OpenAI's shape.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, TypeVar

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
from dslite.app.server.openapi import openapi_document
from dslite.app.server.requests import ParsedRequest, ServedModel, check_name, parse_chat, parse_completion
from dslite.app.server.response_object import ResponseObject
from dslite.app.server.responses import ChatResponse, CompletionResponse, ResponseFormatter
from dslite.app.server.responses_request import parse_response
from dslite.app.server.routes import described_routes
from dslite.app.server.streaming import EventStream, Json, collect, error_response, until_disconnected
from dslite.app.server.token_requests import detokenize, tokenize
from dslite.app.server.unknown_routes import advice
from dslite.app.server.worker import Worker
from dslite.runtime.errors import DsliteError

_log = logging.getLogger("dslite.server")

T = TypeVar("T")
Parse = Callable[[dict[str, Any], ServedModel, Limits], ParsedRequest]
Handler = Callable[[Request], Awaitable[Response]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # of a client, which is sent back and logged


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
            "/v1/responses": {"POST": self._response},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/version": {"GET": self._version},
            "/openapi.json": {"GET": self._openapi},
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
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        response = await self._respond(request, request_id)
        response.headers.update({"X-Request-Id": request_id, **self._guard.cors_headers(request)})
        await response(scope, receive, send)

    async def _respond(self, request: Request, request_id: str) -> Response:
        """The response to any request; an error tells a client nothing about the inside."""
        try:
            return await self._route(request)
        except DsliteError as error:
            return error_response(from_runtime(error))
        except ClientDisconnect:
            return Response(status_code=499)  # it reaches no reader
        except Exception:
            _log.exception("request %s failed", request_id)
            return error_response(internal())

    async def _route(self, request: Request) -> Response:
        path = _plain_path(request.scope["path"])
        handlers = self._handlers(path)
        if handlers is None:
            self._guard.check(request)
            raise ApiError(404, advice(path, self._routes), code="unknown_url")
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

    async def _version(self, _: Request) -> Response:
        return Json({"version": version("dslite")})

    async def _openapi(self, _: Request) -> Response:
        return Json(openapi_document(described_routes(self._limits), version("dslite")))

    async def _tokenize(self, request: Request) -> Response:
        return await self._bodies.parse(request, lambda body: Json(self._run(tokenize, body)))

    async def _detokenize(self, request: Request) -> Response:
        return await self._bodies.parse(request, lambda body: Json(self._run(detokenize, body)))

    def _run(self, function: Callable[[dict[str, Any], ServedModel, Limits], T], body: bytes) -> T:
        """A function of the object of a body."""
        return function(parse_object(body), self._served, self._limits)

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

    async def _response(self, request: Request) -> Response:
        return await self._answer(request, parse_response, ResponseObject)

    async def _answer(self, request: Request, parse: Parse, formatter_of: type[ResponseFormatter]) -> Response:
        parsed = await self._bodies.parse(request, lambda body: self._run(parse, body))
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
