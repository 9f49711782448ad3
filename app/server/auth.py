"""Which programs may use the server: the key, the Host header, and the pages of browsers (CORS)."""

import hmac
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dslite.app.server.errors import ApiError
from dslite.runtime.errors import UsageError

if TYPE_CHECKING:  # the command line reads the flags of pages and names without the server's packages
    from starlette.requests import Request

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_METHODS = "GET, POST, OPTIONS"
_PREFLIGHT_S = "600"  # for which a browser may keep the answer to a preflight


def parse_origin(text: str) -> str:
    """The origin of a page, as browsers write it: scheme, host, and the port where it is not the scheme's own.

    Raises UsageError for `*`, `null` and anything with a path.
    """
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.path in ("", "/") and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not (parts.scheme and parts.hostname and plain) or "*" in text:
        raise UsageError(
            f"--allow-origin {text!r} is not the origin of a page",
            "give scheme, host and port as in http://localhost:3000; neither * nor null can be allowed",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, _PORTS.get(parts.scheme)) else f":{port}")


def parse_host(text: str) -> str:
    """A name for --allow-host, in lower case and without a port. Raises UsageError."""
    name = _host(text)
    if not re.fullmatch(r"[a-z0-9._:-]+", name) or "://" in text:
        raise UsageError(
            f"--allow-host {text!r} is not the name of a machine", "give a name such as host.docker.internal"
        )
    return name


class RequestGuard:
    """Checks a request's headers. Without a key only programs of this machine are served."""

    def __init__(self, *, key: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """`hosts` and `origins`: names and pages that are served beside this machine's own."""
        self._key = key
        self._hosts = {*LOOPBACK, *map(parse_host, hosts)}
        self._origins = set(map(parse_origin, origins))

    def check(self, request: "Request") -> None:
        """Raise ApiError for a request that may not be answered."""
        self.check_source(request)
        if self._key is None:
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

    def check_source(self, request: "Request") -> None:
        """Raise ApiError for a foreign Host, and for a page of a foreign origin."""
        # A page whose own name was made to resolve to this machine must not read answers (DNS rebinding).
        if self._key is None and _host(request.headers.get("host", "localhost")) not in self._hosts:
            raise ApiError(
                403,
                "this server answers to localhost alone; to allow the name in the request's Host header, start it with "
                "dslite serve --allow-host NAME, or with --api-key-env for any name",
                code="host_not_allowed",
            )
        if "origin" in request.headers and not self._is_allowed(request):
            raise ApiError(
                403,
                "pages of this origin may not use the server; to allow them, start it with "
                "dslite serve --allow-origin URL, where URL is the page's scheme, host and port",
                code="origin_not_allowed",
            )

    def cors_headers(self, request: "Request") -> dict[str, str]:
        """What lets a page of an allowed origin read the answer."""
        headers = {"Vary": "Origin"}
        if "origin" in request.headers and self._is_allowed(request):
            headers["Access-Control-Allow-Origin"] = request.headers["origin"]
            headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-Id"
        return headers

    def preflight_headers(self, request: "Request") -> dict[str, str]:
        """The answer to a browser's question whether a page may send a request. Raises ApiError."""
        self.check_source(request)
        wanted = request.headers.get("access-control-request-headers", "")
        names = [name for name in map(str.strip, wanted.split(",")) if _HEADER_NAME.fullmatch(name)]
        headers = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": ", ".join(names[:64] or ["Authorization", "Content-Type"]),
            "Access-Control-Max-Age": _PREFLIGHT_S,
        }
        if request.headers.get("access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return headers

    def _is_allowed(self, request: "Request") -> bool:
        """Whether the page is one of the allowed origins, or comes from this very server."""
        origin = request.headers["origin"]
        try:
            parsed = parse_origin(origin)
        except UsageError:
            return False
        return parsed in self._origins or parsed.partition("://")[2] == request.headers.get("host", "").lower()


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    if name.count(":") > 1:
        return name  # an IPv6 address without brackets, as a flag may have it
    return name.partition(":")[0]
