"""Tokens drawn by the kernels of a GPU, in Triton's interpreter, against the sampler of the host."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model.kernels import triton_sampling
from dslite.runtime.device import PlainDevice
from dslite.runtime.engine import device_sampling
from dslite.runtime.engine.device_sampling import DAMAGED, draw
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling import Sampler
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.errors import NumericsError
from dslite.runtime.events import Done

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here")

HOST = PlainDevice(torch.device("cpu"))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampling, "BLOCK", 32)


def logits_of(rows: int, count: int, seed: int) -> Tensor:
    """Logits that differ by 1/16 at least, so that rounding decides nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(4 * count, generator=generator)[:count] / 16 - count / 8 for _ in range(rows)])


@given(st.lists(PARAMS, min_size=1, max_size=3), st.integers(0, 2**32), st.integers(0, 1000))
@settings(max_examples=40)
def test_the_same_tokens_are_drawn_as_on_the_host(params: list[SamplingParams], seed: int, position: int) -> None:
    logits, tokens = logits_of(len(params), 70, seed), 67
    logits[:, tokens:] = 1000  # entries of the vocabulary without a token
    samplers = [Sampler(one, [0] * position, tokens) for one in params]
    drawn = draw(logits, [sampler.race for sampler in samplers], tokens, HOST)
    assert drawn == [sampler.sample(row) for sampler, row in zip(samplers, logits, strict=True)]


def test_an_answer_drawn_on_a_device_is_the_hosts_token_by_token() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=7, repetition_penalty=1.3)
    host, there = Sampler(params, [1, 2], 60), Sampler(params, [1, 2], 60)
    for step in range(30):
        row = logits_of(1, 60, step)
        [token] = draw(there.penalise(row[0])[None], [there.race], 60, HOST)
        there.note(token)
        assert token == host.sample(row[0])


def test_chances_are_those_of_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    chances, counts = logits[0].softmax(-1), torch.zeros(4)
    rows, drawn = logits.expand(50, 4), 0
    for begin in range(0, 1500, 50):
        races = [Sampler(SamplingParams(temperature=1.0, top_p=1.0, seed=begin + n), [], 4).race for n in range(50)]
        for token in draw(rows, races, 4, HOST):
            counts[token] += 1
            drawn += 1
    assert (counts / drawn - chances).abs().max() < 4 * (0.25 / drawn) ** 0.5


@pytest.mark.parametrize("together", [1, 3])
def test_answers_are_those_that_the_host_draws(tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampling, "BLOCK", 256)
    engine = load_engine(write_checkpoint(tmp_path, tiny_config(), seed=4), context=100, eos_token_ids=[])
    many = [
        SamplingParams(temperature=0, max_tokens=5),
        SamplingParams(temperature=1.0, top_p=1.0, seed=1, max_tokens=7),
        SamplingParams(temperature=0.7, top_p=0.9, seed=2, max_tokens=6, repetition_penalty=1.2, min_tokens=6),
    ]

    def answers() -> list[tuple[int, ...]]:
        scheduler = Scheduler(engine, max_sequences=together)
        for number, params in enumerate(many):
            scheduler.add(number, Request([3, 4, 5 + number], params, logprobs=0))
        ends = {key: event for key, event in scheduler.run() if isinstance(event, Done)}
        return [ends[number].token_ids for number in range(len(many))]

    on_host = answers()
    rows: list[int] = []
    monkeypatch.setattr(device_sampling, "usable", lambda logits: not rows.append(len(logits)))
    assert answers() == on_host
    assert max(rows) == together


def test_pieces_of_a_prompt_before_its_last_draw_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw waits for the device."""
    folder = write_checkpoint(tmp_path, tiny_config(), seed=4)
    engine = load_engine(folder, context=100, eos_token_ids=[], prefill_chunk=5)
    rows: list[int] = []

    def drawn(logits: Tensor, *_: object) -> list[int]:
        rows.append(len(logits))
        return [7] * len(logits)

    monkeypatch.setattr(device_sampling, "usable", lambda logits: True)
    monkeypatch.setattr(device_sampling, "draw", drawn)
    scheduler = Scheduler(engine)
    scheduler.add("short", Request([3, 4], SamplingParams(max_tokens=6)))
    scheduler.add("long", Request(list(range(23)), SamplingParams(max_tokens=2)))
    ends = {key: event.token_ids for key, event in scheduler.run() if isinstance(event, Done)}
    assert ends == {"short": (7,) * 6, "long": (7, 7)}
    assert sum(rows) == 8  # the tokens of both answers
    assert max(rows) == 2


def test_a_sequence_whose_logits_are_damaged_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(write_checkpoint(tmp_path, tiny_config(), seed=4), context=100, eos_token_ids=[])
    monkeypatch.setattr(device_sampling, "usable", lambda logits: True)
    monkeypatch.setattr(device_sampling, "draw", lambda logits, *_: [7, DAMAGED][: len(logits)])
    scheduler = Scheduler(engine)
    for number in range(2):
        scheduler.add(number, Request([3, 4, 5 + number], SamplingParams(max_tokens=4)))
    events = list(scheduler.run())
    assert [key for key, event in events if isinstance(event, NumericsError)] == [1]
    assert [event.token_ids for _, event in events if isinstance(event, Done)] == [(7, 7, 7, 7)]


GREEDY = Sampler(SamplingParams(temperature=0), [], 100).race
DRAWN = Sampler(SamplingParams(temperature=1.0, seed=3), [], 100).race


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("race", [GREEDY, DRAWN, replace(DRAWN, top_p=0.5)], ids=["greedy", "drawn", "filtered"])
def test_logits_that_are_no_numbers_are_told_and_other_rows_drawn(bad: float, race: object) -> None:
    logits = logits_of(3, 100, 1)
    logits[1, 77] = bad
    drawn = draw(logits, [race] * 3, 100, HOST)  # type: ignore[list-item]
    assert [token == DAMAGED for token in drawn] == [False, True, False]


def test_tokens_of_minus_infinity_are_never_drawn() -> None:
    logits = torch.full((2, 80), -torch.inf)
    logits[0, 41], logits[1, 79] = -50.0, 3.0
    assert draw(logits, [GREEDY, DRAWN], 80, HOST) == [41, 79]


def test_of_equal_logits_the_lower_id_is_the_greedy_choice() -> None:
    logits = torch.zeros(1, 90)
    logits[0, [35, 36, 70]] = 2.0
    assert draw(logits, [GREEDY], 90, HOST) == [35]


def test_tokens_that_are_equal_at_the_edge_of_a_filter_all_take_part() -> None:
    logits = torch.zeros(1, 8)
    race = replace(DRAWN, top_k=3)
    seen = {draw(logits, [replace(race, key=key)], 8, HOST)[0] for key in range(200)}
    assert seen == set(range(8))
