"""Event streams: the same events however their bytes are cut, and nothing lost at their end."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslite.runtime.chat import sse
from dslite.runtime.chat.sse import Comment, ServerSentEvent, StreamItem, read_stream


def read(*chunks: bytes) -> list[StreamItem]:
    return list(read_stream(chunks))


def data(*texts: str) -> list[StreamItem]:
    return [ServerSentEvent(text) for text in texts]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", data("a", "b")),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", data("a", "b")),
        (b"data: a\r\rdata: b\r\r", data("a", "b")),
        (b"data: a\r\n\rdata: b\n\r\n", data("a", "b")),
        (b"data:a\ndata: b\ndata\ndata:  c\n\n", data("a\nb\n\n c")),
        ("data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(), data("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg")),
        (b"\xef\xbb\xbfdata: a\n\n", data("a")),
        (b"data: \xef\xbb\xbfa\n\n", data("\ufeffa")),
        (b"data: caf\xe9 \xe4\xbd\n\n", data("caf\ufffd \ufffd")),
        (b"data: a\n\ndata: b", data("a", "b")),  # the end of the stream ends a line and an event
        (b"data: a\n\ndata: b\n", data("a", "b")),
        (b": ping\n\ndata: a\n\n", [Comment(" ping"), *data("a")]),
        (b"event: error\ndata: a\n\ndata: b\n\n", [ServerSentEvent("a", "error"), *data("b")]),
        (b"id: 7\nretry: x\nwhat: ever\n\n", []),
        (b"event: x\n\ndata: b\n\n", data("b")),
        (b"", []),
        (b"\n\n\r\n", []),
        (b'{"a":\n\n1}', [ServerSentEvent('{"a":\n\n1}', "body")]),
        (b'\xef\xbb\xbf [{"a": 1}]\n', [ServerSentEvent(' [{"a": 1}]\n', "body")]),
        (b"<!DOCTYPE html>\n\n<p>data: x\n", [ServerSentEvent("<!DOCTYPE html>\n\n<p>data: x\n", "body")]),
    ],
)
def test_a_stream_gives_the_events_that_the_standard_names(stream: bytes, expected: list[StreamItem]) -> None:
    assert read(stream) == expected
    assert read(*(stream[place : place + 1] for place in range(len(stream)))) == expected
    assert read(b"", *(stream[place : place + 2] for place in range(0, len(stream), 2)), b"") == expected


def test_an_event_is_given_as_soon_as_its_empty_line_begins() -> None:
    decoder = sse.EventStreamDecoder()
    assert list(decoder.feed(b"data: a\r\n\r")) == data("a")
    assert list(decoder.feed(b"\ndata: b\n")) == []
    assert list(decoder.feed(b"\n")) == data("b")


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 200, b"data: xxxxxxxx\n" * 20, b"{" + b" " * 200])
def test_an_event_without_an_end_is_refused(stream: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(ValueError, match="too long"):
        read(*(stream[place : place + 7] for place in range(0, len(stream), 7)))


TEXTS = st.lists(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1), max_size=6
)
ENDS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=1, max_size=7)


def encode(events: list[list[str]], ends: list[bytes]) -> bytes:
    """An event stream whose lines end in turn as `ends` say; a CR is not followed by a bare LF, which would join it."""
    stream, place = b"", 0
    for lines in events:
        for line in [*(f"data: {line}" for line in lines), ""]:
            end = ends[place % len(ends)]
            stream += line.encode() + (b"\r\n" if not line and end == b"\n" and stream.endswith(b"\r") else end)
            place += 1
    return stream


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


def check_every_cut(events: list[list[str]], ends: list[bytes], places: list[int]) -> None:
    stream = b": comment\n" + encode(events, ends)
    assert read(*cut(stream, places)) == [Comment(" comment"), *data(*("\n".join(lines) for lines in events))]


@given(events=TEXTS, ends=ENDS, places=st.lists(st.integers(0, 10_000), max_size=20))
def test_no_cut_and_no_line_end_changes_an_event(events: list[list[str]], ends: list[bytes], places: list[int]) -> None:
    check_every_cut(events, ends, places)


@given(stream=st.binary(max_size=300), places=st.lists(st.integers(0, 10_000), max_size=20))
def test_any_bytes_give_the_same_items_however_they_are_cut(stream: bytes, places: list[int]) -> None:
    assert read(*cut(stream, places)) == read(stream)


@pytest.mark.long
def test_thousands_of_cuts_change_no_event() -> None:
    run = settings(max_examples=6000)(
        given(events=TEXTS, ends=ENDS, places=st.lists(st.integers(0, 10_000), max_size=20))(check_every_cut)
    )
    run()
