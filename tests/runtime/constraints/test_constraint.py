"""Constraints as users give them, before anything is compiled."""

import json

import pytest

from dslite.runtime.constraints.checking import check_answer
from dslite.runtime.constraints.constraint import MOST_BYTES, Constraint, schema_text, with_instruction
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.text.message import Message

SCHEMA = '{"type":"object"}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be an object"),
        ("3", "must be an object"),
        ("[" * 100_000, "not valid JSON"),
        ("", "empty"),
        ('{"a":' * 80 + "{}" + "}" * 80, "nested more than 64 deep"),
        ('{"enum":["' + "x" * MOST_BYTES + '"]}', "bytes; the most is"),
    ],
)
def test_what_is_no_usable_schema_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Constraint("json_schema", text)


def test_a_schema_has_one_spelling() -> None:
    assert schema_text({"type": "string", "maxLength": 3}) == schema_text('{ "type": "string",\n "maxLength": 3 }')
    assert schema_text(True) == "true"
    with pytest.raises(UsageError):
        schema_text(["object"])


def test_an_answer_has_one_shape() -> None:
    with pytest.raises(UsageError, match="json_schema and regex exclude each other"):
        SamplingParams(json_schema=SCHEMA, regex="a")
    assert SamplingParams(regex="a+").constraint == Constraint("regex", "a+")
    assert SamplingParams().constraint is None


def test_the_model_is_told_in_the_system_message() -> None:
    ask = Message("user", "x")
    constraint = Constraint("json_schema", '{"type":"string"}')
    [first, second] = with_instruction([ask], constraint)
    assert (first.role, second) == ("system", ask)
    assert '{"type":"string"}' in first.content
    [first, _] = with_instruction([Message("system", "Be brief."), ask], constraint)
    assert first.content.startswith("Be brief.\n\nAnswer with JSON")
    assert with_instruction([ask], None) == [ask]


def test_a_servers_answer_is_checked_in_any_layout() -> None:
    wanted = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": 1}}, "required": ["a", "b"]}
    constraint = Constraint("json_schema", json.dumps(wanted))
    check_answer(' {\t"a" : 1,    "b":2}', constraint, "host")
    for text, said in (
        ('{"a": 1}', "'b' is a required property"),
        ("```json\n{}\n```", "it is not JSON"),
        ('{"a": 2, "b": 1}', r"\$.a: 1 was expected"),
    ):
        with pytest.raises(DsliteError, match=said):
            check_answer(text, constraint, "host")
    check_answer(" yes", Constraint("regex", "yes|no"), "host")
    with pytest.raises(DsliteError, match="does not follow the regex"):
        check_answer("maybe", Constraint("regex", "yes|no"), "host")
