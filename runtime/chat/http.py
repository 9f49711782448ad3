"""HTTP to an OpenAI-compatible server: a request, and the events of its response as they come.

The response is read in a thread, so that a cancel takes effect at once, even while the server is silent. Whatever that
thread raises reaches the caller. The key is in one header and nowhere else: in no message, no log, no representation.
"""

import ipaddress
import logging
import os
import queue
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Event as Flag
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from dslite.runtime.chat.server_errors import ServerRefusal, read_error
from dslite.runtime.chat.sse import StreamItem, read_stream
from dslite.runtime.errors import DsliteError, ModelUnavailableError, UsageError

CONNECT_S = 10.0
SILENCE_S = 600.0  # after which a silent server counts as lost
MODELS_S = 20.0  # for the list of models
_POLL_S = 0.05  # between two looks at the cancel flag
_MAX_ERROR_BYTES = 65536  # of an error's body that are read
_CONTEXT_KEYS = (
    "max_model_len",  # vLLM, SGLang, dslite
    "loaded_context_length",  # LM Studio
    "n_ctx",  # llama.cpp, in `meta`
    "context_length",
    "max_context_length",
    "context_window",
)

log = logging.getLogger(__name__)


class ConnectionLostError(DsliteError):
    """The connection broke in the middle of an answer."""


@dataclass(frozen=True)
class ModelCard:
    """An entry of a server's list of models. `context` in tokens, None where the server does not say it."""

    name: str
    context: int | None = None


class Endpoint:
    """A server at a base URL, such as http://127.0.0.1:8000/v1."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        """Raises UsageError for what is no base URL."""
        usage = UsageError("--endpoint is not the address of a server", "write it as http://127.0.0.1:8000/v1")
        try:
            parts = urlsplit(url)
            port = parts.port  # ValueError for a port that is no number, or out of range
            httpx2.URL(url)
            (parts.hostname or "").encode("idna")  # UnicodeError, a ValueError, for a label of no or of too many bytes
            if any(char.isspace() for char in url):
                raise usage
        except (ValueError, httpx2.InvalidURL):
            raise usage from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
            raise usage
        if "@" in parts.netloc:
            raise UsageError(
                "--endpoint holds a password", "put the key into a variable, and name it with --endpoint-key-env"
            )
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self.host = parts.netloc
        self._scheme, self._hostname = parts.scheme, parts.hostname
        self.is_local = _is_loopback(parts.hostname)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def models(self) -> list[str]:
        """Names of the models that the server has. Raises DsliteError."""
        return [card.name for card in self.model_cards()]

    def model_cards(self, timeout: float = MODELS_S) -> list[ModelCard]:
        """The models that the server has. `timeout` in seconds. Raises DsliteError."""
        try:
            with self.client(min(timeout, CONNECT_S), timeout) as client:
                response = client.get(self.url + "/models")
                data = response.json() if response.status_code == 200 else None
        except (httpx2.HTTPError, OSError, ValueError, RecursionError) as error:
            raise self.unreachable(error) from None
        if response.status_code != 200:
            raise read_error(response.status_code, response.text, response.headers).to_exception(self.host)
        listed = data.get("data") if isinstance(data, dict) else None
        if not isinstance(listed, list):
            raise ModelUnavailableError(f"{self.url} is no OpenAI-compatible server", "check --endpoint")
        cards = [card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)]
        return [ModelCard(card["id"], _context_of(card)) for card in cards]

    def post(self, path: str, body: Mapping[str, Any], cancel: Flag) -> Iterator[StreamItem]:
        """POST, and the events of the response; ends quietly when cancelled.

        Raises ServerRefusal for a response that is an error, ModelUnavailableError where there is no server,
        ConnectionLostError where the connection breaks later, DsliteError for any other fault.
        """
        reader = _ResponseReader(self, path, body)
        try:
            yield from read_stream(reader.chunks(cancel))
        except ValueError as error:
            raise DsliteError(f"{self.host}: {error}", "check --endpoint") from None
        finally:
            reader.stop()

    def lost(self) -> ConnectionLostError:
        """The error of an answer that breaks off."""
        return ConnectionLostError(
            f"the connection to {self.host} was lost in the middle of the answer: what came is kept",
            "/continue in a chat goes on where it broke off; else ask again",
        )

    def client(self, connect: float = CONNECT_S, silence: float = SILENCE_S) -> httpx2.Client:
        """An HTTP client; the times are seconds. Connections to this machine use no proxy. Raises DsliteError."""
        # The library would build the proxies of the environment even for an address that does not use them.
        direct = _is_loopback(self._hostname)
        try:
            return httpx2.Client(
                headers=self._headers,
                timeout=httpx2.Timeout(silence, connect=connect),
                follow_redirects=False,
                trust_env=not direct,
                verify=httpx2.create_ssl_context() if direct and self._scheme == "https" else True,
            )
        except Exception as error:  # a proxy's address is foreign text, and the library may lack its protocol
            variable = self._proxy_variable()
            if variable is None:
                raise ModelUnavailableError(
                    f"no connection to {self.host} can be prepared: {type(error).__name__}",
                    "check SSL_CERT_FILE and SSL_CERT_DIR",
                ) from None
            # The library's own text may repeat a password in the proxy's address.
            raise ModelUnavailableError(
                f"the proxy that {variable} names cannot be used to reach {self.host} ({type(error).__name__})",
                f"unset {variable}, name an http:// proxy there, or add the host to NO_PROXY",
            ) from None

    def unreachable(self, error: Exception) -> ModelUnavailableError:
        """The error of a server that cannot be reached."""
        # The name of the error says enough; its text may repeat a password in a proxy's address.
        variable = self._proxy_variable()
        through = f" through the proxy that {variable} names" if variable else ""
        remedy = f", or {variable}" if variable else ""
        return ModelUnavailableError(
            f"the server {self.host} cannot be reached{through}: {_reason(error)}",
            f"check --endpoint{remedy}, and that the server runs",
        )

    def _proxy_variable(self) -> str | None:
        """The variable that names the proxy for this server, None where none is used."""
        if _is_loopback(self._hostname):
            return None
        with suppress(OSError):
            if proxy_bypass(self._hostname):
                return None
        proxies = getproxies()
        for kind in (self._scheme, "all"):
            if kind in proxies:
                names = (f"{kind}_proxy", f"{kind}_proxy".upper())
                return next((name for name in names if os.environ.get(name)), "the system's settings")
        return None


class _ResponseReader:
    """One request, whose response is read in a thread."""

    def __init__(self, endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(1024)  # None: the end
        self._endpoint, self._path, self._body = endpoint, path, body
        self._stopped = Flag()
        self._connection: Any = None
        threading.Thread(target=self._run, name="dslite-endpoint", daemon=True).start()

    def chunks(self, cancel: Flag) -> Iterator[bytes]:
        """The bytes of the response, until its end or until cancelled. Raises what the thread raised."""
        while not cancel.is_set():
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, DsliteError | ServerRefusal):
                raise item
            if isinstance(item, BaseException):
                raise DsliteError(f"unexpected {type(item).__name__}: {item}", "the log has the details") from item
            yield item

    def stop(self) -> None:
        """End the reading, wherever it is: a server that waits for a reader stops its answer, too."""
        self._stopped.set()
        if self._connection is not None:
            # Only the plain shutdown wakes a read, under TLS too.
            with suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember the connection as soon as there is one."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._connection = info["return_value"].get_extra_info("socket")
            if self._stopped.is_set():
                self.stop()

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:
            if not isinstance(error, DsliteError | ServerRefusal):
                log.exception("the response of %s could not be read", self._endpoint.host)
            self._put(error)
        finally:
            self._put(None)

    def _read(self) -> None:
        began = False
        url, extensions = self._endpoint.url + self._path, {"trace": self._trace}
        try:
            with (
                self._endpoint.client() as client,
                client.stream("POST", url, json=self._body, extensions=extensions) as response,
            ):
                if response.status_code != 200:
                    raise ServerRefusal(_refusal(response))
                began = True
                for chunk in response.iter_bytes():
                    self._put(chunk)
        except (httpx2.HTTPError, OSError) as error:
            raise (self._endpoint.lost() if began else self._endpoint.unreachable(error)) from None

    def _put(self, item: bytes | BaseException | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_S)
                return


def _refusal(response: httpx2.Response) -> Any:
    """The error of a response; only the beginning of a long body is read."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _MAX_ERROR_BYTES:
            break
    return read_error(response.status_code, body.decode("utf-8", "replace"), response.headers)


def _is_loopback(hostname: str) -> bool:
    """Whether a name or an address is of this machine itself."""
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(hostname.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _context_of(card: Mapping[str, Any]) -> int | None:
    """The context of a model in tokens, where its entry says it."""
    meta = card.get("meta")
    for source in (card, meta if isinstance(meta, dict) else {}):
        for key in _CONTEXT_KEYS:
            value = source.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer"
    if isinstance(error, ValueError | RecursionError):
        return "its answer is not JSON"
    if isinstance(error, httpx2.RemoteProtocolError):
        return "it closed the connection" if "disconnected" in str(error) else "what it sends is not HTTP"
    cause = error.__cause__ or error.__context__ or error
    while not isinstance(cause, OSError) and (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if isinstance(cause, socket.gaierror):
        return "its name is unknown"
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS; write http:// in place of https://"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(error).__name__
