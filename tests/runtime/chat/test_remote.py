"""Servers as engines: dslite's own, one that was not written here, and scripted ones that misbehave."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.scripted_server import HANG, HEAD, ScriptedServer, delta, events, refusal
from support.serving import Server, serving_here

from dslite.app.server.limits import Limits
from dslite.runtime.chat.http import ConnectionLostError, Endpoint
from dslite.runtime.chat.remote import RemoteChatBackend, RemoteModel, RemoteRequest
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError, UsageError
from dslite.runtime.events import Done, Event, Prefilling, Token
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message

GREEDY = SamplingParams(temperature=0, max_tokens=12)
ASKED = [Message("user", "the end")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("remote"), tiny_config()), context=2000)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


def scripted(server: ScriptedServer, **settings: Any) -> RemoteModel:
    return RemoteModel(Endpoint(server.url, **settings), "m")


def text_of(happened: list[Event]) -> str:
    return "".join(event.delta for event in happened if isinstance(event, Token | Done))


def end_of(happened: list[Event]) -> Done:
    assert isinstance(happened[-1], Done)
    return happened[-1]


def alone(engine: Engine, request: Request) -> list[Event]:
    return list(engine.generate(request))


def test_a_chat_over_dslite_is_the_chat_in_process(server: Server, engine: Engine) -> None:
    model = RemoteModel(Endpoint(server.url), "tiny")
    assert model.endpoint.models() == ["tiny", "deepseek-chat"]
    happened = list(RemoteChatBackend(model).reply(ASKED, GREEDY, threading.Event()))
    expected = end_of(alone(engine, Request(ChatTemplate(engine.tokenizer).encode(ASKED), GREEDY)))
    end = end_of(happened)
    assert text_of(happened) == end.text == expected.text.removeprefix(" ")
    assert (end.finish_reason, end.prompt_tokens) == ("length", expected.prompt_tokens)
    assert (end.completion_tokens, end.token_ids) == (len(expected.token_ids), ())
    assert all(token.id is None for token in happened if isinstance(token, Token))


def test_an_answer_without_a_bound_ends_with_the_context(server: Server, engine: Engine) -> None:
    model = RemoteModel(Endpoint(server.url), "tiny")
    request = RemoteRequest(SamplingParams(temperature=0), text="x" * 1990)
    assert end_of(list(model.generate(request))).finish_reason == "length"  # completions have a bound of their own
    chat = RemoteRequest(SamplingParams(temperature=0), [Message("user", "x" * 1970)])
    assert end_of(list(model.generate(chat))).finish_reason == "context"


def test_going_on_with_a_cut_answer_gives_the_whole_one(server: Server, engine: Engine) -> None:
    # The tiny model's bytes are rarely text; a cut behind whole characters is one that goes back in as it was.
    chat, cancel = RemoteChatBackend(RemoteModel(Endpoint(server.url), "tiny")), threading.Event()
    begun = [*ASKED, Message("assistant", "the end is")]
    rest = text_of(list(chat.reply(begun, GREEDY, cancel, continue_final_message=True)))
    template = ChatTemplate(engine.tokenizer)
    ids = template.encode(ASKED) + engine.tokenizer.encode(" the end is")
    assert rest == end_of(alone(engine, Request(ids, GREEDY))).text


def test_raw_text_is_scored_as_in_process(server: Server, engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    request = RemoteRequest(params, text="the ant", bos=False, logprobs=2, echo=True)
    tokens = [
        event for event in RemoteModel(Endpoint(server.url), "tiny").generate(request) if isinstance(event, Token)
    ]
    inside = alone(engine, Request(engine.tokenizer.encode("the ant"), params, logprobs=2, echo=True))
    expected = [event for event in inside if isinstance(event, Token)]
    assert [token.in_prompt for token in tokens] == [token.in_prompt for token in expected]
    assert tokens[0].logprob is None
    assert [token.logprob for token in tokens[1:]] == pytest.approx([token.logprob for token in expected[1:]], abs=1e-4)


def test_chat_logprobs_come_through(server: Server, engine: Engine) -> None:
    request = RemoteRequest(GREEDY, ASKED, logprobs=2)
    happened = list(RemoteModel(Endpoint(server.url), "tiny").generate(request))
    tokens = [event for event in happened if isinstance(event, Token) and event.top is not None]
    ids = ChatTemplate(engine.tokenizer).encode(ASKED)
    expected = [event for event in alone(engine, Request(ids, GREEDY, logprobs=2)) if isinstance(event, Token)]
    assert [token.logprob for token in tokens] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    assert all(token.top and len(token.top) == 2 for token in tokens)


def test_reading_a_long_prompt_is_told(engine: Engine) -> None:
    request = RemoteRequest(SamplingParams(max_tokens=1), text="y" * 1500)
    with serving_here(engine, Limits(silence_seconds=0)) as server:
        model = RemoteModel(Endpoint(server.url), "tiny")
        told = [event for event in model.generate(request) if isinstance(event, Prefilling)]
    assert len(told) > 1
    assert (told[-1].done, told[-1].total) == (1501, 1501)


def test_cancel_ends_an_answer_and_the_server_hears_of_it() -> None:
    with ScriptedServer([[*events(delta("so "), delta("far"), whole=False), HANG]]) as server:
        cancel = threading.Event()
        happened: list[Event] = []
        for event in scripted(server).generate(RemoteRequest(GREEDY, ASKED), cancel):
            happened.append(event)
            if text_of(happened) == "so far":
                cancel.set()
        assert (end_of(happened).finish_reason, end_of(happened).text) == ("interrupted", "so far")
        assert server.left.wait(30)


@pytest.mark.parametrize("said", [[], [HEAD]])
def test_cancel_leaves_a_server_that_is_silent(said: list[bytes]) -> None:
    with ScriptedServer([[*said, HANG]]) as server:
        cancel = threading.Event()
        threading.Timer(0.2, cancel.set).start()
        happened = list(scripted(server).generate(RemoteRequest(GREEDY, ASKED), cancel))
        assert (end_of(happened).finish_reason, end_of(happened).text) == ("interrupted", "")
        assert server.left.wait(30)


@pytest.mark.parametrize("whole", [True, False])
def test_a_lost_connection_keeps_what_came_and_says_so(whole: bool) -> None:
    with ScriptedServer([events(delta("so "), delta("far"), whole=whole)]) as server:
        happened: list[Event] = []
        with pytest.raises(ConnectionLostError, match="was lost in the middle of the answer"):
            happened.extend(scripted(server).generate(RemoteRequest(GREEDY, ASKED)))
        assert text_of(happened) == "so far"


def test_an_error_in_the_stream_is_told() -> None:
    with ScriptedServer([events(delta("so"), {"error": {"message": "out of memory"}})]) as server:
        happened: list[Event] = []
        with pytest.raises(DsliteError, match="broke off the answer: out of memory"):
            happened.extend(scripted(server).generate(RemoteRequest(GREEDY, ASKED)))
        assert text_of(happened) == "so"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refusal(401, '{"error": {"message": "bad key"}}'), ModelUnavailableError, "refuses the key: bad key"),
        (refusal(404, '{"error": {"message": "no model m"}}'), ModelUnavailableError, "no model m"),
        (
            refusal(400, '{"error": {"message": "too long", "code": "context_length_exceeded"}}'),
            ContextFullError,
            "too long",
        ),
        (
            refusal(400, '{"message": "This model\'s maximum context length is 4096"}'),  # as vLLM has written it
            ContextFullError,
            "maximum context length",
        ),
        (refusal(503, "<html>busy</html>"), DsliteError, "is busy: <html>busy</html>"),
        (refusal(500, ""), DsliteError, "status 500: no reason given"),
        (refusal(302, ""), DsliteError, "status 302"),
        (
            [b"HTTP/1.1 307 No\r\nLocation: https://api.example/v1/x\r\nContent-Length: 0\r\n\r\n"],
            DsliteError,
            "status 307: it redirects to https://api.example/v1/x",
        ),
        (refusal(403, '{"error": "not this host"}'), ModelUnavailableError, "refuses the request: not this host"),
        ([b"220 mail.example ESMTP\r\n\r\n"], ModelUnavailableError, "what it sends is not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Ty"], ModelUnavailableError, "it closed the connection"),
        (events("data: <html>\n\n"), DsliteError, "sends what is not JSON"),
        ([b"nonsense\r\n\r\n"], ModelUnavailableError, "cannot be reached"),
        ([], ModelUnavailableError, "cannot be reached"),
    ],
)
def test_what_a_server_refuses_is_said_in_our_words(answer: list[bytes], error: type[DsliteError], words: str) -> None:
    with ScriptedServer([answer]) as server, pytest.raises(error, match=words) as caught:
        list(scripted(server, key="k3y").generate(RemoteRequest(GREEDY, ASKED)))
    assert type(caught.value) is error
    assert "k3y" not in caught.value.message + caught.value.remedy


def test_a_server_without_tls_is_told() -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        model = RemoteModel(Endpoint(f"https://127.0.0.1:{listener.getsockname()[1]}/v1"), "m")
        with pytest.raises(ModelUnavailableError, match="write http:// in place of https://"):
            list(model.generate(RemoteRequest(GREEDY, ASKED)))
        thread.join()


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ModelUnavailableError, match="connection refused"):
        Endpoint(f"http://127.0.0.1:{port}").models()
    with pytest.raises(ModelUnavailableError, match="its name is unknown"):
        list(RemoteModel(Endpoint("http://no-such-name.invalid/v1"), "m").generate(RemoteRequest(GREEDY, ASKED)))


@pytest.mark.parametrize("answer", ["[]", '{"data": 1}', "<html>"])
def test_what_is_no_such_server_is_told(answer: str) -> None:
    class Odd(ScriptedServer):
        def _list(self) -> bytes:
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n{answer}".encode()

    with Odd([]) as server, pytest.raises(ModelUnavailableError):
        Endpoint(server.url).models()


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host/v1?key=1", "file:///etc"])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--endpoint"):
        Endpoint(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint("http://user:passw0rd@host/v1")
    assert "passw0rd" not in caught.value.message + caught.value.remedy


def test_the_key_is_in_one_header_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedServer([events(delta("x", "stop"), "data: [DONE]\n\n")]) as server:
        model = scripted(server, key="k3y")
        list(model.generate(RemoteRequest(GREEDY, ASKED)))
    (asked,) = server.asked
    assert asked.lower().count(b"authorization: bearer k3y") == asked.count(b"k3y") == 1
    assert "k3y" not in caplog.text + repr(model.endpoint) + repr(vars(model))


def test_only_what_is_wanted_is_sent_besides_openais_names() -> None:
    answers = [events(delta("x", "stop"), "data: [DONE]\n\n")] * 2
    with ScriptedServer(answers) as server:
        model = scripted(server)
        list(model.generate(RemoteRequest(SamplingParams(), ASKED)))
        params = SamplingParams(seed=1, max_tokens=2, stop=("a",), top_k=5, min_p=0.1, repetition_penalty=1.1)
        params = replace(params, stop_token_ids=(7,))
        list(model.generate(RemoteRequest(params, text="t", bos=False, parse_special=True)))
    plain, full = (json.loads(asked.partition(b"\r\n\r\n")[2]) for asked in server.asked)
    assert set(plain) == {"model", "stream", "stream_options", "temperature", "top_p", "messages"}
    wanted = {"seed": 1, "max_tokens": 2, "stop": ["a"], "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    wanted |= {"stop_token_ids": [7], "parse_special": True}
    assert wanted.items() <= full.items()
    assert (full["prompt"], full["add_special_tokens"]) == ("t", False)


def test_a_server_that_counts_nothing_is_shown_as_unknown() -> None:
    with ScriptedServer([events(delta(" hi"), delta(None, "stop"))]) as server:
        chat = RemoteChatBackend(scripted(server))
        end = end_of(list(chat.reply(ASKED, GREEDY, threading.Event())))
        assert (end.text, end.finish_reason) == ("hi", "stop")
        assert (end.prompt_tokens, end.cached_tokens, end.completion_tokens) == (0, 0, 0)
        facts = chat.stats()
        assert (facts.name, facts.context, facts.memory, facts.experts) == ("m", 0, {}, {})


def test_old_turns_are_forgotten_by_halves() -> None:
    turns = [Message("user" if number % 2 == 0 else "assistant", str(number)) for number in range(9)]
    with ScriptedServer([]) as server:
        chat = RemoteChatBackend(scripted(server))
        kept = chat.trim_to_fit([Message("system", "s"), *turns])
        assert [message.content for message in kept] == ["s", "4", "5", "6", "7", "8"]
        assert [message.content for message in chat.trim_to_fit(turns[:1])] == ["0"]


@pytest.mark.slow
def test_transformers_serve_is_chatted_with() -> None:
    """A server that was not written here: `transformers serve`, of the extra transformers[serving]."""
    demo = Path(__file__).parents[3] / "assets" / "demo"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    words = ["serve", "--port", str(port), "--device", "cpu", "--dtype", "float32", "--log-level", "info", str(demo)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([program, *words], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert any("running on" in line for line in process.stderr)
        chat = RemoteChatBackend(RemoteModel(Endpoint(f"http://127.0.0.1:{port}"), str(demo)))
        asked = [Message("user", "How do I save a profile?")]
        happened = list(chat.reply(asked, SamplingParams(temperature=0, max_tokens=200), threading.Event()))
        end = end_of(happened)
        assert end.finish_reason == "stop"
        assert "profile" in end.text
        assert end.prompt_tokens == 17
        assert len([event for event in happened if isinstance(event, Token)]) > 5
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
