"""Answers of a given shape over the API: what real clients send, and every name that servers know it under."""

import json
import re
from typing import Any, Literal

import httpx2
import jsonschema
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field
from support.schemas import bounded_schema
from support.serving import Server, serving_here

from dslite.runtime.engine.engine import Engine

ASKED = [{"role": "user", "content": "How do I save a profile?"}]


class Part(BaseModel):
    title: str = Field(max_length=12)
    weight: int = Field(ge=0, le=9)


class Report(BaseModel):
    kind: Literal["short", "long"]
    parts: list[Part] = Field(max_length=3)
    note: str | None = Field(max_length=8)


def post(server: Server, path: str, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.post(f"{server.url}{path}", json=body, timeout=60)


def text(server: Server, path: str = "/chat/completions", **fields: Any) -> str:
    asked: dict[str, Any] = {"messages": ASKED} if path == "/chat/completions" else {"prompt": "x"}
    answer = post(server, path, {**asked, "max_tokens": 300, **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    made = choice["message"]["content"] if "message" in choice else choice["text"]
    assert isinstance(made, str)
    return made


def test_openais_parse_gives_a_nested_model(demo_server: Server) -> None:
    client = demo_server.openai()
    for seed in range(5):
        answer = client.chat.completions.parse(
            model="demo", messages=ASKED, response_format=Report, seed=seed, temperature=1.2
        )
        report = answer.choices[0].message.parsed
        assert isinstance(report, Report)


def test_a_streamed_shape_adds_up(demo_server: Server) -> None:
    with demo_server.openai().chat.completions.stream(
        model="demo", messages=ASKED, response_format=Report, seed=3
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Report)


def test_langchain_gives_a_model(demo_server: Server) -> None:
    chat = ChatOpenAI(base_url=demo_server.url, api_key="none", model="demo", max_retries=0)
    made = chat.with_structured_output(Report, method="json_schema").invoke("How do I save a profile?")
    assert isinstance(made, Report)


def test_two_hundred_bounded_objects_of_the_demo_model_are_valid(demo_server: Server) -> None:
    for number in range(0, 200, 8):
        wanted = bounded_schema(number)
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted, "strict": True}}
        answer = post(
            demo_server,
            "/chat/completions",
            {"messages": ASKED, "n": 8, "seed": number, "temperature": 1.5, "response_format": form},
        )
        assert answer.status_code == 200, answer.text
        for choice in answer.json()["choices"]:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), wanted)


KIND = {"enum": ["short", "long"], "type": "string"}
DIGIT = {"maximum": 9, "minimum": 0, "type": "integer"}
RECORDED = {  # bodies as these clients send them for a model like Report, shortened
    "instructor 1.17, JSON_SCHEMA": {
        "name": "Report",
        "schema": {
            "$defs": {"Part": {"properties": {"weight": DIGIT}, "required": ["weight"], "type": "object"}},
            "properties": {"kind": KIND, "parts": {"items": {"$ref": "#/$defs/Part"}, "maxItems": 3, "type": "array"}},
            "required": ["kind", "parts"],
            "title": "Report",
            "type": "object",
        },
    },
    "pydantic-ai 2.38, NativeOutput": {
        "name": "Report",
        "schema": {
            "properties": {"kind": KIND, "n": DIGIT},
            "required": ["kind", "n"],
            "type": "object",
            "additionalProperties": False,
        },
        "strict": False,
    },
    "ai 5, generateObject": {
        "schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {"kind": KIND, "n": DIGIT},
            "required": ["kind", "n"],
            "additionalProperties": False,
        },
        "strict": True,
        "name": "response",
    },
    "llm 0.36, --schema": {
        "name": "output",
        "schema": {"type": "object", "properties": {"kind": KIND, "n": {"type": "integer"}}, "required": ["kind", "n"]},
    },
}


@pytest.mark.parametrize("form", RECORDED.values(), ids=RECORDED)
def test_what_other_clients_send_gives_a_valid_object(demo_server: Server, form: dict[str, Any]) -> None:
    made = text(demo_server, response_format={"type": "json_schema", "json_schema": form}, temperature=0)
    jsonschema.validate(json.loads(made), form["schema"])


WORD = {"type": "object", "properties": {"w": {"enum": ["yes", "no"]}}, "required": ["w"]}
REMOTE = {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/"}}}
BOUND = WORD | {"additionalProperties": False}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BOUND}}},
        {"structured_outputs": {"json": BOUND}},
        {"structured_outputs": {"json": json.dumps(BOUND)}},
        {"guided_json": BOUND},
        {"json_schema": BOUND},
        # As ollama's and other clients' OpenAI mode sends it beside what changes nothing.
        {"guided_json": json.dumps(BOUND), "guided_decoding_backend": "xgrammar"},
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_a_schema_is_known_under_every_name(demo_server: Server, path: str, fields: dict[str, Any]) -> None:
    assert json.loads(text(demo_server, path, **fields))["w"] in ("yes", "no")


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-c]{4}"}}, "[a-c]{4}"),
        ({"guided_regex": "[a-c]{4}"}, "[a-c]{4}"),
        ({"regex": "[a-c]{4}"}, "[a-c]{4}"),
        ({"structured_outputs": {"choice": ["a.b", "北京/?"]}}, r"a\.b|北京/\?"),
        ({"guided_choice": ["left", "right (2)"]}, r"left|right \(2\)"),
        ({"structured_outputs": {"grammar": 'start: "x" /[0-9]/'}}, "x[0-9]"),
        ({"grammar": 'start: "x" /[0-9]/'}, "x[0-9]"),
        ({"guided_grammar": 'start: "x" /[0-9]/'}, "x[0-9]"),
    ],
)
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_other_shapes_are_known_too(demo_server: Server, path: str, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text(demo_server, path, **fields))


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
def test_a_json_object_of_any_kind_is_valid_or_cut(demo_server: Server, fields: dict[str, Any]) -> None:
    answer = post(demo_server, "/chat/completions", {"messages": ASKED, "max_tokens": 200, **fields}).json()
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize(
    ("fields", "said", "param"),
    [
        ({"guided_regex": "a(?=b)"}, "look-around", "guided_regex"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems", "guided_json"),
        ({"response_format": REMOTE}, "http://x", "response_format"),
        ({"grammar": 'root ::= "a"'}, "grammar cannot be enforced", "guided_grammar"),
        ({"guided_json": 7}, "guided_json", "guided_json"),
        ({"guided_json": "{"}, "not valid JSON", "guided_json"),
        ({"guided_json": {"type": "object"}, "regex": "a"}, "exclude each other", "guided_regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "exclude each other", "structured_outputs.regex"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(
    demo_server: Server, fields: dict[str, Any], said: str, param: str
) -> None:
    for stream in (False, True):
        answer = post(demo_server, "/chat/completions", {"messages": ASKED, "stream": stream, **fields})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert said in error["message"]
        assert error["param"] == param


def test_the_model_is_told_of_the_schema(demo_server: Server) -> None:
    client = demo_server.openai()

    def prompt_tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=1, **fields)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": BOUND}}
    assert prompt_tokens(response_format=form) > prompt_tokens() + 20


def test_a_cut_object_is_a_length_error_of_the_client(demo_server: Server) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        demo_server.openai().chat.completions.parse(
            model="demo", messages=ASKED, response_format=Report, max_completion_tokens=3
        )


def test_responses_take_a_schema_and_parse_it(demo_server: Server) -> None:
    client = demo_server.openai()
    made = client.responses.parse(model="demo", input="How do I save a profile?", text_format=Report, temperature=0.5)
    assert isinstance(made.output_parsed, Report)
    form = {"type": "json_schema", "name": "x", "schema": BOUND}
    answer = client.responses.create(model="demo", input="hi", text={"format": form})
    assert json.loads(answer.output_text)["w"] in ("yes", "no")
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize("path", ["/completions", "/chat/completions"])
def test_a_schema_is_compiled_once_for_an_answer(demo_engine: Engine, path: str) -> None:
    demo_engine.forget()
    with serving_here(demo_engine) as server:
        for _ in range(2):
            assert text(server, path, regex="(yes|no)") in ("yes", "no")
    assert demo_engine.constraints.kept == 1
