"""A command's side of the socket. Imports nothing that computes: finding an engine costs milliseconds."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Event as Flag
from typing import Any

from dslite.runtime.events import Compiling, Done, Event, Loading, LoadingEvent, Prefilling, Token
from dslite.runtime.system.local_socket import has_local_sockets, peer_user, user_id
from dslite.runtime.warm.address import find_folder, socket_file
from dslite.runtime.warm.frames import Channel, ProtocolError
from dslite.runtime.warm.key import EngineKey
from dslite.runtime.warm.messages import parse_error, parse_event

SILENCE_S = 30.0  # an engine that works gives a sign of life every two seconds
_GREETING_S = 10.0
_LOOK_S = 0.05  # between looks at a cancel
_STATUS_S = 5.0

_log = logging.getLogger(__name__)


class EngineLostError(Exception):
    """The engine has ended, or does not answer."""


class EngineRefusedError(Exception):
    """The engine is there and cannot be used; the text says why."""


class WarmClient:
    """A connection to a loaded engine. For one thread."""

    def __init__(self, channel: Channel, description: Mapping[str, Any], *, silence_s: float = SILENCE_S) -> None:
        """`silence_s`: an engine that gives no sign of life for so long is lost."""
        self._channel = channel
        self._silence_s = silence_s
        self.description = description
        self.memory: Mapping[str, int] = {}  # of the last answer
        self.experts: Mapping[str, int] = {}

    def call(self, op: str, **fields: Any) -> Any:
        """Ask for something. Raises DsliteError as the engine does, EngineLostError."""
        self._send({"op": op, **fields})
        message = self._receive()
        return message["ok"]

    def answer(self, cancel: Flag) -> Iterator[Prefilling | Token | Done]:
        """The events of the request that was prepared. Raises DsliteError, EngineLostError."""
        self._send({"op": "answer"})
        cancelled = False
        while True:
            message = self._receive(None if cancelled else cancel)
            if message is None:
                self._send({"op": "cancel"})
                cancelled = True
                continue
            event = _parsed(message, ("memory", "experts"))
            if isinstance(event, Loading | Compiling):
                raise EngineLostError("it sent what does not belong to an answer")
            if isinstance(event, Done):
                self.memory, self.experts = message["memory"], message["experts"]
            yield event
            if isinstance(event, Done):
                return

    def close(self) -> None:
        self._channel.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(message)
        except (OSError, ProtocolError) as error:
            raise EngineLostError(str(error)) from None

    def _receive(self, cancel: Flag | None = None) -> Any:
        """The next message that is no sign of life; None once `cancel` is set. Raises DsliteError, EngineLostError."""
        heard = time.monotonic()
        while True:
            if cancel is not None and cancel.is_set():
                return None
            try:
                message = self._channel.receive(self._silence_s if cancel is None else _LOOK_S)
            except TimeoutError:
                if time.monotonic() - heard > self._silence_s or cancel is None:
                    raise EngineLostError(f"it has been silent for {self._silence_s:.0f} seconds") from None
                continue
            except (OSError, ProtocolError) as error:
                raise EngineLostError(str(error)) from None
            if message is None:
                raise EngineLostError("it has ended")
            if "beat" not in message:
                _raise_errors(message)
                return message
            heard = time.monotonic()


def interrupted_end(came: Sequence[Token], prompt_tokens: int) -> Done:
    """The end of an answer that was stopped, and whose engine is gone, from the tokens that came."""
    made = [token for token in came if not token.in_prompt]
    ids = tuple(token.id for token in made if token.id is not None)
    return Done("interrupted", "".join(token.delta for token in made), ids, prompt_tokens, 0)


def _raise_errors(message: Mapping[str, Any]) -> None:
    if "error" in message:
        try:
            error = parse_error(message)
        except (KeyError, TypeError) as fault:
            raise EngineLostError(f"it sent an error that is none: {fault}") from None
        raise error


def _parsed(message: Mapping[str, Any], others: tuple[str, ...] = ()) -> Event | LoadingEvent:
    """An event; `others` are keys beside its fields. Raises EngineLostError."""
    try:
        return parse_event({key: value for key, value in message.items() if key not in others})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineLostError(f"it sent an event that is none: {error}") from None


def find_engine(
    key: EngineKey,
    report: Callable[[LoadingEvent], None],
    *,
    greeting_s: float = _GREETING_S,
    silence_s: float = SILENCE_S,
) -> WarmClient | None:
    """A connection to the engine of a key, waited for while it loads; None where none runs.

    `greeting_s`: the most silence until it is connected; `silence_s`: later.

    Raises RuntimeFolderError for a folder that is not safe, EngineRefusedError, and DsliteError where the engine cannot
    load its model.
    """
    if not has_local_sockets() or (folder := find_folder()) is None:
        return None
    channel = open_channel(socket_file(folder, key.name))
    if channel is None:
        return None
    client = WarmClient(channel, {}, silence_s=greeting_s)
    try:
        client._send({"op": "hello", "settings": dict(key.settings), "files": key.files})
        while True:
            message = client._receive()
            if "refused" in message:
                raise EngineRefusedError(str(message["refused"]))
            if "ok" in message:
                client.description, client._silence_s = message["ok"], silence_s
                return client
            event = _parsed(message)
            if isinstance(event, Loading | Compiling):
                report(event)
    except EngineLostError as error:  # before it was asked anything
        _log.info("an engine was found and not used: %s", error)
        client.close()
        return None
    except BaseException:
        client.close()
        raise


def open_channel(file: Path, timeout: float | None = _GREETING_S) -> Channel | None:
    """A connection to the socket of an engine of this user; None where no process listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(file))
        if peer_user(connection) == user_id():
            return Channel(connection)
        _log.warning("%s belongs to another user's process", file)
    except OSError as error:
        _log.debug("%s: %s", file, error)
    connection.close()
    return None


def running_engines() -> Iterator[tuple[Channel, dict[str, Any]]]:
    """The engines of this user, each as an open connection and its description. Raises RuntimeFolderError."""
    folder = find_folder() if has_local_sockets() else None
    for file in sorted(folder.glob("*.socket")) if folder is not None else ():
        channel = open_channel(file, _STATUS_S)
        if channel is None:
            continue
        with closing(channel):
            if (description := _status(channel)) is not None:
                yield channel, description


def _status(channel: Channel) -> dict[str, Any] | None:
    with suppress(OSError, ProtocolError):
        channel.send({"op": "status"})
        answer = channel.receive(_STATUS_S)
        if answer is not None and isinstance(answer.get("ok"), dict):
            return dict(answer["ok"])
    return None


def stop_engine(channel: Channel, seconds: float) -> bool:
    """Stop an engine; whether it has ended within some seconds."""
    try:
        channel.send({"op": "stop"})
        while channel.receive(seconds) is not None:
            pass
    except TimeoutError:
        return False
    except (OSError, ProtocolError):
        pass  # it ended at once
    return True
