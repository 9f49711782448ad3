"""/v1/responses as the openai package, LangChain and the AI SDK use it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message

QUESTION = "How do I save a profile?"
PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

# Bodies that @ai-sdk/openai 3.0.141 sent for its default model (openai(model)), as a server received them.
AI_SDK = [
    {"model": "deepseek-chat", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
    {
        "model": "deepseek-chat",
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
            {"role": "user", "content": [{"type": "input_text", "text": "again"}]},
        ],
        "temperature": 0.3,
        "top_p": 0.9,
        "max_output_tokens": 20,
    },
]
AI_SDK_TURNS = [
    [Message("user", "hi")],
    [Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Hello."), Message("user", "again")],
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("responses"), tiny_config()), context=400)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


def ask(client: openai.OpenAI, **settings: Any) -> Any:
    return client.responses.create(**{"model": "demo", "input": QUESTION, "temperature": 0, **settings})


def events_of(server: Server, body: dict[str, Any], path: str = PATH) -> list[tuple[str, Any]]:
    """(name, object) of each event of a stream."""
    raw = json.dumps({**body, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    answer = server.raw(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw).decode()
    blocks = [block.strip("\r\n").splitlines() for block in answer.partition("\r\n\r\n")[2].split("\n\n")]
    named = [[line for line in block if line.startswith(("event: ", "data: "))] for block in blocks]
    return [(name[7:], json.loads(data[6:])) for name, data in filter(None, named)]


def test_an_answer_is_the_chats(demo_server: Server) -> None:
    client = demo_server.openai()
    answer = ask(client)
    chat = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": QUESTION}], temperature=0)
    assert chat.usage is not None
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details, answer.error) == ("completed", None, None)
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.total_tokens == chat.usage.total_tokens
    assert answer.usage.input_tokens_details.cached_tokens <= answer.usage.input_tokens
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")


def test_an_answer_has_every_field_that_openai_calls_required(demo_server: Server) -> None:
    body = {
        "model": "demo",
        "input": QUESTION,
        "include": ["message.output_text.logprobs"],
        "instructions": "Be brief.",
    }
    status, answer, _ = demo_server.request("POST", PATH, body)
    assert status == 200, answer
    checked = Response.model_validate(answer, strict=True)
    assert checked.instructions == "Be brief."
    assert checked.temperature == 0.3
    assert {name for name in answer if name not in Response.model_fields} == {"store"}  # OpenAI sends it too


def test_the_events_of_a_stream_are_openais_and_add_up_to_the_answer(demo_server: Server) -> None:
    whole = ask(demo_server.openai())
    body = {"model": "demo", "input": QUESTION, "temperature": 0}
    events = events_of(demo_server, body)
    names = [name for name, _ in events]
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(names[4:-4]) == {"response.output_text.delta"}
    assert len(names) > 12
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    for place, (name, event) in enumerate(events):
        checked = EVENT.validate_python(event, strict=True)
        assert (checked.type, checked.sequence_number) == (name, place)
    assert "".join(event["delta"] for name, event in events if name.endswith("delta")) == whole.output_text
    final = events[-1][1]["response"]
    assert final["output"][0]["content"][0]["text"] == events[-4][1]["text"] == whole.output_text
    assert final["usage"]["output_tokens"] == whole.usage.output_tokens
    assert events[0][1]["response"]["usage"] is None
    assert len({event["response"]["id"] for _, event in events if "response" in event}) == 1


def test_the_stream_helper_of_the_openai_package_ends_with_the_answer(demo_server: Server) -> None:
    client = demo_server.openai()
    with client.responses.stream(model="demo", input=QUESTION, temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(texts) == ask(client).output_text

    async def read() -> list[str]:
        async with openai.AsyncOpenAI(base_url=demo_server.url, api_key="none") as client:
            stream = await client.responses.create(model="demo", input=QUESTION, temperature=0, stream=True)
            return [event.type async for event in stream]

    assert asyncio.run(read())[-1] == "response.completed"


def test_a_cut_answer_is_incomplete_whole_and_streamed(demo_server: Server) -> None:
    answer = ask(demo_server.openai(), max_output_tokens=3)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output[0].status, answer.usage.output_tokens) == ("incomplete", 3)
    assert answer.max_output_tokens == 3
    last = list(ask(demo_server.openai(), max_output_tokens=3, stream=True))[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")
    assert last.response.output_text == answer.output_text


def test_instructions_are_a_system_message_in_front(demo_server: Server) -> None:
    client = demo_server.openai()
    by_field = ask(client, instructions="Answer as a pirate.").usage.input_tokens
    by_message = ask(
        client, input=[{"role": "system", "content": "Answer as a pirate."}, {"role": "user", "content": QUESTION}]
    )
    assert by_field == by_message.usage.input_tokens > ask(client).usage.input_tokens


def test_an_answer_goes_back_in_as_it_came(demo_server: Server) -> None:
    client = demo_server.openai()
    first = ask(client)
    turns = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And then?"}]
    second = ask(client, input=turns)
    chat = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And then?"},
        ],
        temperature=0,
    )
    assert second.output_text == chat.choices[0].message.content


def test_logprobs_come_where_they_are_included(demo_server: Server) -> None:
    client = demo_server.openai()
    included = ask(client, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        max_tokens=4,
    )
    found, expected = included.output[0].content[0].logprobs, chat.choices[0].logprobs
    assert expected is not None
    assert expected.content is not None
    assert [entry.logprob for entry in found] == pytest.approx([entry.logprob for entry in expected.content], abs=1e-4)
    assert [len(entry.top_logprobs) for entry in found] == [2] * 4
    streamed = list(ask(client, top_logprobs=2, max_output_tokens=4, stream=True))
    deltas = [entry for event in streamed if event.type.endswith("text.delta") for entry in event.logprobs]
    assert [entry.token for entry in deltas] == [entry.token for entry in found]
    assert ask(client, max_output_tokens=2).output[0].content[0].logprobs == []


def test_langchain_answers_over_the_responses_api(demo_server: Server) -> None:
    from langchain_openai import ChatOpenAI

    with httpx2.Client() as connections:
        llm = ChatOpenAI(
            model="demo",
            openai_api_key="none",
            openai_api_base=demo_server.url,
            use_responses_api=True,
            temperature=0,
            http_client=connections,
        )
        answer = llm.invoke(QUESTION)
        assert answer.text == ask(demo_server.openai()).output_text
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["output_tokens"] > 5
        assert "".join(chunk.text for chunk in llm.stream(QUESTION)) == answer.text
        assert llm.invoke([("user", QUESTION), answer, ("user", "And then?")]).text


@pytest.mark.parametrize("number", range(len(AI_SDK)))
def test_what_the_ai_sdk_sends_is_answered(server: Server, engine: Engine, number: int) -> None:
    body = {**AI_SDK[number], "temperature": 0, "max_output_tokens": 20}
    status, answer, _ = server.request("POST", PATH, body)
    assert status == 200, answer
    ids = ChatTemplate(engine.tokenizer).encode(AI_SDK_TURNS[number])
    params = SamplingParams(temperature=0, top_p=0.9, max_tokens=20)
    (expected,) = [event for event in engine.generate(Request(ids, params)) if isinstance(event, Done)]
    assert answer["usage"]["input_tokens"] == len(ids)
    assert answer["output"][0]["content"][0]["text"] == expected.text.removeprefix(" ")
    assert events_of(server, body)[-1][0] in ("response.completed", "response.incomplete")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"input": None}, "input", "a text, or a list"),
        ({"input": []}, "input", "at least one message"),
        ({"input": 5}, "input", "input is 5"),
        ({"input": ["hi"]}, "input[0]", "must be an object"),
        ({"input": [{"role": "critic", "content": "hi"}]}, "input[0].role", "system, user or assistant"),
        ({"input": [{"role": "user"}]}, "input[0].content", "must be a text"),
        ({"input": [{"role": "user", "content": "x", "colour": 1}]}, "input[0].colour", "unknown field"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "input_text",
        ),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "no message"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "stores no responses"),
        ({"input": [{"type": "web_search_call", "id": "1"}]}, "input[0].type", "must be message"),
        ({"input": [{"type": [], "id": "1"}]}, "input[0].type", "must be message"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "stores no prompts"),
        ({"background": True}, "background", "while its client waits"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "does not reason"),
        ({"include": ["web_search_call.results"]}, "include", "message.output_text.logprobs"),
        ({"include": "message.output_text.logprobs"}, "include", "a list of texts"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "must be text, json_object or json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "no schema"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "in the prompt"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tool_choice", "not trained to decide"),
        ({"max_tokens": 5}, "max_tokens", "use max_output_tokens"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages", "use input"),
        ({"n": 2}, "n", "one answer"),
        ({"instructions": 5}, "instructions", "must be a text"),
        ({"model": "gpt-4"}, "model", "not served here"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, change: dict[str, Any], param: str, words: str
) -> None:
    status, answer, _ = server.request("POST", PATH, {"input": "hi", "max_output_tokens": 2, **change})
    assert status == (404 if "model" in change else 400), answer
    assert answer["error"]["param"] == param
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"store": True, "metadata": {"a": "b"}, "user": "me", "service_tier": "auto", "truncation": "disabled"},
        {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "max_tool_calls": 3},
        {"reasoning": {"effort": None, "summary": None}, "include": ["reasoning.encrypted_content"]},
        {"text": {"format": {"type": "text"}, "verbosity": "medium"}, "stream_options": {"include_obfuscation": False}},
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none"},
        {"seed": 5, "top_k": 3, "min_p": 0.1, "stop": ["x"], "stop_token_ids": [5], "repetition_penalty": 1.1},
        {"input": [{"type": "reasoning", "summary": []}, {"type": "message", "role": "user", "content": "hi"}]},
    ],
)
def test_what_clients_send_as_default_passes(server: Server, change: dict[str, Any]) -> None:
    status, answer, _ = server.request("POST", PATH, {"input": "hi", "max_output_tokens": 2, **change})
    assert status == 200, answer
    assert answer["usage"]["output_tokens"] <= 2


def test_input_over_the_context_is_refused_with_openais_code(server: Server) -> None:
    for given in ("word " * 100_000, [{"role": "user", "content": ""}] * 500, [{"role": "user", "content": "x" * 500}]):
        status, answer, _ = server.request("POST", PATH, {"input": given})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_an_error_in_the_middle_is_an_event_that_clients_raise(engine: Engine) -> None:
    body = {"input": "hi", "max_output_tokens": 300, "ignore_eos": True}
    with serving_here(engine, Limits(seconds=0)) as slow:
        name, event = events_of(slow, body)[-1]
        assert (name, event["type"], event["code"]) == ("error", "error", "timeout")
        assert event["error"]["message"] == event["message"]
        assert EVENT.validate_python(event).message
        with pytest.raises(openai.APIError, match="was not ready"):
            for _ in slow.openai().responses.create(model="tiny", input="hi", stream=True, extra_body=body):
                pass
