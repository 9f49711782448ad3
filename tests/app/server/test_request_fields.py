"""Every field of a request is honoured, accepted without effect for a reason, or refused; none is ignored."""

import typing
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    chat_completion_assistant_message_param,
    chat_completion_stream_options_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import response_create_params
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.json_fields import Object, ObjectList, Support, Table
from dslite.app.server.limits import Limits
from dslite.app.server.request_fields import chat_fields, completion_fields
from dslite.app.server.responses import token_string
from dslite.app.server.responses_request import response_fields
from dslite.runtime.engine.engine import Engine

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    TEXT: {"prompt": "hi", "max_tokens": 2},
    RESPONSES: {"input": "hi", "max_output_tokens": 2},
}
TABLES = {CHAT: chat_fields(Limits()), TEXT: completion_fields(Limits()), RESPONSES: response_fields(Limits())}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("fields"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


def send(server: Server, path: str, change: dict[str, Any]) -> tuple[int, Any]:
    status, answer, _ = server.request("POST", path, {**GOOD[path], **change})
    return status, answer


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        # Misspelt or invented.
        (CHAT, {"max_token": 5}, "did you mean max_tokens?"),
        (TEXT, {"max_token": 5}, "did you mean max_tokens?"),
        (CHAT, {"temprature": 1}, "did you mean temperature?"),
        (CHAT, {"Temperature": 1}, "did you mean temperature?"),
        (TEXT, {"stop_token_id": [5]}, "did you mean stop_token_ids?"),
        (CHAT, {"nosuch": 1}, "unknown field"),
        (CHAT, {"stream_options": {"include_useage": True}}, "did you mean stream_options.include_usage?"),
        (CHAT, message(contents="x"), "did you mean messages[0].content?"),
        (CHAT, message(mood="x"), "messages[0].mood"),
        (CHAT, message(content=[{"type": "text", "text": "x", "colour": 1}]), "messages[0].content[0].colour"),
        (CHAT, message(content=[{"type": "text", "texts": "x"}]), "did you mean messages[0].content[0].text?"),
        # Known elsewhere, and not supported here.
        (TEXT, {"response_format": {"type": "json"}}, "must be text, json_object or json_schema"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "the type json_schema, and no schema"),
        (CHAT, {"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag is not supported"),
        (TEXT, {"tools": [{"type": "function"}]}, "/v1/chat/completions"),
        (CHAT, {"tools": [{"type": "function"}]}, "not trained to decide"),
        (CHAT, {"tools": [{"type": "function"}], "tool_choice": "auto"}, "not trained to decide"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"functions": [{"name": "f"}]}, "use tools and tool_choice"),
        (CHAT, {"frequency_penalty": 0.1}, "repetition_penalty"),
        (CHAT, {"logit_bias": {"1": 5}}, "logit_bias"),
        (CHAT, {"mirostat": 2}, "mirostat"),
        (CHAT, {"min_keep": 3}, "min_keep"),
        (CHAT, {"typical_p": 0.5}, "typical_p"),
        (TEXT, {"use_beam_search": True}, "beam search"),
        (CHAT, {"skip_special_tokens": False}, "skip_special_tokens"),
        (CHAT, {"echo": True}, "/v1/completions"),
        (CHAT, {"reasoning_effort": "high"}, "does not reason"),
        (CHAT, {"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
        (CHAT, {"chat_template": "{{ messages }}"}, "chat_template"),
        (TEXT, {"num_ctx": 8192}, "--ctx-size"),
        (TEXT, {"options": {"temperature": 1}}, "options"),
        (CHAT, message(tool_call_id="x"), "tool_call_id"),
        # Of the right name, and of the wrong kind.
        (CHAT, {"temperature": "0.7"}, "it must be a number from 0 to 2"),
        (CHAT, {"max_tokens": "5"}, "max_tokens"),
        (CHAT, {"max_tokens": 5.5}, "max_tokens"),
        (CHAT, {"seed": 1.5}, "seed"),
        (CHAT, {"seed": "1"}, "seed"),
        (CHAT, {"n": True}, "n is true"),
        (CHAT, {"stream": 1}, "stream is 1"),
        (CHAT, {"stop": ["x"] * 65}, "at most 64 texts"),
        (CHAT, {"stop_token_ids": [10**9]}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": [True]}, "stop_token_ids"),
        (CHAT, {"min_tokens": 3}, "min_tokens is more than max_tokens"),
        (CHAT, {"repeat_penalty": 1.5, "repetition_penalty": 1.2}, "two names of one field"),
        (TEXT, {"max_tokens": 3, "n_predict": 4}, "two names of one field"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs needs logprobs"),
        (TEXT, {"n": 2, "best_of": 1}, "best_of"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    server: Server, path: str, change: dict[str, Any], words: str
) -> None:
    status, answer = send(server, path, change)
    assert status == 400, answer
    assert words in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "change",
    [
        # Harmless.
        {"user": "someone"},
        {"store": True},
        {"metadata": {"a": "b"}},
        {"service_tier": "auto"},
        {"prompt_cache_key": "x"},
        {"prompt_cache_retention": "24h"},
        {"safety_identifier": "x"},
        {"cache_prompt": True, "id_slot": -1},
        {"stream_options": {"include_obfuscation": False}},
        # What clients write out as the default.
        {"seed": -1},
        {"seed": 0},
        {"seed": -(2**63)},
        {"seed": 2**70},
        {"seed": 3.0},
        {"max_tokens": 2.0},
        {"max_tokens": None, "n_predict": 2},
        {"model": None},
        {"model": ""},
        {"n": None},
        {"n": 1.0},
        {"top_k": -1},
        {"top_k": 0},
        {"top_k": 40.0},
        {"top_p": 1},
        {"top_p": 0},
        {"min_p": 0.0},
        {"repetition_penalty": 1},
        {"repeat_penalty": 1.0, "repetition_penalty": 1, "repeat_last_n": -1},
        {"logprobs": None},
        {"logprobs": False, "top_logprobs": 0},
        {"logit_bias": {}},
        {"logit_bias": {"1": 0, "2": 0.0}},
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"stop": None},
        {"stop": ""},
        {"stop": []},
        {"stop": [f"never {number}" for number in range(24)]},
        {"stop": [f"never {number}" for number in range(64)]},
        {"stop_token_ids": []},
        {"stop_token_ids": [5], "min_tokens": 1, "ignore_eos": True},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tools": None, "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"grammar": ""},
        {"guided_json": None, "guided_choice": None},
        {"mirostat": 0, "mirostat_tau": 5.0, "typical_p": 1.0, "xtc_probability": 0.0, "dry_multiplier": 0},
        {"use_beam_search": False, "length_penalty": 1.0},
        {"skip_special_tokens": True, "include_stop_str_in_output": False},
        {"best_of": 1},
        {"unknown_to_all": None},
    ],
)
def test_what_asks_for_nothing_special_passes(server: Server, path: str, change: dict[str, Any]) -> None:
    status, answer = send(server, path, change)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize(
    "change",
    [
        {"parallel_tool_calls": False},
        {"modalities": ["text"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"max_completion_tokens": 2.0},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"add_generation_prompt": True, "continue_final_message": False},
        {"reasoning_effort": "none"},
        message(name="Ann"),
        message(content=[{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]),
        {
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": "hello",
                    "refusal": None,
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                    "reasoning_content": "hm",
                },
                {"role": "user", "content": "hi", "tool_calls": []},
            ]
        },
    ],
)
def test_what_chats_send_as_default_passes(server: Server, change: dict[str, Any]) -> None:
    status, answer = send(server, CHAT, change)
    assert status == 200, answer


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_minus_one_is_a_new_seed_and_all_that_the_context_leaves(server: Server, path: str) -> None:
    hot = {"temperature": 2, "top_p": 1, "max_tokens": 30, "ignore_eos": True}
    texts = {str(send(server, path, {**hot, "seed": -1})[1]["choices"]) for _ in range(3)}
    assert len(texts) == 3
    fixed = {str(send(server, path, {**hot, "seed": seed})[1]["choices"]) for seed in (5, 5 - 2**63, 5 + 2**65, 5.0)}
    assert len(fixed) == 1
    usage = send(server, path, {"max_tokens": -1, "ignore_eos": True})[1]["usage"]
    assert usage["total_tokens"] == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_stop_tokens_end_an_answer_from_min_tokens_on(engine: Engine, server: Server, path: str) -> None:
    long = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    scored = send(server, path, {**long, "logprobs": path == CHAT or 0})[1]
    assert scored["usage"]["completion_tokens"] == 12
    found = scored["choices"][0]["logprobs"]
    tokens = [entry["token"] for entry in found["content"]] if path == CHAT else found["tokens"]
    size = engine.tokenizer.vocab_size
    ends = [token_id for token_id in range(size) if token_string(engine.tokenizer, token_id) == tokens[4]]
    stopped = send(server, path, {**long, "stop_token_ids": ends})[1]
    assert stopped["usage"]["completion_tokens"] == tokens.index(tokens[4]) + 1
    assert stopped["choices"][0]["finish_reason"] == "stop"
    later = send(server, path, {**long, "stop_token_ids": ends, "min_tokens": 8})[1]
    assert later["usage"]["completion_tokens"] > 8


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_repeat_penalty_is_repetition_penalty(server: Server, path: str) -> None:
    long = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    plain, one, other = (
        str(send(server, path, {**long, **more})[1]["choices"])
        for more in ({}, {"repeat_penalty": 3}, {"repetition_penalty": 3.0})
    )
    assert one == other != plain


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_every_field_may_be_null(server: Server, path: str) -> None:
    names = {name for name in TABLES[path].fields if name not in GOOD[path]}
    status, answer = send(server, path, dict.fromkeys(names))
    assert status == 200, answer


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_every_value_that_asks_for_nothing_passes(server: Server, path: str) -> None:
    for name, field in TABLES[path].fields.items():
        for value in field.no_op:
            if isinstance(value, str | int | float | list | dict) or value is None:
                status, answer = send(server, path, {name: value})
                assert status == 200, (name, value, answer)


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_every_refused_field_is_refused_with_its_own_reason(server: Server, path: str) -> None:
    for field in TABLES[path].with_support(Support.REFUSED):
        status, answer = send(server, path, {field.name: {"a value": "that is no default"}})
        assert status == 400, field.name
        assert field.about in answer["error"]["message"]
        assert answer["error"]["param"] == field.name


def known(parameters: Any) -> set[str]:
    return set(typing.get_type_hints(parameters))


def nested(path: str, name: str) -> Table:
    kind = TABLES[path].fields[name].kind
    assert isinstance(kind, Object | ObjectList)
    return kind.fields


def test_the_tables_know_every_field_of_the_openai_package() -> None:
    assert known(chat_create_params.CompletionCreateParamsBase) <= TABLES[CHAT].fields.keys()
    assert known(completion_create_params.CompletionCreateParamsBase) <= TABLES[TEXT].fields.keys()
    assert known(response_create_params.ResponseCreateParamsBase) <= TABLES[RESPONSES].fields.keys()
    options = known(chat_completion_stream_options_param.ChatCompletionStreamOptionsParam)
    assert options <= nested(CHAT, "stream_options").fields.keys()
    turn = known(chat_completion_assistant_message_param.ChatCompletionAssistantMessageParam)
    assert turn <= nested(CHAT, "messages").fields.keys()
