"""The lower bound of a text's tokens never exceeds their number, and is of use for texts that are far too long."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.from_folder(locate(parse_model("demo")))
BOUNDS = TOKENIZER.bounds


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
    | st.lists(st.sampled_from([*map(TOKENIZER.token_text, range(260, 700)), " ", "\n\n"]), max_size=60).map("".join)
)
@settings(max_examples=200)
def test_the_bound_never_exceeds_the_tokens_of_a_text(text: str) -> None:
    assert BOUNDS.least(text) <= len(TOKENIZER.encode(text))


LETTERS = "".join(random.Random(1).choices(string.ascii_letters, k=30_000))


@pytest.mark.parametrize(
    "text", ["word " * 20_000, "x" * 60_000, LETTERS, "7" * 60_000, " " * 60_000, "中文字" * 20_000]
)
def test_the_bound_of_a_long_text_is_a_fair_part_of_its_tokens(text: str) -> None:
    least = BOUNDS.least(text)
    assert least >= len(text) / BOUNDS.longest
    assert least <= len(TOKENIZER.encode(text))
