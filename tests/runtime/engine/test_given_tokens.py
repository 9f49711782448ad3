"""Tokens that an answer begins with, as another process drew them before it ended."""

from dataclasses import replace

import pytest
from support.markov_model import write_markov_model

from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.events import Done, Token


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Continues "x" with "yz" for ever."""
    return open_engine(write_markov_model(tmp_path_factory.mktemp("markov"), {"x": "y", "y": "z", "z": "x"}))


def test_given_tokens_are_taken_in_place_of_drawn_ones(engine: Engine) -> None:
    """They count, are events, and the answer goes on from them."""
    request = Request([ord("x")], SamplingParams(temperature=0.0, max_tokens=5), given=(ord("z"), ord("z")))
    *tokens, done = (event for event in engine.generate(request) if isinstance(event, Token | Done))
    assert [token.text for token in tokens if isinstance(token, Token)] == list("zzxyz")
    assert isinstance(done, Done)
    assert (done.text, done.finish_reason) == ("zzxyz", "length")


def test_an_answer_goes_on_with_the_draws_of_its_seed(engine: Engine) -> None:
    request = Request([ord("x")], SamplingParams(temperature=2.0, top_p=1.0, seed=11, max_tokens=12, ignore_eos=True))
    *_, whole = engine.generate(request)
    assert isinstance(whole, Done)
    *_, again = engine.generate(replace(request, given=whole.token_ids[:7]))
    assert isinstance(again, Done)
    assert again.token_ids == whole.token_ids
