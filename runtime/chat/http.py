"""HTTP to an OpenAI-compatible server: a request, and its server-sent events as they come.

Reading happens in a thread of its own, so that a cancel is obeyed at once, even while the server is silent. The key is
in one header and nowhere else: in no message, no log, no representation.
"""

import json
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from threading import Event as Flag
from typing import Any
from urllib.parse import urlsplit

import httpx2

from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError, UsageError

CONNECT_S = 10.0
SILENCE_S = 600.0  # after which a server that says nothing counts as lost
_LOOK_S = 0.05  # how often a cancel is looked for
_MOST_ERROR = 300  # characters of a server's error page that are shown

Line = str | DsliteError | None  # None: the end


class ConnectionLostError(DsliteError):
    """The server went away in the middle of an answer."""


class Endpoint:
    """A server at a base URL, such as http://127.0.0.1:8000/v1."""

    def __init__(self, url: str, *, key: str | None = None) -> None:
        """Raises UsageError for what is no base URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError("--endpoint is not the address of a server", "write it as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc:
            raise UsageError(
                "--endpoint holds a password", "put the key into a variable, and name it with --endpoint-key-env"
            )
        self.url = url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        self.host = parts.netloc
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def models(self) -> list[str]:
        """Names of the models that the server has. Raises DsliteError."""
        try:
            with self._client() as client:
                response = client.get(self.url + "/models")
                data = response.json() if response.status_code == 200 else None
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise self._refusal(response.status_code, response.text)
        listed = data.get("data") if isinstance(data, dict) else None
        if not isinstance(listed, list):
            raise ModelUnavailableError(f"{self.url} is no OpenAI-compatible server", "check --endpoint")
        return [card["id"] for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)]

    def events(self, path: str, body: Mapping[str, Any], cancel: Flag) -> Iterator[str]:
        """POST, and the lines of what comes back; ends quietly when cancelled.

        Raises ModelUnavailableError where there is no server, ConnectionLostError where it goes away later, DsliteError
        and ContextFullError for what it refuses.
        """
        reading = _Reading(self, path, body)
        try:
            while not cancel.is_set():
                try:
                    line = reading.lines.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue
                if isinstance(line, DsliteError):
                    raise line
                if line is None:
                    return
                yield line
        finally:
            reading.stop()

    def lost(self) -> ConnectionLostError:
        """The error of an answer that breaks off."""
        return ConnectionLostError(
            f"the connection to {self.host} was lost in the middle of the answer: what came is kept",
            "/continue in a chat goes on where it broke off; else ask again",
        )

    def _client(self) -> httpx2.Client:
        timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
        return httpx2.Client(headers=self._headers, timeout=timeout, follow_redirects=False)

    def _unreachable(self, error: Exception) -> ModelUnavailableError:
        # The name of the error says enough; its text may hold what a proxy's address holds.
        return ModelUnavailableError(
            f"the server {self.host} cannot be reached: {_reason(error)}",
            "check --endpoint, and that the server runs",
        )

    def _refusal(self, status: int, text: str) -> DsliteError:
        """What a status other than 200 means."""
        message, code = _error_of(text)
        if status in (401, 403):
            return ModelUnavailableError(
                f"{self.host} refuses the key: {message}",
                "put the right one into a variable, and name it with --endpoint-key-env",
            )
        if status == 404:
            return ModelUnavailableError(f"{self.host} says: {message}", "name one of its models with --model")
        if code == "context_length_exceeded" or (status == 400 and "context length" in message):
            return ContextFullError(message, "shorten the prompt, or start a new chat")
        if status in (429, 503):
            return DsliteError(f"{self.host} is busy: {message}", "try again in a moment")
        return DsliteError(f"{self.host} answers with status {status}: {message}")


class _Reading:
    """One request, read in a thread."""

    def __init__(self, endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> None:
        self.lines: queue.Queue[Line] = queue.Queue(1024)
        self._endpoint, self._path, self._body = endpoint, path, body
        self._stopped = Flag()
        self._connection: Any = None
        threading.Thread(target=self._run, name="dslite-endpoint", daemon=True).start()

    def stop(self) -> None:
        """End the reading, wherever it is: a server that waits for a reader stops its answer, too."""
        self._stopped.set()
        if self._connection is not None:
            # Only the plain shutdown wakes a read, under TLS too.
            with suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take hold of the connection as soon as there is one."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._connection = info["return_value"].get_extra_info("socket")
            if self._stopped.is_set():
                self.stop()

    def _run(self) -> None:
        began = False
        try:
            with (
                self._endpoint._client() as client,
                client.stream(
                    "POST", self._endpoint.url + self._path, json=self._body, extensions={"trace": self._trace}
                ) as response,
            ):
                if response.status_code != 200:
                    response.read()
                    raise self._endpoint._refusal(response.status_code, response.text)
                began = True
                for line in response.iter_lines():
                    self._tell(line)
            self._tell(None)
        except DsliteError as error:
            self._tell(error)
        except (httpx2.HTTPError, OSError, ValueError) as error:
            self._tell(self._endpoint.lost() if began else self._endpoint._unreachable(error))

    def _tell(self, line: Line) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self.lines.put(line, timeout=_LOOK_S)
                return


def _reason(error: Exception) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "it does not answer"
    if isinstance(error, ValueError):
        return "its answer is not JSON"
    cause = error.__cause__ or error.__context__ or error
    while not isinstance(cause, OSError) and (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if isinstance(cause, socket.gaierror):
        return "nobody knows its name"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return type(error).__name__


def _error_of(text: str) -> tuple[str, str | None]:
    """Message and code of an error, as OpenAI's servers and those like them write it."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    error = raw.get("error", raw) if isinstance(raw, dict) else raw
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail")
        code = error.get("code")
        if isinstance(message, str):
            return message[:_MOST_ERROR], code if isinstance(code, str) else None
    return (error if isinstance(error, str) else text).strip()[:_MOST_ERROR] or "no reason given", None
