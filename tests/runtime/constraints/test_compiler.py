"""Matchers over a tokenizer: what they let through has the shape, whatever the logits are."""

import json
import re
import time
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
import torch
from support.schemas import any_schema
from support.tokenizers import EOS_ID, N_TOKENS, VOCAB_SIZE, write_tokenizer

from dslite.runtime.constraints.compiler import ConstraintCompiler, follows
from dslite.runtime.constraints.constraint import Constraint, schema_text
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, [EOS_ID])


def schema(value: dict[str, Any] | bool) -> Constraint:
    return Constraint("json_schema", schema_text(value))


def walk(
    compiler: ConstraintCompiler, tokenizer: Tokenizer, constraint: Constraint, seed: int, most: int = 400
) -> str | None:
    """An answer of random tokens that are allowed; None where it did not end."""
    matcher, draw = compiler.matcher(constraint, space=False), torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for _ in range(most):
        logits = matcher.restrict(torch.randn(VOCAB_SIZE, generator=draw) * 3)
        assert not logits[N_TOKENS:].isfinite().any()  # rows that have no token
        token = int(logits.argmax())
        matcher.accept(token)
        if token == EOS_ID:
            return tokenizer.decode(ids)
        ids.append(token)
        if matcher.finished:
            return tokenizer.decode(ids)
    return None


def test_three_hundred_schemas_are_kept_or_refused_with_a_text(
    compiler: ConstraintCompiler, tokenizer: Tokenizer
) -> None:
    kept = refused = 0
    for number in range(300):
        wanted = any_schema(number)
        try:
            compiler.check(schema(wanted), space=False)
        except UsageError as error:
            refused += "cannot be enforced: " in error.message
            continue
        for seed in range(3):
            text = walk(compiler, tokenizer, schema(wanted), seed)
            if text is not None:
                jsonschema.validate(json.loads(text), wanted)
                kept += 1
    assert kept > 500
    assert 10 < refused < 100


@pytest.mark.parametrize("text", [r"[0-9]{3}-[a-z]{1,9}x", r"a/b\d", "(yes|no)", r"[äöü]{2}[^\n]{0,4}", "x*"])
def test_a_regular_expression_is_matched_whole(compiler: ConstraintCompiler, tokenizer: Tokenizer, text: str) -> None:
    made = [walk(compiler, tokenizer, Constraint("regex", text), seed) for seed in range(10)]
    assert all(re.fullmatch(text, one) for one in made if one is not None), made
    assert sum(one is not None for one in made) >= 5


def test_a_grammar_is_followed(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    grammar = 'start: sum\nsum: term ("+" term)*\nterm: /[0-9]{1,2}/ | "(" sum ")"'
    made = [walk(compiler, tokenizer, Constraint("grammar", grammar), seed) for seed in range(20)]
    sums = [one for one in made if one is not None]
    assert len(sums) > 10
    assert all(eval(one.replace("0", "1")) >= 0 for one in sums)


@pytest.mark.parametrize("begin", ['{"a":1}', ' {"a":1}'])
def test_one_space_may_come_before_an_answer_behind_a_template(
    compiler: ConstraintCompiler, tokenizer: Tokenizer, begin: str
) -> None:
    matcher = compiler.matcher(schema({"type": "object"}), space=True)
    for token in tokenizer.encode(begin):
        assert matcher.restrict(torch.zeros(VOCAB_SIZE))[token] == 0
        matcher.accept(token)
    with pytest.raises(DsliteError, match="cannot be followed"):
        compiler.matcher(schema({"type": "object"}), space=False).accept(tokenizer.encode(" {")[0])


def test_the_end_token_is_allowed_exactly_where_the_answer_may_end(
    compiler: ConstraintCompiler, tokenizer: Tokenizer
) -> None:
    matcher, allowed = compiler.matcher(Constraint("regex", "ab?c?"), space=False), []
    for character in ("", "a", "b"):
        for token in tokenizer.encode(character):
            matcher.accept(token)
        allowed.append(bool(matcher.restrict(torch.zeros(VOCAB_SIZE))[EOS_ID] == 0))
    assert allowed == [False, True, True]


def test_blanks_between_the_parts_of_json_are_bounded(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    for text, fine in (('{\n    "a": 1\n}', True), ('{  "a":1}', False), ('{\n\n"a":1}', False)):
        assert follows(text, schema({"type": "object"})) is fine


def test_no_property_is_invented_where_the_schema_lists_some(compiler: ConstraintCompiler) -> None:
    listed: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert follows('{"a":1}', schema(listed))
    assert not follows('{"a":1,"b":2}', schema(listed))
    inner = {"type": "object", "properties": {"properties": listed}}
    assert not follows('{"properties":{"b":2}}', schema(inner))
    for open_one in (
        listed | {"additionalProperties": True},
        {"type": "object"},
        {"allOf": [listed, {"type": "object", "properties": {"b": {"type": "integer"}}}]},
        {"enum": [{"properties": {}, "b": 2}, {"a": 1, "b": 2}]},
    ):
        assert follows('{"a":1,"b":2}', schema(open_one)), open_one


def test_an_answer_is_continued_in_its_shape(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    constraint = Constraint("regex", "abcd")
    matcher = compiler.matcher(constraint, space=True, begun="ab")
    allowed = matcher.restrict(torch.zeros(VOCAB_SIZE)).isfinite().nonzero().flatten().tolist()
    assert allowed == tokenizer.encode("c")
    with pytest.raises(UsageError, match="does not follow the regular expression"):
        compiler.matcher(constraint, space=True, begun="x")


HOSTILE: dict[str, Constraint] = {
    "nested counts": Constraint("regex", "((a{1,100}){1,100}){1,100}"),
    "backtracking": Constraint("regex", "(x+x+)+y"),
    "a count of a million": Constraint("regex", "a{1000000}"),
    "references that double": schema(
        {
            "$defs": {
                f"a{i}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/a{i + 1}"} for key in "lr"}}
                for i in range(30)
            }
            | {"a30": {"type": "string"}},
            "$ref": "#/$defs/a0",
        }
    ),
    "a reference to itself": schema({"$ref": "#"}),
    "all of itself": schema({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
    "five thousand names": schema({"enum": [f"value {i}" for i in range(5000)]}),
    "a large divisor": schema({"type": "integer", "multipleOf": 104_729}),
    "a left recursion": Constraint("grammar", 'start: start start | "a" | ""'),
    "a pattern of choices": schema({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}),
}


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_shape_costs_little(compiler: ConstraintCompiler, constraint: Constraint) -> None:
    """Compiled or refused, and its first masks, within processor time that no load of the machine changes."""
    started = time.thread_time()
    with suppress(DsliteError):
        matcher = compiler.matcher(constraint, space=True)
        for _ in range(20):
            logits = matcher.restrict(torch.randn(VOCAB_SIZE))
            if matcher.finished or not logits.isfinite().any():
                break
            matcher.accept(int(logits.argmax()))
    assert time.thread_time() - started < 10


def test_texts_of_a_server_are_checked_byte_by_byte() -> None:
    assert follows("é-7", Constraint("regex", "é-[0-9]"))
    assert not follows("é-", Constraint("regex", "é-[0-9]"))
    assert not follows("é-77", Constraint("regex", "é-[0-9]"))


def test_a_wrong_token_ends_the_answer_with_a_remedy(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.matcher(Constraint("regex", "[a-f]{4}"), space=False)
    with pytest.raises(DsliteError, match="cannot be followed any further"):
        matcher.accept(tokenizer.encode("z")[0])
    with pytest.raises(DsliteError, match="cannot be followed any further"):
        matcher.restrict(torch.zeros(VOCAB_SIZE))


def test_tokens_of_several_characters_are_read(compiler: ConstraintCompiler, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" the Assistant 你好")
    assert len(ids) < 10
    matcher = compiler.matcher(Constraint("regex", " the Assistant (你好|再见)"), space=False)
    for token in ids:
        assert matcher.restrict(torch.zeros(VOCAB_SIZE))[token] == 0
        matcher.accept(token)
    assert matcher.finished
