"""The routes."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from dslite.app.server.auth import RequestGuard
from dslite.app.server.errors import ApiError, from_runtime, internal
from dslite.app.server.json_fields import parse_object
from dslite.app.server.limits import Limits
from dslite.app.server.requests import ParsedRequest, ServedModel, check_name, parse_chat, parse_completion
from dslite.app.server.responses import ChatResponse, CompletionResponse, ResponseFormatter
from dslite.app.server.streaming import EventStream, Json, collect, error_response, unless_gone
from dslite.app.server.worker import Worker
from dslite.runtime.errors import DsliteError

_log = logging.getLogger("dslite.server")

Parse = Callable[[dict[str, Any], ServedModel, Limits], ParsedRequest]


class Api:
    """The API over one model. `asgi` is what a server runs."""

    def __init__(self, served: ServedModel, limits: Limits, *, key: str | None = None) -> None:
        """`key`: what clients must send."""
        self.worker = Worker(served.engine, limits)
        self._served = served
        self._limits = limits
        self._guard = RequestGuard(limits, key=key)
        self._created = int(time.time())
        routes = [
            Route("/health", self._told(self._health), methods=["GET"]),
            Route("/v1/models", self._told(self._models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._told(self._model), methods=["GET"]),
            Route("/v1/chat/completions", self._told(self._chat), methods=["POST"]),
            Route("/v1/completions", self._told(self._complete), methods=["POST"]),
        ]
        self.asgi = Starlette(routes=routes, lifespan=self._life, exception_handlers={HTTPException: _no_route})

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        yield
        await asyncio.to_thread(self.worker.stop)

    def _told(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """A handler whose errors reach the client in OpenAI's shape, and none with more than it should know."""

        async def handler(request: Request) -> Response:
            try:
                response: Response = await handle(request)
            except DsliteError as error:
                return error_response(from_runtime(error))
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except Exception:
                _log.exception("a request failed")
                return error_response(internal())
            return response

        return handler

    async def _health(self, _: Request) -> Response:
        return Json({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        self._guard.admit(request)
        return Json({"object": "list", "data": [self._card(name) for name in self._served.names]})

    async def _model(self, request: Request) -> Response:
        self._guard.admit(request)
        name: str = request.path_params["name"]
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

    async def _answer(self, request: Request, parse: Parse, shape_of: type[ResponseFormatter]) -> Response:
        self._guard.admit(request)
        body = await self._guard.body(request)
        # In a thread: to parse and encode a long prompt takes as long as some tokens of the others.
        asking = await asyncio.to_thread(lambda: parse(parse_object(body), self._served, self._limits))
        shape = shape_of(asking, self._served.engine.tokenizer)
        answering = self.worker.ask(asking.requests)
        if asking.stream:
            return EventStream(answering, shape, self._limits.seconds)
        try:
            await unless_gone(collect(answering, shape, self._limits.seconds), request.receive)
        finally:
            answering.close()
        return Json(shape.answer())


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return error_response(ApiError(405, f"{request.method} does not go here", headers=error.headers))
    return error_response(
        ApiError(
            error.status_code, "there is nothing here; the API is under /v1: chat/completions, completions, models"
        )
    )
