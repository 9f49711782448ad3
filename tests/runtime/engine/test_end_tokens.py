"""Which tokens end an answer, and from which length on."""

from pathlib import Path

import pytest
from support.checkpoints import load_engine, write_checkpoint
from support.forward import random_ids
from support.tokenizers import BOS_ID

from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done

PROMPT = [BOS_ID, *random_ids(40, BOS_ID, seed=3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def drawn(folder: Path) -> tuple[int, ...]:
    """Twelve greedy tokens of a model without an end token."""
    return answer(load_engine(folder, eos_token_ids=[]))[0]


def answer(engine: Engine, **settings: object) -> tuple[tuple[int, ...], str]:
    params = SamplingParams(temperature=0, max_tokens=12, **settings)  # type: ignore[arg-type]
    (done,) = [event for event in engine.generate(Request(PROMPT, params)) if isinstance(event, Done)]
    return done.token_ids, done.finish_reason


def test_a_stop_token_ends_the_answer_where_it_is_first_drawn(folder: Path, drawn: tuple[int, ...]) -> None:
    ids, reason = answer(load_engine(folder, eos_token_ids=[]), stop_token_ids=(drawn[4],))
    assert ids == drawn[: drawn.index(drawn[4]) + 1]
    assert reason == "stop"


def test_ignore_eos_draws_on_behind_the_models_end_token(folder: Path, drawn: tuple[int, ...]) -> None:
    engine = load_engine(folder, eos_token_ids=[drawn[4]])
    assert answer(engine)[1] == "stop"
    assert answer(engine, ignore_eos=True) == (drawn, "length")
    assert answer(engine, ignore_eos=True, stop_token_ids=(drawn[5],))[1] == "stop"


def test_no_end_token_is_drawn_before_min_tokens(folder: Path, drawn: tuple[int, ...]) -> None:
    engine = load_engine(folder, eos_token_ids=[drawn[0]])
    assert answer(engine) == (drawn[:1], "stop")
    ids, _ = answer(engine, min_tokens=5)
    assert len(ids) > 5
    assert drawn[0] not in ids[:5]


def test_min_tokens_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="min_tokens"):
        SamplingParams(min_tokens=-1)
