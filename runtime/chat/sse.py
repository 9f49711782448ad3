"""Server-sent events: bytes in, events out.

The reader of httpx2 does not fit: it drops comments, in which dslite serve tells how much of a prompt is read; it takes
the charset from a header, though the format is always UTF-8; it loses a last event without an empty line behind it; and
it refuses a body of another content type, such as the plain JSON that some servers send in spite of `stream: true`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MAX_EVENT_BYTES = 64 * 2**20  # of one event, or of a body that is no event stream

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event. `type` is "body" where the response is no event stream: `data` is all of it."""

    data: str
    type: str = "message"


@dataclass(frozen=True)
class Comment:
    """A line that other clients skip, without its colon."""

    text: str


StreamItem = ServerSentEvent | Comment


def read_stream(chunks: Iterable[bytes]) -> Iterator[StreamItem]:
    """The events of a response, as they come. A JSON document or a web page comes as one event of type "body".

    Raises ValueError for an event or a body of more than MAX_EVENT_BYTES.
    """
    decoder = EventStreamDecoder()
    head: bytes | None = b""
    body: bytearray | None = None
    for chunk in chunks:
        if head is not None:
            head += chunk
            start = head.removeprefix(_BOM).lstrip()
            if not start or _BOM.startswith(head):
                continue  # nothing that tells what it is
            chunk, head = head, None
            body = bytearray() if start[:1] in b"{[<" else None
        if body is None:
            yield from decoder.feed(chunk)
            continue
        body += chunk
        if len(body) > MAX_EVENT_BYTES:
            raise ValueError("the response is too long")
    if body is None:
        yield from decoder.feed(head or b"")
        yield from decoder.flush()
    else:
        yield ServerSentEvent(body.removeprefix(_BOM).decode("utf-8", "replace"), "body")


@dataclass
class EventStreamDecoder:
    """Splits an event stream wherever its bytes are cut. Lines end at CR, LF and CRLF, and at nothing else."""

    _line: list[bytes] = field(default_factory=list)  # pieces of a line whose end has not come
    _data: list[str] = field(default_factory=list)
    _type: str = ""
    _size: int = 0
    _after_cr: bool = False
    _first: bool = True

    def feed(self, chunk: bytes) -> Iterator[StreamItem]:
        """The events that these bytes complete. Raises ValueError for one of more than MAX_EVENT_BYTES."""
        if self._after_cr and chunk:
            chunk, self._after_cr = chunk.removeprefix(b"\n"), False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = _LINE_END.split(chunk)
        for piece in ended:
            self._line.append(piece)
            line = b"".join(self._line)
            self._line.clear()
            yield from self._take(line)
        self._line.append(rest)
        self._count(rest)

    def flush(self) -> Iterator[StreamItem]:
        """What the end of the stream completes: a last line without an end, a last event without an empty line."""
        line = b"".join(self._line)
        self._line.clear()
        if line:
            yield from self._take(line)
        yield from self._dispatch()

    def _take(self, raw: bytes) -> Iterator[StreamItem]:
        if self._first:
            raw, self._first = raw.removeprefix(_BOM), False
        line = raw.decode("utf-8", "replace")
        if not line:
            yield from self._dispatch()
            return
        if line.startswith(":"):
            yield Comment(line[1:])
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._count(raw)
            self._data.append(value)
        elif name == "event":
            self._type = value

    def _dispatch(self) -> Iterator[StreamItem]:
        data, event_type = self._data, self._type
        self._data, self._type, self._size = [], "", 0
        if data:
            yield ServerSentEvent("\n".join(data), event_type or "message")

    def _count(self, raw: bytes) -> None:
        self._size += len(raw)
        if self._size > MAX_EVENT_BYTES:
            raise ValueError("an event of the response is too long")
