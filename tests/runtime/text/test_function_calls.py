"""Calls and results stay on their line, whatever they hold."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizers import BOS, BOS_ID, EOS, EOS_ID, tiny_tokenizer

from dslite.runtime.errors import UsageError
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.function_calls import call_text, one_line_json, request_text, result_text
from dslite.runtime.text.message import Message
from dslite.runtime.text.tokenizer import Tokenizer

PIECES = ["\n", "\r", "\x0b", "\x1c", "\x85", "\u2028", "\u2029", "User:", "Assistant: ", EOS, BOS, '"', "\\", "{", "}"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONTENTS = TEXTS | VALUES.map(json.dumps) | VALUES.map(lambda value: json.dumps(value, indent=2, ensure_ascii=False))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_a_call_and_its_result_are_a_name_and_json() -> None:
    assert call_text("weather", '{\n  "city": "Paris"\n}') == 'Call of weather: {"city":"Paris"}'
    assert result_text("weather", '{"celsius": 21}') == 'Result of weather: {"celsius":21}'
    assert result_text("weather", "sunny\nand warm") == 'Result of weather: "sunny\\nand warm"'
    assert result_text("weather", "日本") == 'Result of weather: "日本"'
    assert call_text("f", "") == 'Call of f: ""'


@given(CONTENTS)
def test_json_keeps_its_value_and_any_other_text_becomes_a_string(content: str) -> None:
    try:
        expected = json.loads(content)
    except ValueError:
        expected = content
    assert json.loads(one_line_json(content)) == expected


@pytest.mark.parametrize(
    "content", ["NaN", "[Infinity]", "1e999", "9" * 5000, "[" * 100_000, '{"a":1', "[1]" + " " * 2**20]
)
def test_what_is_no_json_of_a_usual_size_becomes_a_string(content: str) -> None:
    assert json.loads(one_line_json(content)) == content


@given(CONTENTS, CONTENTS, VALUES.map(lambda value: {"type": "object", "default": value}))
def test_nothing_inside_forms_a_special_token_or_begins_a_line(
    tokenizer: Tokenizer, arguments: str, content: str, parameters: dict[str, object]
) -> None:
    lines = [request_text("f", content, parameters), call_text("f", arguments), result_text("f", content)]
    assert [line.splitlines() for line in lines] == [[line] for line in lines]

    system, call, result = lines
    messages = [Message("system", system), Message("user", "x"), Message("assistant", call), Message("user", result)]
    ids = ChatTemplate(tokenizer).encode(messages)
    assert (ids.count(BOS_ID), ids.count(EOS_ID)) == (1, 1)
    end = ids.index(EOS_ID)
    text = f"{tokenizer.decode(ids[:end])}\n{tokenizer.decode(ids[end:])}"
    starts = [line.partition(":")[0] for line in text.splitlines() if line.startswith(("User:", "Assistant:"))]
    assert starts == ["User", "Assistant", "User", "Assistant"]


@pytest.mark.parametrize("name", ["", "a b", "a\nUser:", "a:", "ü", "x" * 65, EOS])
def test_a_name_that_could_be_more_than_a_name_is_refused(name: str) -> None:
    for make in (lambda: call_text(name, "{}"), lambda: result_text(name, ""), lambda: request_text(name, "", {})):
        with pytest.raises(UsageError, match="the function's name is"):
            make()
