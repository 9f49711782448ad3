"""DeepSeek's own API (--endpoint https://api.deepseek.com/v1), by streams and errors that it has sent.

The stream is cut from a recorded one of deepseek-v4-flash; the errors are as users reported them. The texts of the 429
and the 503 are not recorded: they have the shape of the others.
"""

import json
import threading
from typing import Any

import pytest
from support.scripted_server import ScriptedServer, events, refusal

from dslite.runtime.chat.http import Endpoint
from dslite.runtime.chat.remote import RemoteChatBackend, RemoteModel
from dslite.runtime.chat.server_errors import ErrorKind, read_error
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError
from dslite.runtime.events import ChatEvent, Done, Notice, Thinking, Token
from dslite.runtime.text.message import Message

KEEP_ALIVE = ": keep-alive\n\n"  # what comes while a request waits in DeepSeek's queue
DONE = "data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 97,
    "completion_tokens": 106,
    "total_tokens": 203,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 88},
    "prompt_cache_hit_tokens": 64,
    "prompt_cache_miss_tokens": 33,
}
TALK = [Message("user", "How many r?"), Message("assistant", "Three."), Message("user", "Where?")]


def chunk(content: str | None, reasoning: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {"content": content, "reasoning_content": reasoning}
    return {
        "id": "b1e23612-29d5-4f66-b185-fb61fdde0ac9",
        "object": "chat.completion.chunk",
        "created": 1786782776,
        "model": "deepseek-v4-flash",
        "system_fingerprint": "a26a7955944dc5c60445bff77fac9c8e",
        "choices": [{"index": 0, "delta": {**delta, **more}, "logprobs": None, "finish_reason": finish}],
        "usage": None if finish is None else USAGE,
    }


STREAM = (
    KEEP_ALIVE,
    chunk(None, "", role="assistant"),
    chunk(None, "We"),
    chunk(None, " need"),
    KEEP_ALIVE,
    chunk(None, " count"),
    chunk("There", None),
    chunk(" are", None),
    chunk(" three.", None),
    chunk("", None, "stop"),
    DONE,
)


def reply(server: ScriptedServer) -> list[ChatEvent]:
    model = RemoteModel(Endpoint(server.url, key="sk-1"), "deepseek-reasoner")
    return list(RemoteChatBackend(model).reply(TALK, SamplingParams(temperature=1.0), threading.Event()))


def test_a_recorded_stream_is_reasoning_then_an_answer_with_its_counts() -> None:
    with ScriptedServer([events(*STREAM)]) as server:
        happened = reply(server)
    assert "".join(event.text for event in happened if isinstance(event, Thinking)) == "We need count"
    assert [event.delta for event in happened if isinstance(event, Token)] == ["There", " are", " three."]
    assert not [event for event in happened if isinstance(event, Notice)]
    end = happened[-1]
    assert isinstance(end, Done)
    assert (end.text, end.finish_reason) == ("There are three.", "stop")
    assert (end.prompt_tokens, end.completion_tokens, end.cached_tokens) == (97, 106, 64)


def test_cached_tokens_are_read_where_only_deepseeks_own_count_is_sent() -> None:
    usage = {key: value for key, value in USAGE.items() if key != "prompt_tokens_details"}
    last = {**chunk("", None, "stop"), "usage": usage}
    with ScriptedServer([events(*STREAM[:-2], last, DONE)]) as server:
        end = reply(server)[-1]
    assert isinstance(end, Done)
    assert end.cached_tokens == 64


def test_reasoning_of_earlier_turns_is_not_sent_back() -> None:
    """DeepSeek answers 400 to a message with reasoning_content."""
    with ScriptedServer([events(*STREAM)]) as server:
        reply(server)
    head, _, body = server.asked[0].partition(b"\r\n\r\n")
    assert b"\r\nAuthorization: Bearer sk-1" in head
    sent = json.loads(body)
    assert sent["messages"] == [{"role": message.role, "content": message.content} for message in TALK]
    assert sent.keys() == {"model", "stream", "stream_options", "temperature", "top_p", "messages"}


def error_body(message: str, kind: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": "invalid_request_error"}})


TOO_LONG = (
    "This model's maximum context length is 131072 tokens. However, you requested 131134 tokens (122942 in the "
    "messages, 8192 in the completion). Please reduce the length of the messages or completion."
)


@pytest.mark.parametrize(
    ("status", "message", "kind", "raised", "said", "remedy"),
    [
        (402, "Insufficient Balance", "unknown_error", DsliteError, "status 402: Insufficient Balance", "top it up"),
        (
            401,
            "Authentication Fails, Your api key: ****sk-1 is invalid",
            "authentication_error",
            ModelUnavailableError,
            "refuses the key",
            "--endpoint-key-env",
        ),
        (429, "Rate Limit Reached", "unknown_error", DsliteError, "is busy: Rate Limit Reached", "try again"),
        (503, "Service is too busy", "service_unavailable_error", DsliteError, "is busy", "try again"),
        (400, TOO_LONG, "invalid_request_error", ContextFullError, "131072", "shorten the prompt"),
        (
            400,
            "deepseek-reasoner does not support successive user or assistant messages (messages[1] and messages[2] in "
            "your input). You should interleave the user/assistant messages in the message sequence.",
            "invalid_request_error",
            DsliteError,
            "successive user or assistant messages",
            "",
        ),
        (400, "Model Not Exist", "invalid_request_error", DsliteError, "Model Not Exist", ""),
    ],
)
def test_each_of_its_errors_says_what_to_do(
    status: int, message: str, kind: str, raised: type[DsliteError], said: str, remedy: str
) -> None:
    with ScriptedServer([refusal(status, error_body(message, kind))]) as server, pytest.raises(DsliteError) as caught:
        reply(server)
    assert type(caught.value) is raised
    assert said in caught.value.message
    assert remedy in caught.value.remedy
    assert len(server.asked) == 1


def test_the_context_that_its_error_names_is_known_from_then_on() -> None:
    assert read_error(400, error_body(TOO_LONG, "invalid_request_error")).context == 131072
    assert read_error(402, error_body("Insufficient Balance", "unknown_error")).kind is ErrorKind.OTHER


def test_a_429_with_a_time_to_wait_is_tried_again() -> None:
    body = error_body("Rate Limit Reached", "unknown_error").encode()
    busy = [b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)]
    with ScriptedServer([busy, events(*STREAM)]) as server:
        end = reply(server)[-1]
    assert isinstance(end, Done)
    assert (end.text, len(server.asked)) == ("There are three.", 2)


def test_an_error_in_the_middle_of_a_stream_ends_the_answer_with_its_words() -> None:
    failed = json.loads(error_body("Service is too busy", "service_unavailable_error"))
    with ScriptedServer([events(*STREAM[:7], failed)]) as server, pytest.raises(DsliteError) as caught:
        reply(server)
    assert "broke off the answer: Service is too busy" in caught.value.message
