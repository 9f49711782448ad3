"""Reading request bodies within their bounds, and parsing them beside the event loop.

Parsing JSON and encoding a prompt hold Python's lock for as long as they take, so large bodies go through one thread,
one after the other, and small ones through another: a small request never waits behind a large one.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from dslite.app.server.errors import ApiError, busy
from dslite.app.server.limits import Limits
from dslite.runtime.errors import DsliteError

_LARGE_BYTES = 2**17  # what is parsed and encoded in a few milliseconds counts as small

T = TypeVar("T")


class BodyReader:
    """Reads bodies in the event loop, and runs a function of each in a thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0  # bytes of bodies that are read or parsed
        self._reading: OrderedDict[object, asyncio.Timeout] = OrderedDict()  # the oldest first
        self._turn = asyncio.Lock()  # of the large bodies
        self._small = ThreadPoolExecutor(1, "dslite-parse-small")
        self._large = ThreadPoolExecutor(1, "dslite-parse-large")

    async def parse(self, request: Request, function: Callable[[bytes], T]) -> T:
        """The result of a function of a request's JSON body. Raises ApiError, ClientDisconnect."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            # A form of a foreign page, which a browser sends without a preflight, ends here too.
            raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ApiError(415, "the body is compressed, which this server does not read: leave out Content-Encoding")
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 18 or int(announced) > self._limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            await self._read(request, parts)
            body = b"".join(parts)
            if len(body) > _LARGE_BYTES:
                return await self._parse_large(function, body)
            return await asyncio.get_running_loop().run_in_executor(self._small, _run, function, body)
        finally:
            self._held -= sum(map(len, parts))

    async def _parse_large(self, function: Callable[[bytes], T], body: bytes) -> T:
        """Run a function, and leave the processor to others for as long as it took before the next one begins."""
        loop = asyncio.get_running_loop()
        await self._turn.acquire()
        started = loop.time()
        try:
            return await loop.run_in_executor(self._large, _run, function, body)
        finally:
            loop.call_later(loop.time() - started, self._turn.release)

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        """Append the parts of a body as they come, within its bounds of size and time. Raises ApiError."""
        size, token = 0, object()
        try:
            async with asyncio.timeout(self._limits.body_seconds) as deadline:
                self._admit(token, deadline)
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.body_bytes:
                        raise self._too_large()
                    if self._held + len(part) > self._limits.held_bytes:
                        raise busy("too many large bodies are being read")
                    parts.append(part)
                    self._held += len(part)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", headers={"Connection": "close"}) from None
        finally:
            self._reading.pop(token, None)

    def _admit(self, token: object, deadline: asyncio.Timeout) -> None:
        """Count a body that is being read; where too many are, the one that has taken longest ends."""
        self._reading[token] = deadline
        if len(self._reading) > self._limits.bodies:
            _, oldest = self._reading.popitem(last=False)
            oldest.reschedule(asyncio.get_running_loop().time())

    def _too_large(self) -> ApiError:
        most = self._limits.body_bytes
        return ApiError(413, f"the body is too large; the most is {most:,} bytes", code="body_too_large")

    def close(self) -> None:
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)


def _run(function: Callable[[bytes], T], body: bytes) -> T:
    """Run a function; an error comes without the frames that hold what was parsed, which this thread then frees."""
    try:
        return function(body)
    except DsliteError as error:
        raise error.with_traceback(None) from None
