"""Constraints as matchers over a tokenizer, by llguidance: which tokens may come next, and what may end.

A grammar is compiled once and copied for each answer. Time and memory of a compilation are bounded by the library's
limits, which count steps: the worst regular expressions and schemas of the tests take some 50 ms.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from numpy.typing import NDArray
from torch import Tensor

from dslite.runtime.constraints.constraint import Constraint, parse_schema
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.text.tokenizer import Tokenizer

# White space between the parts of JSON: one line end with its indentation, or one blank. Without a bound models fall
# into endless blanks.
_WHITE_SPACE = r"(\n {0,24}| ?)"
_KEPT = 64  # compiled grammars
# Keywords that put schemas of one object together: each part leaves room for the others' properties.
_OPEN = ("allOf", "unevaluatedProperties", "$dynamicRef", "dependentSchemas")
_SPEAKS_OF_OTHERS = frozenset(("additionalProperties", "patternProperties", "$ref", "anyOf", "oneOf"))
_VALUES = frozenset(("enum", "const", "default", "examples", "required"))  # no schemas within


class AnswerMatcher:
    """The state of one answer's grammar."""

    def __init__(self, matcher: LLMatcher, tokens: int) -> None:
        """`tokens` ids have a token."""
        self._matcher = matcher
        self._tokens = tokens

    @property
    def finished(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())

    def restrict(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) of which only tokens that may come next are left. Raises DsliteError."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        allowed[: self._tokens] = torch.from_numpy(_unpacked(bits, self._tokens))
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def accept(self, token_id: int) -> None:
        """A token was drawn. Raises DsliteError where the grammar became too large to follow."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise DsliteError(
                f"the answer's grammar cannot be followed any further: {_said(self._matcher.get_error())}",
                "simplify the schema, regular expression or grammar",
            )


class ConstraintCompiler:
    """Compiles constraints for a tokenizer. May be used by several threads."""

    def __init__(self, tokenizer: Tokenizer, end_tokens: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = sorted(end_tokens)
        self._compiled: OrderedDict[tuple[Constraint, bool], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def _library_tokenizer(self) -> LLTokenizer:
        """Some 0.3 s and 42 MB for the 100,000 tokens of Lite, once."""
        text = self._tokenizer.library_json()
        return LLTokenizer(text, n_vocab=self._tokenizer.vocab_size, eos_token=self._end_tokens)

    @property
    def kept(self) -> int:
        """How many compiled grammars are kept."""
        return len(self._compiled)

    def check(self, constraint: Constraint, *, space: bool) -> None:
        """Raise UsageError, with the library's text, for a shape that it cannot enforce.

        `space` as the answer's matcher will need it: it then finds the grammar compiled.
        """
        self._template(constraint, space=space)

    def matcher(self, constraint: Constraint, *, space: bool, begun: str = "") -> AnswerMatcher:
        """A matcher at the beginning of an answer, or behind what of it is there already.

        `space`: one space may come first, as models begin an answer behind a chat template. Raises UsageError.
        """
        matcher = self._template(constraint, space=space).deep_copy()
        if begun:
            ids = self._library_tokenizer.tokenize_str(begun)
            if matcher.try_consume_tokens(ids) < len(ids):
                raise UsageError(
                    f"the answer so far does not follow the {_named(constraint)}, so it cannot be continued in it",
                    "begin a new answer",
                )
        return AnswerMatcher(matcher, self._tokenizer.vocab_size)

    def _template(self, constraint: Constraint, *, space: bool) -> LLMatcher:
        with self._lock:
            key = constraint, space
            if key not in self._compiled:
                self._compiled[key] = _compile(constraint, self._library_tokenizer, space=space)
                if len(self._compiled) > _KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return self._compiled[key]


def follows(text: str, constraint: Constraint) -> bool:
    """Whether a whole text has a shape. Raises UsageError for one that cannot be enforced."""
    tokenizer = LLTokenizer("byte")
    matcher = _compile(constraint, tokenizer, space=False)
    ids = tokenizer.tokenize_bytes(text.encode("utf-8", "surrogatepass"))
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


def _compile(constraint: Constraint, tokenizer: LLTokenizer, *, space: bool) -> LLMatcher:
    start = {"lark_grammar": "start: / ?/ @answer" if space else "start: @answer"}
    grammars = {"grammars": [start, {"name": "answer", **_body(constraint)}]}
    try:
        matcher = LLMatcher(tokenizer, json.dumps(grammars), log_level=0, limits=LLParserLimits(verbose_errors=False))
    except ValueError as error:
        raise _refused(constraint, str(error)) from None
    if matcher.is_error():
        raise _refused(constraint, matcher.get_error())
    return matcher


def _body(constraint: Constraint) -> Mapping[str, Any]:
    """The grammar in the library's terms."""
    if constraint.kind == "grammar":
        return {"lark_grammar": constraint.text}
    if constraint.kind == "regex":
        try:
            return {"lark_grammar": f"start: /{regex_to_lark(constraint.text, 'd')}/"}  # \d is 0 to 9
        except ValueError as error:
            raise _refused(constraint, str(error)) from None
    schema = parse_schema(constraint.text)
    if isinstance(schema, dict):
        if not any(f'"{key}"' in constraint.text for key in _OPEN):
            schema = _closed(schema)
        schema = schema | {"x-guidance": {"whitespace_flexible": True, "whitespace_pattern": _WHITE_SPACE}}
    return {"json_schema": schema}


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those that it lists, where it does not speak of others.

    Such an answer follows the schema as well, and a model that may invent properties goes on inventing them.
    """
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in _VALUES else _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.keys() & _SPEAKS_OF_OTHERS:
        closed["additionalProperties"] = False
    return closed


def _refused(constraint: Constraint, text: str) -> UsageError:
    return UsageError(f"this {_named(constraint)} cannot be enforced: {_said(text)}", "leave out what is named")


def _named(constraint: Constraint) -> str:
    return {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}[constraint.kind]


def _said(text: str) -> str:
    """The library's own words, as one line."""
    return " ".join(text.split())[:400] or "the library gives no reason"


def _unpacked(bits: NDArray[np.uint8], count: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
