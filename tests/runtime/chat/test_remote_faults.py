"""Servers that misbehave: an answer or an error, never a wait without end and never a silent loss."""

import contextlib
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted_server import HEAD, ScriptedServer, delta, events, refusal

from dslite.runtime.chat import http
from dslite.runtime.chat.http import Endpoint
from dslite.runtime.chat.remote import RemoteChatBackend, RemoteModel, RemoteRequest
from dslite.runtime.chat.sse import StreamItem, read_stream
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError, UsageError
from dslite.runtime.events import ChatEvent, Done, Notice, Thinking, Token, Waiting
from dslite.runtime.text.message import Message

ASKED = [Message("user", "the end")]
DONE = "data: [DONE]\n\n"


def answer(
    *script: list[bytes], params: SamplingParams | None = None, models: list[dict[str, Any]] | None = None
) -> tuple[list[ChatEvent], list[dict[str, Any]]]:
    """The events of an answer of a server with this script, and the bodies that it was sent."""
    with ScriptedServer(script, models=models) as server:
        happened = list(
            RemoteModel(Endpoint(server.url), "m").generate(RemoteRequest(params or SamplingParams(), ASKED))
        )
    return happened, [json.loads(asked.partition(b"\r\n\r\n")[2]) for asked in server.asked]


def end_of(happened: list[ChatEvent]) -> Done:
    assert isinstance(happened[-1], Done)
    assert happened[-1].text == "".join(event.delta for event in happened if isinstance(event, Token | Done))
    return happened[-1]


def notices(happened: list[ChatEvent]) -> str:
    return "\n".join(event.message for event in happened if isinstance(event, Notice))


def whole(body: str, content_type: str = "application/json") -> list[bytes]:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body.encode())}\r\n\r\n"
    return [(head + body).encode()]


def chunk(finish: str | None = None, usage: dict[str, int] | None = None, **part: Any) -> dict[str, Any]:
    return {"choices": [{"delta": part, "finish_reason": finish}], "usage": usage}


@pytest.mark.parametrize(
    ("said", "text", "finish"),
    [
        (events(delta("a\u2028b\x85c", "stop"), DONE), "a\u2028b\x85c", "stop"),
        (
            events("data: " + json.dumps(delta("a\u2028b", "stop"), ensure_ascii=False) + "\n\n", DONE),
            "a\u2028b",
            "stop",
        ),
        (events(*(f"data: {json.dumps(delta(text))}\r\r" for text in "ab"), "data: [DONE]\r\r"), "ab", "stop"),
        (events('data: {"choices":\ndata: [{"delta":{"content":"a"}}]}\n\n', DONE), "a", "stop"),
        (events(f"data: {json.dumps(delta('a'))}\ndata: {json.dumps(delta('b', 'stop'))}\n"), "ab", "stop"),
        (events(delta("a"), DONE), "a", "stop"),  # no finish_reason
        (events(delta("a", "stop")), "a", "stop"),  # no [DONE]
        (events(delta("a", "stop"), whole=False), "a", "stop"),  # broken behind its end
        (events({"choices": [{"delta": "x"}]}, delta(None, "stop")), "x", "stop"),
        (events({"choices": None}, {"usage": {}}, {}, delta("a", "eos_token"), DONE), "a", "stop"),
        (events(chunk(content=[{"type": "text", "text": "a"}, {"text": "b"}]), DONE), "ab", "stop"),
        (events(delta("\ud83d"), delta("\ude00", "stop")), "\U0001f600", "stop"),
        (events(delta("a\ud83d", "stop")), "a\ufffd", "stop"),
        (whole(json.dumps({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})), "a", "stop"),
        (whole(json.dumps({"choices": [{"message": {"content": "a"}}]}), "text/event-stream"), "a", "stop"),
        (whole("data: " + json.dumps(delta("a", "stop")) + "\n\n", "text/plain; charset=latin-1"), "a", "stop"),
        (
            whole("data: " + json.dumps(delta("é", "stop"), ensure_ascii=False), "text/plain; charset=latin-1"),
            "é",
            "stop",
        ),
    ],
)
def test_every_shape_of_a_stream_gives_its_text(said: list[bytes], text: str, finish: str) -> None:
    end = end_of(answer(said)[0])
    assert (end.text, end.finish_reason) == (text, finish)


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (whole("<html><body>data: hello</body></html>", "text/html"), ModelUnavailableError, "a web page"),
        (whole("[1, 2]"), ModelUnavailableError, "no answer of an OpenAI-compatible server"),
        (whole("hello"), DsliteError, "ended the response without an answer"),
        (whole(""), DsliteError, "ended the response without an answer"),
        (whole("null"), DsliteError, "ended the response without an answer"),
        (events(), DsliteError, "ended the response without an answer"),
        (events(": hello\n\n"), DsliteError, "ended the response without an answer"),
        (whole("{}"), ModelUnavailableError, "sends JSON that is no answer"),
        (whole('{"detail": "Not Found"}'), ModelUnavailableError, "sends JSON that is no answer: Not Found"),
        (whole('{"status": "ok", "choices": null}'), ModelUnavailableError, "sends JSON that is no answer"),
        (events(delta("a")), DsliteError, "was lost"),
        (whole('{"error": {"message": "boom"}}'), DsliteError, "broke off the answer: boom"),
        (
            events(delta("a"), {"error": {"type": "exceed_context_size_error", "n_ctx": 9}}),
            ContextFullError,
            "exceed_context_size_error",
        ),
        (events(delta("a"), 'event: error\ndata: {"message": "boom"}\n\n'), DsliteError, "boom"),
        (events(delta("a"), "event: error\ndata: boom\n\n"), DsliteError, "boom"),
        (events(delta("a", "abort"), DONE), DsliteError, "finish_reason abort"),
        (events("data: " + "[" * 100_000 + "\n\n"), DsliteError, "not JSON"),
        ([HEAD, b"zz\r\n"], DsliteError, "was lost"),
        ([b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"], DsliteError, "was lost"),
    ],
)
def test_what_is_no_answer_is_an_error(said: list[bytes], error: type[DsliteError], words: str) -> None:
    with pytest.raises(error, match=words):
        answer(said)


def test_reasoning_is_counted_and_is_no_part_of_the_answer() -> None:
    said = events(chunk(reasoning_content="so"), chunk(reasoning="and so"), delta("yes", "stop"), DONE)
    happened, _ = answer(said)
    assert [event.tokens for event in happened if isinstance(event, Thinking)] == [1, 2]
    assert end_of(happened).text == "yes"
    assert notices(happened) == ""


@pytest.mark.parametrize(
    ("said", "text", "words"),
    [
        (events(chunk(reasoning_content="so"), chunk("stop"), DONE), "", "only reasoning"),
        (events(chunk(refusal="I can"), chunk("stop", refusal="not"), DONE), "I cannot", "refuses"),
        (events(chunk(tool_calls=[{"function": {"name": "look"}}]), chunk("tool_calls"), DONE), "", "call look"),
        (events(delta("a", "content_filter"), DONE), "a", "content filter"),
        (events(delta("a", "length"), DONE), "a", "cut at a limit of 127"),
    ],
)
def test_what_the_text_does_not_show_is_a_notice(said: list[bytes], text: str, words: str) -> None:
    happened, _ = answer(said)
    assert end_of(happened).text == text
    assert words in notices(happened)


@pytest.mark.parametrize(
    ("models", "used", "finish"),
    [
        ([{"id": "m", "max_model_len": 100}], 100, "context"),
        ([{"id": "m", "max_model_len": 100}], 40, "length"),
        ([{"id": "m", "context_length": 100}], 100, "context"),
        ([{"id": "m", "meta": {"n_ctx": 100}}], 100, "context"),
        ([{"id": "m", "max_context_length": 4000, "loaded_context_length": 100}], 100, "context"),
        ([{"id": "other", "max_model_len": 100}], 100, "length"),
        ([{"id": "m"}], 100, "length"),
        (None, 100, "length"),
    ],
)
def test_an_answer_fills_the_context_only_where_the_server_says_how_large_it_is(
    models: list[dict[str, Any]] | None, used: int, finish: str
) -> None:
    said = events(chunk("length", {"prompt_tokens": used - 1, "completion_tokens": 1}, content="a"), DONE)
    happened, _ = answer(said, models=models)
    assert end_of(happened).finish_reason == finish
    assert ("cut at a limit" in notices(happened)) == (finish == "length")


def test_our_own_limit_needs_no_notice() -> None:
    happened, _ = answer(events(delta("a", "length"), DONE), params=SamplingParams(max_tokens=1))
    assert (end_of(happened).finish_reason, notices(happened)) == ("length", "")


def test_the_context_of_the_list_of_models_is_the_backends() -> None:
    with ScriptedServer([], models=[{"id": "m", "max_model_len": 4096}]) as server:
        assert RemoteChatBackend(RemoteModel(Endpoint(server.url), "m")).stats().context == 4096


BUSY = b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy"


def test_an_overloaded_server_is_asked_again() -> None:
    happened, asked = answer([BUSY], [BUSY.replace(b"429", b"503")], events(delta("a", "stop"), DONE))
    assert [event.seconds for event in happened if isinstance(event, Waiting)] == [0.0, 0.0]
    assert end_of(happened).text == "a"
    assert len(asked) == 3
    assert asked[0] == asked[2]


def test_an_overloaded_server_is_not_asked_for_ever() -> None:
    with pytest.raises(DsliteError, match="is busy: busy"):
        answer(*[[BUSY]] * 20)
    with pytest.raises(DsliteError, match="is busy") as caught:
        answer([BUSY.replace(b"After: 0", b"After: 86400")])
    assert "86,400 s" in caught.value.remedy


def test_waiting_for_an_overloaded_server_ends_with_a_cancel() -> None:
    cancel = threading.Event()
    with ScriptedServer([[BUSY.replace(b"After: 0", b"After: 50")]]) as server:
        happened: list[ChatEvent] = []
        for event in RemoteModel(Endpoint(server.url), "m").generate(RemoteRequest(SamplingParams(), ASKED), cancel):
            happened.append(event)
            cancel.set()
    assert [type(event) for event in happened] == [Waiting, Done]
    assert end_of(happened).finish_reason == "interrupted"


def refused(message: str, param: str | None = None, status: int = 400) -> list[bytes]:
    return refusal(status, json.dumps({"error": {"message": message, "param": param}}))


@pytest.mark.parametrize(
    ("answers", "gone", "come", "words"),
    [
        ([refused("Extra inputs are not permitted", "stream_options", 422)], {"stream_options"}, set(), ""),
        ([refused("'temperature' does not support 0.3", "temperature")], {"temperature"}, set(), "temperature"),
        (
            [refused("Use 'max_completion_tokens' instead of 'max_tokens'")],
            {"max_tokens"},
            {"max_completion_tokens"},
            "",
        ),
        ([refused("unknown: seed"), refused("unknown: top_k")], {"seed", "top_k"}, set(), "top_k"),
        ([refused("temperature and top_p cannot both be specified")], {"top_p"}, set(), "top_p"),
    ],
)
def test_a_request_goes_out_again_without_what_the_server_refuses(
    answers: list[list[bytes]], gone: set[str], come: set[str], words: str
) -> None:
    params = SamplingParams(max_tokens=5, seed=1, top_k=3)
    happened, asked = answer(*answers, events(delta("a", "stop"), DONE), params=params)
    assert end_of(happened).text == "a"
    assert set(asked[0]) - set(asked[-1]) == gone
    assert set(asked[-1]) - set(asked[0]) == come
    assert words in notices(happened)


def test_what_a_server_refused_once_is_not_sent_with_the_next_request() -> None:
    script = [refused("no", "stream_options"), *[events(delta("a", "stop"), DONE)] * 2]
    with ScriptedServer(script) as server:
        model = RemoteModel(Endpoint(server.url), "m")
        for _ in range(2):
            list(model.generate(RemoteRequest(SamplingParams(), ASKED)))
    assert [b"stream_options" in asked for asked in server.asked] == [True, False, False]


@pytest.mark.parametrize("name", ["stop", "messages", "max_tokens", "model"])
def test_what_cannot_be_left_out_is_an_error(name: str) -> None:
    with pytest.raises(DsliteError, match=f"status 400: {name} is wrong"):
        answer(*[refused(f"{name} is wrong", name)] * 9, params=SamplingParams(max_tokens=2, stop=("x",)))


def test_a_server_that_refuses_both_names_of_a_field_is_asked_twice() -> None:
    both = refused("give neither max_tokens nor max_completion_tokens")
    with pytest.raises(DsliteError, match="give neither"):
        answer(*[both] * 9, params=SamplingParams(max_tokens=2))


@pytest.mark.parametrize(
    "fault", [RuntimeError("odd"), MemoryError(), SystemExit(3), KeyboardInterrupt(), KeyError("x")]
)
def test_any_exception_of_the_reading_thread_reaches_the_caller(fault: BaseException) -> None:
    class Broken(Endpoint):
        def client(self, connect: float = 0, silence: float = 0) -> httpx2.Client:
            raise fault

    with pytest.raises(DsliteError, match=f"unexpected {type(fault).__name__}"):
        list(RemoteModel(Broken("http://127.0.0.1:1"), "m").generate(RemoteRequest(SamplingParams(), ASKED)))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:port/v1",
        "http://127.0.0.1:99999/v1",
        "http://127.0.0.1:0/v1",
        "http://[::1/v1",
        "http://[::zz]/v1",
        "http://exa mple/v1",
        "http://host\n/v1",
        "http://\x00/v1",
        "",
        "http:///v1",
    ],
)
def test_what_is_no_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="--endpoint"):
        Endpoint(url)


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://127.0.0.1:8000", False),
        ("http://127.8.9.1", False),
        ("http://localhost:1", False),
        ("http://[::1]:1", False),
        ("http://[::ffff:127.0.0.1]:1", False),
        ("http://app.localhost", False),
        ("http://127.0.0.1.example.com", True),
        ("http://10.0.0.1", True),
        ("http://inside.example", False),
    ],
)
def test_this_machine_is_reached_without_a_proxy(url: str, proxied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://user:passw0rd@127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    error = Endpoint(url).unreachable(httpx2.ConnectError("x"))
    assert ("HTTP_PROXY" in error.message and "HTTP_PROXY" in error.remedy) == proxied
    assert "passw0rd" not in error.message + error.remedy


def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://user:passw0rd@127.0.0.1:1")
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    with pytest.raises(ModelUnavailableError, match="the proxy that ALL_PROXY names") as caught:
        list(RemoteModel(Endpoint("http://10.0.0.1"), "m").generate(RemoteRequest(SamplingParams(), ASKED)))
    assert "passw0rd" not in caught.value.message + caught.value.remedy
    assert "ALL_PROXY" in caught.value.remedy
    Endpoint("http://127.0.0.1:1").client().close()  # not needed, so not built


# A stream of anything: chunks of many shapes, as events, cut anywhere.

PARTS = st.sampled_from(["content", "reasoning_content", "refusal", "tool_calls", "role"])
VALUES = (
    st.none()
    | st.text(max_size=5)
    | st.integers()
    | st.lists(st.dictionaries(st.just("text"), st.text(max_size=3)), max_size=2)
)
DELTAS = st.none() | st.text(max_size=4) | st.dictionaries(PARTS, VALUES, max_size=3) | st.integers()
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "delta": DELTAS,
        "finish_reason": st.none() | st.sampled_from(["stop", "length", "x"]),
        "logprobs": VALUES,
    },
)
CHUNKS = st.one_of(
    st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=2)}),
    st.fixed_dictionaries({"choices": VALUES}),
    st.fixed_dictionaries({"usage": st.dictionaries(st.just("prompt_tokens"), VALUES)}),
    st.fixed_dictionaries({"error": VALUES}),
    CHOICES,
)
LINES = st.one_of(CHUNKS.map(json.dumps), st.just("[DONE]"), st.text(max_size=8), st.just("<html>"))
STREAMS = st.lists(st.tuples(st.sampled_from(["data: ", "data:", ": ", "event: error\ndata: ", ""]), LINES), max_size=8)


class Canned(Endpoint):
    """An endpoint whose response is given bytes."""

    def __init__(self, chunks: list[bytes]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._chunks = chunks

    def post(self, path: str, body: Any, cancel: threading.Event) -> Any:
        items: list[StreamItem] = list(read_stream(self._chunks))
        return iter(items)

    def model_cards(self, timeout: float = 0) -> list[http.ModelCard]:
        return [http.ModelCard("m", 4096)]


def check_stream(lines: list[tuple[str, str]], end: bytes, places: list[int]) -> None:
    """An answer ends with a Done that has all its text, or with a DsliteError, and with nothing else."""
    stream = b"".join((name + line).encode("utf-8", "replace").replace(b"\n", end) + end * 2 for name, line in lines)
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    chunks = [stream[start:stop] for start, stop in itertools.pairwise(bounds)]
    model = RemoteModel(Canned(chunks), "m")
    happened: list[ChatEvent] = []
    with contextlib.suppress(DsliteError):
        for event in model.generate(RemoteRequest(SamplingParams(), ASKED)):
            happened.append(event)
        end_of(happened)


@settings(max_examples=150)
@given(lines=STREAMS, end=st.sampled_from([b"\n", b"\r\n", b"\r"]), places=st.lists(st.integers(0, 9999), max_size=8))
def test_any_stream_ends_in_an_answer_or_an_error(lines: list[tuple[str, str]], end: bytes, places: list[int]) -> None:
    check_stream(lines, end, places)


@pytest.mark.long
def test_thousands_of_streams_end_in_an_answer_or_an_error() -> None:
    run: Callable[[], None] = settings(max_examples=6000)(
        given(
            lines=STREAMS,
            end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
            places=st.lists(st.integers(0, 9999), max_size=8),
        )(check_stream)
    )
    run()
