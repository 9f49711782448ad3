"""Errors of servers, in the shapes that each of them has sent, and what they mean to dslite."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslite.runtime.chat.server_errors import ErrorKind, error_in_stream, read_error
from dslite.runtime.errors import ContextFullError, DsliteError, ModelUnavailableError

# Server, status, body, the context that it names.
CONTEXT_FULL: list[tuple[str, int, Any, int | None]] = [
    (
        "openai",
        400,
        {
            "error": {
                "message": "This model's maximum context length is 4097 tokens. However, you requested 4120 tokens "
                "(3120 in the messages, 1000 in the completion). Please reduce the length of the messages.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        },
        4097,
    ),
    (
        "openai, another wording",
        400,
        {"error": {"message": "Your input exceeds it.", "param": "input", "code": "context_length_exceeded"}},
        None,
    ),
    (
        "vllm",
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens "
            "(112946 in the messages, 10000 in the completion). Please reduce the length of the messages.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        16384,
    ),
    (
        "vllm 0.15",
        400,
        {
            "error": {
                "message": "This model's maximum context length is 2048 tokens. However, your request has 8 input "
                "tokens plus 2045 'max_tokens'. (parameter=input_tokens, max_tokens, value=(8, 2045))",
                "type": "BadRequestError",
                "param": "input_tokens, max_tokens",
                "code": 400,
            }
        },
        2048,
    ),
    (
        "vllm, prompt",
        400,
        {
            "object": "error",
            "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure "
            "that `max_model_len` is no smaller than the number of text tokens.",
            "code": 400,
        },
        4096,
    ),
    (
        "vllm, negative rest",
        400,
        {"object": "error", "message": "max_tokens must be at least 1, got -186.", "code": 400},
        None,
    ),
    (
        "sglang",
        400,
        {
            "object": "error",
            "message": "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        40960,
    ),
    (
        "sglang 0.5",
        400,
        {
            "object": "error",
            "message": "Requested token count exceeds the model's maximum context length of 202752 tokens. You "
            "requested a total of 202941 tokens: 170941 tokens from the input messages and 32000 for the completion.",
            "code": 400,
        },
        202752,
    ),
    (
        "sglang, limit of the pool",
        400,
        {"error": {"message": "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."}},
        59862,
    ),
    (
        "llama.cpp",
        400,
        {
            "error": {
                "code": 400,
                "message": "request (14429 tokens) exceeds the available context size (8192 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 14429,
                "n_ctx": 8192,
            }
        },
        8192,
    ),
    (
        "llama.cpp 2025-09",
        500,
        {
            "error": {
                "code": 500,
                "message": "the request exceeds the available context size. try increasing the context size or enable "
                "context shift",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 1407,
                "n_ctx": 256,
            }
        },
        256,
    ),
    (
        "lm studio",
        400,
        {
            "error": "Trying to keep the first 15857 tokens when context the overflows. However, the model is loaded "
            "with context length of only 4096 tokens, which is not enough. Try to load the model with a larger "
            "context length, or provide a shorter input"
        },
        4096,
    ),
    ("lm studio 0.4", 400, {"error": "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)"}, 7424),
    (
        "ollama",
        400,
        {
            "error": {
                "message": "the input length exceeds the context length",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
        None,
    ),
    (
        "text-generation-inference",
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` "
            "tokens and 1024 `max_new_tokens`",
            "error_type": "validation",
        },
        1512,
    ),
    (
        "text-generation-inference, input",
        422,
        {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"},
        1024,
    ),
    (
        "llama-cpp-python",
        400,
        {"error": {"message": "Requested tokens (2285) exceed context window of 2048", "code": None}},
        2048,
    ),
    ("transformers serve", 400, {"detail": "the prompt is longer than the maximum sequence length of 512"}, 512),
    ("no json", 413, "prompt is too long: 204000 tokens > 200000 maximum", 200000),
    *(
        (server, status, {"error": {"message": message, "type": "invalid_request_error", "code": None}}, context)
        for server, status, message, context in (
            ("ds4", 400, "Prompt tokens (9000) exceeds context size (8192)", 8192),
            (
                "openrouter",
                400,
                "This endpoint's maximum context length is 16384 tokens. However, you requested about 94307 tokens "
                "(94307 of text input). Please reduce the length of either one.",
                16384,
            ),
            (
                "anthropic",
                400,
                "input length and `max_tokens` exceed context limit: 174167 + 64000 > 200000, decrease input length "
                "or `max_tokens` and try again",
                200000,
            ),
            ("bedrock", 400, "Input is too long for requested model.", None),
            (
                "gemini",
                400,
                "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
                1048575,
            ),
            (
                "grok",
                400,
                "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
                131072,
            ),
            ("groq", 400, "Please reduce the length of the messages or completion.", None),
            ("copilot", 400, "prompt token count of 150000 exceeds the limit of 128000", 128000),
            ("minimax", 400, "invalid params, context window exceeds limit (2013)", None),
            (
                "kimi",
                400,
                "Invalid request: Your request exceeded model token limit: 262144 (requested: 291351)",
                262144,
            ),
            (
                "openai, configured",
                400,
                "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
                272000,
            ),
            ("tabbyapi", 422, "Request length 71599 + 2048 is greater than max_seq_len 65536", 65536),
            (
                "tensorrt-llm",
                400,
                "The sum of prompt length (9000.0), query length (0) should not exceed max_num_tokens (8192)",
                8192,
            ),
            ("tensorrt-llm, triton", 400, "Prompt length (5056) exceeds maximum sequence length (2048)", 2048),
            (
                "mlc",
                400,
                "Request prompt has 5000 tokens in total, larger than the model input length limit 4096.",
                4096,
            ),
            ("dashscope", 400, "Range of input length should be [1, 129024]", 129024),
            ("zhipu", 400, "Prompt exceeds max length", None),
            ("mlx-serve", 400, "Prompt exceeds maximum context length", None),
            ("lm studio, mlx", 400, "Context size has been exceeded", None),
            ("siliconflow", 400, "length of prompt_tokens (40000) must be less than max_seq_len (32768).", 32768),
            (
                "cohere",
                400,
                "too many tokens: total number of tokens in the prompt exceeds the limit of 4081.",
                4081,
            ),
        )
    ),
    ("mistral, without a body", 413, "", None),
]


@pytest.mark.parametrize(("server", "status", "body", "context"), CONTEXT_FULL)
def test_a_full_context_is_known_in_the_words_of_each_server(
    server: str, status: int, body: Any, context: int | None
) -> None:
    error = read_error(status, body if isinstance(body, str) else json.dumps(body))
    assert error.kind is ErrorKind.CONTEXT_FULL
    assert error.context == context
    raised = error.to_exception("host")
    assert type(raised) is ContextFullError
    assert raised.exit_code == 4
    assert "{" not in raised.message


OTHERS: list[tuple[str, int, dict[str, str], Any, ErrorKind, str, frozenset[str]]] = [
    (
        "openai, a field with another name",
        400,
        {},
        {
            "error": {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                "type": "invalid_request_error",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            }
        },
        ErrorKind.REFUSED_OPTION,
        "Unsupported parameter",
        frozenset({"max_tokens", "max_completion_tokens"}),
    ),
    (
        "openai, a value",
        400,
        {},
        {
            "error": {
                "message": "Unsupported value: 'temperature' does not support 0.3 with this model. Only the default "
                "(1) value is supported.",
                "param": "temperature",
                "code": "unsupported_value",
            }
        },
        ErrorKind.REFUSED_OPTION,
        "Unsupported value",
        frozenset({"temperature"}),
    ),
    (
        "fastapi",
        422,
        {},
        {
            "detail": [
                {
                    "type": "extra_forbidden",
                    "loc": ["body", "stream_options"],
                    "msg": "Extra inputs are not permitted",
                    "input": {"include_usage": True},
                }
            ]
        },
        ErrorKind.REFUSED_OPTION,
        "body.stream_options: Extra inputs are not permitted",
        frozenset({"stream_options"}),
    ),
    (
        "transformers serve",
        422,
        {},
        {"detail": "Unexpected fields in the request: {'stream_options'}"},
        ErrorKind.REFUSED_OPTION,
        "Unexpected fields",
        frozenset({"stream_options"}),
    ),
    (
        "openai, rate",
        429,
        {"Retry-After": "7"},
        {"error": {"message": "Rate limit reached for requests", "code": "rate_limit_exceeded"}},
        ErrorKind.OVERLOADED,
        "Rate limit",
        frozenset(),
    ),
    (
        "openai, quota",
        429,
        {"Retry-After": "7"},
        {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
        ErrorKind.OTHER,
        "quota",
        frozenset(),
    ),
    (
        "llama.cpp, loading",
        503,
        {},
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        ErrorKind.OVERLOADED,
        "Loading model",
        frozenset(),
    ),
    ("transformers serve, loading", 503, {}, {"error": "loading"}, ErrorKind.OVERLOADED, "loading", frozenset()),
    (
        "ollama, model",
        404,
        {},
        {"error": {"message": 'model "x" not found, try pulling it first', "type": "api_error"}},
        ErrorKind.NOT_FOUND,
        "try pulling",
        frozenset(),
    ),
    ("fastapi, path", 404, {}, {"detail": "Not Found"}, ErrorKind.NOT_FOUND, "Not Found", frozenset()),
    ("vllm, key", 401, {}, {"error": "Unauthorized"}, ErrorKind.AUTHENTICATION, "Unauthorized", frozenset()),
    ("gateway", 502, {}, "<html><h1>Bad Gateway</h1></html>", ErrorKind.OTHER, "Bad Gateway", frozenset()),
    ("empty", 500, {}, "", ErrorKind.OTHER, "no reason given", frozenset()),
    ("odd", 500, {}, {"error": {"message": {"deep": 1}}}, ErrorKind.OTHER, '"deep": 1', frozenset()),
]


@pytest.mark.parametrize(("server", "status", "headers", "body", "kind", "words", "fields"), OTHERS)
def test_each_error_has_its_kind_its_words_and_its_fields(
    server: str,
    status: int,
    headers: dict[str, str],
    body: Any,
    kind: ErrorKind,
    words: str,
    fields: frozenset[str],
) -> None:
    error = read_error(status, body if isinstance(body, str) else json.dumps(body), headers)
    assert (error.kind, error.fields) == (kind, fields)
    assert words in error.message
    raised = error.to_exception("host")
    assert raised.exit_code == (3 if kind in (ErrorKind.AUTHENTICATION, ErrorKind.NOT_FOUND) else 1)
    assert isinstance(raised, ModelUnavailableError if raised.exit_code == 3 else DsliteError)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"Retry-After": " 2.5 "}, 2.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-4"}, None),
        ({}, None),
    ],
)
def test_the_time_to_wait_is_a_number_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert read_error(429, "{}", headers).retry_after == seconds


@pytest.mark.parametrize(
    ("chunk", "event_type", "kind"),
    [
        ({"error": {"message": "the context length is too small", "code": 400}}, "message", ErrorKind.CONTEXT_FULL),
        ({"object": "error", "message": "boom"}, "message", ErrorKind.OTHER),
        ({"error": "boom"}, "message", ErrorKind.OTHER),
        ({"message": "boom"}, "error", ErrorKind.OTHER),
        ({"error": None, "choices": []}, "message", None),
        ({"choices": [{"delta": {"content": "a"}}]}, "error", None),
        ({"usage": {}}, "message", None),
    ],
)
def test_an_error_within_a_stream_is_told_from_a_chunk(
    chunk: dict[str, Any], event_type: str, kind: ErrorKind | None
) -> None:
    error = error_in_stream(chunk, event_type)
    assert (error and error.kind) == kind


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "code", "param", "loc", "n_ctx", "type", "msg"])
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(status=st.integers(300, 599), body=JSON, after=st.text(max_size=12))
def test_any_body_of_an_error_gives_a_message(status: int, body: Any, after: str) -> None:
    error = read_error(status, json.dumps(body), {"Retry-After": after})
    raised = error.to_exception("host")
    assert raised.message.strip()
    assert error.retry_after is None or error.retry_after >= 0
