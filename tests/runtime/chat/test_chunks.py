"""Chunks of answers: what OpenAI's servers send, and every unusual shape that others do."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslite.runtime.chat.chunks import (
    DONE,
    AnswerChunk,
    count_of,
    join_surrogates,
    parse_data,
    read_chunk,
    scored_tokens,
)


def choice(delta: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        (choice({"content": "a"}), AnswerChunk("a")),
        (choice({"role": "assistant", "content": None}), AnswerChunk()),
        (choice({}, "stop"), AnswerChunk(finish_reason="stop")),
        (choice("a"), AnswerChunk("a")),
        (choice(None, 7), AnswerChunk()),
        (choice(7), AnswerChunk()),
        (
            choice({"content": [{"type": "text", "text": "a"}, "b", {"text": {"value": "c"}}, None, 4]}),
            AnswerChunk("abc"),
        ),
        (choice({"content": {"text": "a"}}), AnswerChunk("a")),
        (choice({"reasoning_content": "so", "content": ""}), AnswerChunk(reasoning="so")),
        (choice({"reasoning": "so", "reasoning_content": None}), AnswerChunk(reasoning="so")),
        (choice({"refusal": "I cannot"}), AnswerChunk(refusal="I cannot")),
        (
            choice({"tool_calls": [{"index": 0, "function": {"name": "look", "arguments": ""}}, 3]}, "tool_calls"),
            AnswerChunk(tools=("look",), finish_reason="tool_calls"),
        ),
        (choice({"function_call": {"name": "look"}}), AnswerChunk(tools=("look",))),
        ({"choices": [{"text": "a", "finish_reason": "length"}]}, AnswerChunk("a", finish_reason="length")),
        ({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}, AnswerChunk("a", finish_reason="stop")),
        ({"choices": {"delta": {"content": "a"}}}, AnswerChunk("a")),
        ({"choices": [None, {"delta": {"content": "a"}}]}, AnswerChunk("a")),
        ({"choices": ["a"]}, AnswerChunk("a")),
        ({"choices": []}, AnswerChunk()),
        ({"choices": None, "usage": {"prompt_tokens": 1}}, AnswerChunk()),
        ({"object": "chat.completion.chunk"}, AnswerChunk()),
    ],
)
def test_a_chunk_of_any_shape_says_what_it_adds(chunk: dict[str, Any], expected: AnswerChunk) -> None:
    assert read_chunk(chunk) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("[DONE]", [DONE]),
        (" [DONE] ", [DONE]),
        ('{"a": 1}', [{"a": 1}]),
        ('{"a":\n1}', [{"a": 1}]),
        ('{"a": 1}\n{"b": 2}\n[DONE]', [{"a": 1}, {"b": 2}, DONE]),
    ],
)
def test_the_data_of_an_event_holds_one_chunk_or_one_a_line(data: str, expected: list[Any]) -> None:
    assert parse_data(data) == expected


@pytest.mark.parametrize("data", ["", "x", "<html>", "[1]", '"a"', "{", '{"a": 1}\nx', "[" * 100_000])
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting|line"):
        parse_data(data)


def test_scored_tokens_of_odd_shapes_are_left_out_or_unknown() -> None:
    chat = {
        "content": [
            {"token": "a", "logprob": -1, "top_logprobs": [{"token": "b", "logprob": -2}, {"token": 3}, None]},
            {"token": "c", "logprob": None, "top_logprobs": None},
            {"token": "d", "logprob": 10**400},
            {"logprob": -1},
            None,
        ]
    }
    tokens = scored_tokens(chat, 0)
    assert [(token.text, token.logprob) for token in tokens] == [("a", -1.0), ("c", None), ("d", None)]
    assert [[other.text for other in token.top or ()] for token in tokens] == [["b"], [], []]
    raw = {"tokens": ["x", 3, "y"], "token_logprobs": [None, -1.5], "top_logprobs": None, "text_offset": [0, 1, 2]}
    assert [(token.text, token.logprob, token.in_prompt) for token in scored_tokens(raw, 2)] == [
        ("x", None, True),
        ("", -1.5, True),
        ("y", None, False),
    ]
    assert scored_tokens(3, 0) == scored_tokens({"content": 3}, 0) == []


@pytest.mark.parametrize(("usage", "count"), [({"n": 3}, 3), ({"n": True}, 0), ({"n": "3"}, 0), ({"n": -1}, 0), (3, 0)])
def test_what_is_no_count_counts_nothing(usage: Any, count: int) -> None:
    assert count_of(usage, "n") == count


def test_a_pair_that_was_cut_in_two_is_joined_and_a_lone_half_is_replaced() -> None:
    assert join_surrogates("", "a\ud83d") == ("a", "\ud83d")
    assert join_surrogates("\ud83d", "\ude00b") == ("\U0001f600b", "")
    assert join_surrogates("\ud83d", "b") == ("\ufffdb", "")
    assert join_surrogates("", "\ude00") == ("\ufffd", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                "choices delta message content text reasoning_content refusal tool_calls function name finish_reason "
                "logprobs tokens top_logprobs token logprob text_offset token_logprobs usage error".split()
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(JSON)
def test_no_shape_of_a_chunk_raises(raw: Any) -> None:
    for chunk in parse_data(json.dumps({"choices": raw})):
        assert isinstance(chunk, dict)
        read = read_chunk(chunk)
        assert all(token.text is not None for token in scored_tokens(read.logprobs, 3))
