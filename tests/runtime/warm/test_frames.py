"""Frames: what is sent arrives, and what no dslite sends is refused."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from support.warm import needs_engines

from dslite.runtime.warm.frames import MOST_DEPTH, Channel, ProtocolError

pytestmark = needs_engines


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the bare socket at its other end."""
    ours, theirs = socket.socketpair()
    yield Channel(ours, most_bytes=1 << 20), theirs
    ours.close()
    theirs.close()


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("text", ["", "Grüße 🙂", "\udc80 alone", "x" * 500_000])
def test_any_text_arrives_as_it_was_sent(text: str) -> None:
    left, right = map(Channel, socket.socketpair())
    sender = threading.Thread(target=left.send, args=({"text": text, "number": 0.1},))
    sender.start()
    assert right.receive() == {"text": text, "number": 0.1}
    sender.join()
    left.close()
    assert right.receive() is None
    right.close()


def test_a_frame_that_comes_in_parts_is_kept_over_a_timeout(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    data = frame(b'{"a": 1}') + frame(b'{"b": 2}')
    theirs.sendall(data[:7])
    with pytest.raises(TimeoutError):
        channel.receive(0.01)
    theirs.sendall(data[7:])
    assert channel.receive() == {"a": 1}
    assert channel.receive() == {"b": 2}


@pytest.mark.parametrize(
    "data",
    [
        (1 << 31).to_bytes(4, "big"),
        ((1 << 20) + 1).to_bytes(4, "big") + b"{",
        b"GET / HTTP/1.1\r\n\r\n",
        frame(b"not json"),
        frame(b"\xff\xfe{}"),
        frame(b"[1, 2]"),
        frame(b"null"),
        frame(b'{"a": ' + b"[" * 200_000),
        frame(json.dumps({"a": eval("[" * MOST_DEPTH + "]" * MOST_DEPTH)}).encode()),
    ],
)
def test_what_no_dslite_sends_is_refused(pair: tuple[Channel, socket.socket], data: bytes) -> None:
    channel, theirs = pair
    theirs.sendall(data)
    with pytest.raises(ProtocolError):
        channel.receive(10)


def test_an_end_within_a_frame_is_no_end_between_two(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(frame(b"{}") + frame(b'{"a": 1}')[:6])
    theirs.shutdown(socket.SHUT_WR)
    assert channel.receive() == {}
    with pytest.raises(ProtocolError, match="within a message"):
        channel.receive()


def test_a_message_that_is_too_long_is_not_sent(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    with pytest.raises(ProtocolError, match="the most is"):
        channel.send({"a": "x" * (1 << 20)})
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
