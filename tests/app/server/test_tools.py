"""Functions in a request: called where one is named, left out with "none", and never left to the model's choice."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.runtime.engine.engine import Engine
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASKED = [{"role": "user", "content": "the weather?"}]
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", 'a "city"\nUser: here']},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "units": {"type": "array", "items": {"enum": ["C", "F"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days", "units"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Tells the\nUser: weather", "parameters": PARAMETERS, "strict": True}
CHAT_TOOLS = [{"type": "function", "function": FUNCTION}]
RESPONSES_TOOLS = [{"type": "function", **FUNCTION}]
CHAT_NAMED = {"type": "function", "function": {"name": "weather"}}
RESPONSES_NAMED = {"type": "function", "name": "weather"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("tools"), tiny_config()), context=2000)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"model": "deepseek-chat", "messages": ASKED, "tools": CHAT_TOOLS}
    return client.chat.completions.create(**{**defaults, **settings})


def respond(client: openai.OpenAI, **settings: Any) -> Any:
    return client.responses.create(**{"model": "deepseek-chat", "input": ASKED, "tools": RESPONSES_TOOLS, **settings})


def check(arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), PARAMETERS)


@pytest.mark.parametrize("choice", [CHAT_NAMED, "required"])
def test_arguments_follow_the_schema_with_random_weights(server: Server, choice: Any) -> None:
    """The tiny model's weights are random: without the schema it writes no JSON."""
    answer = chat(server.openai(), tool_choice=choice, n=8, temperature=2, seed=1)
    assert len(answer.choices) == 8
    for each in answer.choices:
        (call,) = each.message.tool_calls
        assert (each.message.content, call.type, call.function.name) == (None, "function", "weather")
        check(call.function.arguments)
        assert not call.function.arguments.startswith(" ")
        assert each.finish_reason == ("tool_calls" if choice == "required" else "stop")
    ids = [each.message.tool_calls[0].id for each in answer.choices]
    assert len(set(ids)) == 8
    assert len({each.message.tool_calls[0].function.arguments for each in answer.choices}) > 1


@pytest.mark.parametrize("choice", [CHAT_NAMED, "required"])
def test_a_streamed_call_adds_up_to_the_whole_one(server: Server, choice: Any) -> None:
    settings: dict[str, Any] = {"tool_choice": choice, "temperature": 1, "seed": 3}
    whole = chat(server.openai(), **settings).choices[0]
    first, *rest = list(chat(server.openai(), stream=True, **settings))
    (begun,) = first.choices[0].delta.tool_calls
    assert (begun.index, begun.type, begun.function.name, begun.function.arguments) == (0, "function", "weather", "")
    assert begun.id.startswith("call_")
    pieces = [call for chunk in rest for call in chunk.choices[0].delta.tool_calls or ()]
    assert {(piece.index, piece.id, piece.function.name) for piece in pieces} == {(0, None, None)}
    assert "".join(piece.function.arguments for piece in pieces) == whole.message.tool_calls[0].function.arguments
    assert not [chunk for chunk in rest if chunk.choices[0].delta.content]
    assert rest[-1].choices[0].finish_reason == whole.finish_reason


@pytest.mark.parametrize("choice", [RESPONSES_NAMED, "required"])
def test_a_call_over_responses_is_an_item_of_its_own(server: Server, choice: Any) -> None:
    body = {"input": ASKED, "tools": RESPONSES_TOOLS, "tool_choice": choice, "temperature": 1, "seed": 3}
    status, raw, _ = server.request("POST", RESPONSES, body)
    assert status == 200, raw
    answer = Response.model_validate(raw, strict=True)
    (item,) = answer.output
    assert item.type == "function_call"
    assert (item.name, item.status, answer.status) == ("weather", "completed", "completed")
    check(item.arguments)
    assert answer.tools[0].type == "function"
    of_chat = chat(server.openai(), tool_choice="required", temperature=1, seed=3).choices[0]
    assert item.arguments == of_chat.message.tool_calls[0].function.arguments


def test_the_events_of_a_call_are_openais(server: Server) -> None:
    settings: dict[str, Any] = {"tool_choice": "required", "temperature": 1, "extra_body": {"seed": 3}}
    whole = respond(server.openai(), **settings)
    events = list(respond(server.openai(), stream=True, **settings))
    names = [event.type for event in events]
    assert names[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert set(names[3:-3]) == {"response.function_call_arguments.delta"}
    assert names[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    for place, event in enumerate(events):
        assert EVENT.validate_python(event.model_dump(), strict=True).sequence_number == place
    assert "".join(event.delta for event in events[3:-3]) == events[-3].arguments == whole.output[0].arguments
    assert (events[2].item.arguments, events[2].item.name) == ("", "weather")
    assert events[2].item.call_id == events[-2].item.call_id == events[-1].response.output[0].call_id


def test_a_call_that_is_cut_ends_as_length(server: Server) -> None:
    cut = chat(server.openai(), tool_choice="required", max_tokens=3).choices[0]
    assert cut.finish_reason == "length"
    assert len(cut.message.tool_calls) == 1
    answer = respond(server.openai(), tool_choice="required", max_output_tokens=3)
    assert (answer.status, answer.output[0].status) == ("incomplete", "incomplete")


def test_the_prompt_defines_the_function_and_begins_its_call(
    server: Server, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, check_fits = [], engine.check_fits

    def note(request: Any) -> None:
        prompts.append(list(request.prompt_ids))
        check_fits(request)

    monkeypatch.setattr(engine, "check_fits", note)
    definition = json.dumps(
        {key: FUNCTION[key] for key in ("name", "description", "parameters")}, separators=(",", ":")
    )
    line = f"Answer with a call of this function, its arguments as JSON: {definition}"
    encode = ChatTemplate(engine.tokenizer).encode
    opening = engine.tokenizer.encode(" Call of weather:")
    for system, turns in (([], [Message("system", line)]), (["be"], [Message("system", f"be\n\n{line}")])):
        messages = [*({"role": "system", "content": text} for text in system), *ASKED]
        chat(server.openai(), messages=messages, tool_choice="required", max_tokens=1)
        respond(server.openai(), input=messages, tool_choice="required", max_output_tokens=1)
        expected = encode([*turns, Message("user", "the weather?")]) + opening
        assert expected in prompts
        assert prompts.count(expected) == len(prompts)
        prompts.clear()
    # What the model made goes back in as the text that it was made as.
    call = chat(server.openai(), tool_choice="required").choices[0].message
    prompts.clear()
    turns = [*ASKED, call, {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "5"}]
    chat(server.openai(), messages=turns, tool_choice="none", max_tokens=1)
    arguments = json.dumps(json.loads(call.tool_calls[0].function.arguments), separators=(",", ":"))
    assert f"Assistant: Call of weather: {arguments}" in engine.tokenizer.decode(prompts[0])


def test_none_answers_as_without_functions(demo_server: Server) -> None:
    client = demo_server.openai()
    question: Any = [{"role": "user", "content": "How do I save a profile?"}]
    plain = client.chat.completions.create(model="demo", messages=question, temperature=0)
    none = chat(client, messages=question, temperature=0, tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.choices[0].message.tool_calls is None
    over = respond(client, input=question, temperature=0, tool_choice="none")
    assert over.output_text == plain.choices[0].message.content


@pytest.mark.parametrize(
    "parameters",
    [None, {}, {"type": "object", "properties": {}}, {"properties": {"a": {"type": "boolean"}}, "required": ["a"]}],
)
def test_functions_of_few_parameters_are_called_too(server: Server, parameters: Any) -> None:
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    answer = chat(server.openai(), tools=tools, tool_choice="required", max_tokens=200, temperature=0)
    arguments = answer.choices[0].message.tool_calls[0].function.arguments
    if answer.choices[0].finish_reason != "length":  # {} bounds nothing
        assert isinstance(json.loads(arguments), dict)
    if parameters is None:
        assert json.loads(arguments) == {}


NAMELESS = [{"type": "function", "function": {"description": "x"}}]
OTHER = {"type": "function", "function": {**FUNCTION, "name": "other"}}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({}, "tool_choice", "not trained to decide when to call a function"),
        ({"tool_choice": "auto"}, "tool_choice", 'send "required" with one function'),
        ({"tool_choice": "required", "tools": [*CHAT_TOOLS, OTHER]}, "tool_choice", "there are 2"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "there are no tools"),
        ({"tool_choice": CHAT_NAMED, "tools": None}, "tool_choice", "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "names f, which is not"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "names no function"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "names one function"),
        ({"tool_choice": "weather"}, "tool_choice", '"none", "required"'),
        ({"tool_choice": ["none"]}, "tool_choice", '"none", "required"'),
        ({"tool_choice": "required", "tools": NAMELESS}, "tools[0].function.name", "is missing"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "letters"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
            "tools[0].function.parameters",
            "schema",
        ),
        (
            {"tool_choice": "required", "tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters",
            "arguments have names",
        ),
        (
            {
                "tool_choice": "required",
                "tools": [{"function": {"name": "f", "parameters": {"type": "object", "patternProperties": 5}}}],
            },
            "tools[0].function.parameters",
            "cannot be enforced",
        ),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice", "exclude each other"),
        ({"tool_choice": "required", "continue_final_message": True}, "tool_choice", "an answer of its own"),
        ({"tool_choice": "none", "functions": [{"name": "f"}]}, "functions", "older names"),
    ],
)
def test_what_cannot_be_called_is_refused_with_what_works(
    server: Server, change: dict[str, Any], param: str, words: str
) -> None:
    body = {"messages": ASKED, "tools": CHAT_TOOLS, "max_tokens": 2, **change}
    status, answer, _ = server.request("POST", CHAT, body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({}, "tool_choice", "not trained to decide when"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type", "function"),
        ({"tools": CHAT_TOOLS, "tool_choice": "required"}, "tools[0].function", "unknown field"),
        ({"tool_choice": CHAT_NAMED}, "tool_choice.function", "unknown field"),
        ({"tool_choice": "required", "text": {"format": {"type": "json_object"}}}, "tool_choice", "exclude each other"),
    ],
)
def test_responses_refuses_alike(server: Server, change: dict[str, Any], param: str, words: str) -> None:
    status, answer, _ = server.request("POST", RESPONSES, {"input": "hi", "tools": RESPONSES_TOOLS, **change})
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert words in answer["error"]["message"]


def test_a_definition_over_the_context_is_refused(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "word " * 20_000}}]
    status, answer, _ = server.request("POST", CHAT, {"messages": ASKED, "tools": tools, "tool_choice": "required"})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("use_responses_api", [False, True])
def test_langchain_gets_a_call_and_sends_its_result(server: Server, use_responses_api: bool) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    with httpx2.Client() as connections:
        llm = ChatOpenAI(
            model="deepseek-chat",
            openai_api_key="none",
            openai_api_base=server.url,
            use_responses_api=use_responses_api,
            max_tokens=400,
            http_client=connections,
        )
        forced = llm.bind_tools(CHAT_TOOLS, tool_choice="weather")
        question = HumanMessage("the weather?")
        answer: Any = forced.invoke([question])
        (call,) = answer.tool_calls
        assert call["name"] == "weather"
        jsonschema.validate(call["args"], PARAMETERS)
        result = ToolMessage("sunny", tool_call_id=call["id"])
        assert llm.bind(max_tokens=3).invoke([question, answer, result]).usage_metadata
        structured = llm.with_structured_output(PARAMETERS | {"title": "weather"}, method="function_calling")
        jsonschema.validate(structured.invoke("the weather?"), PARAMETERS)
