"""Who may ask, and how much at once."""

import asyncio
import hmac

from starlette.requests import ClientDisconnect, Request

from dslite.app.server.errors import ApiError
from dslite.app.server.limits import Limits

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestGuard:
    """Checks a request before its content. Without a key only programs of this machine may ask."""

    def __init__(self, limits: Limits, *, key: str | None = None) -> None:
        self._limits = limits
        self._key = key

    def admit(self, request: Request) -> None:
        """Raise ApiError for a client that may not ask."""
        if self._key is None:
            # A page in a browser that had its own name lead here must not read the answers (DNS rebinding).
            if _host(request.headers.get("host", "localhost")) not in LOOPBACK:
                raise ApiError(403, "this server answers to localhost alone; another name needs --api-key-env")
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode("utf-8"))
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                401,
                "the request has no key, or a wrong one: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def body(self, request: Request) -> bytes:
        """A JSON body within its bounds of size and time. Raises ApiError, ClientDisconnect."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # It also keeps out forms of foreign pages, which a browser sends without asking.
            raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
        most = self._limits.body_bytes
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or len(announced) > 18 or int(announced) > most:
            raise _too_large(most)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise _too_large(most)
                    parts.append(part)
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", headers={"Connection": "close"}) from None
        return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is too large; the most is {most:,} bytes", code="body_too_large")


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


__all__ = ["LOOPBACK", "ClientDisconnect", "RequestGuard"]
