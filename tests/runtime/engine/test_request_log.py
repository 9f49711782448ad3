"""The line behind every answer: its figures are those of the answer, and add up to the engine's."""

import json
import logging
import re
import time
from pathlib import Path

import pytest
import torch
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.forward import random_ids
from support.machines import GOLDEN, machine

from dslite.model.config import ModelConfig
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.request_log import ReadRateLog
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.events import Done, Timing
from dslite.runtime.planning.bandwidth import Bandwidths, bandwidths
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.hardware import unmeasured
from dslite.runtime.planning.machine import machine_key
from dslite.runtime.planning.placement import plan
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import load

LINE = re.compile(
    r"length: prefill of (\d+) tokens in [\d.]+ s \((\d+) cached\), decode of (\d+) in [\d.]+ s; experts: 4 slots a "
    r"layer, (\d+) hits, (\d+) misses \((\d+)% hit\), 0 computed in host memory, [\d.]+ GB moved, [\d.]+ s waiting"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture
def engine(folder: Path) -> Engine:
    checkpoint = Checkpoint.open(folder)
    made = plan(machine(0, 64), checkpoint.config, PlanRequest(dtype="float32", expert_slots=4))
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32, plan=made)
    return Engine(model, Tokenizer.from_folder(folder), context=256, eos_token_ids=[])


def request(engine: Engine, count: int, made: int) -> Request:
    ids = random_ids(count, engine.model.config.vocab_size, seed=count)
    return Request(ids, SamplingParams(temperature=0, max_tokens=made))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, ...]]:
    found = [LINE.fullmatch(record.getMessage()) for record in caplog.records if "decode of" in record.getMessage()]
    assert all(found)
    return [tuple(map(int, match.groups())) for match in found if match is not None]


def test_every_answer_leaves_its_hits_and_misses_in_the_log(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert engine.experts is not None
    stats = engine.experts.stats
    with caplog.at_level(logging.INFO, logger="dslite.runtime"):
        for _ in range(2):
            list(engine.generate(request(engine, 20, 6)))
    first, second = lines(caplog)
    assert first[:3] == (20, 0, 6)
    assert second[:3] == (1, 19, 6), "the second finds the prompt in the cache, but for its last token"
    assert first[3] + second[3] == stats.hits
    assert first[4] + second[4] == stats.misses
    assert first[5] == round(100 * first[3] / (first[3] + first[4]))


def test_answers_of_a_batch_are_logged_as_they_end(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    assert engine.experts is not None
    scheduler = Scheduler(engine)
    scheduler.add("short", request(engine, 12, 2))
    scheduler.add("long", request(engine, 15, 7))
    with caplog.at_level(logging.INFO, logger="dslite.runtime"):
        assert sum(isinstance(event, Done) for _, event in scheduler.run()) == 2
    told = lines(caplog)
    assert [line[2] for line in told] == [2, 7]
    assert sum(line[3] for line in told) == engine.experts.stats.hits


def test_a_resident_network_has_no_experts_to_tell_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = load_engine(folder, eos_token_ids=[])
    with caplog.at_level(logging.INFO, logger="dslite.runtime"):
        list(running.generate(request(running, 9, 3)))
    message = caplog.records[-1].getMessage()
    assert "decode of 3 in" in message
    assert "experts" not in message


LITE = ModelConfig.from_dict(json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text()))
LITE_READS = Footprint(LITE, "bfloat16").read_per_token  # 4.8 GB


def answer_of(tokens: int, seconds: float) -> Done:
    return Done("length", "", tuple(range(tokens)), 9, 0, timing=Timing(decode_s=seconds))


@pytest.mark.parametrize(
    ("config", "device", "tokens", "seconds", "noted"),
    [
        (LITE, "cpu", 33, 8.0, [LITE_READS * 4]),
        (LITE, "cpu", 17, 8.0, [LITE_READS * 2]),
        (LITE, "cpu", 16, 0.1, []),
        (LITE, "cpu", 33, 0.0, []),
        (LITE, "cpu", 0, 8.0, []),
        (LITE, "cuda", 33, 8.0, []),
        (LITE, "mps", 33, 8.0, []),
        (ModelConfig.from_dict(tiny_config()), "cpu", 33, 8.0, []),
    ],
)
def test_only_a_model_that_no_cache_of_a_processor_holds_shows_how_fast_memory_is(
    config: ModelConfig, device: str, tokens: int, seconds: float, noted: list[float]
) -> None:
    rates: list[float] = []
    ReadRateLog(config, device, "bfloat16", note=rates.append)(answer_of(tokens, seconds))
    assert rates == noted


def test_slower_answers_are_not_compared_again() -> None:
    rates: list[float] = []
    log = ReadRateLog(LITE, "cpu", "bfloat16", note=rates.append)
    for seconds in (8.0, 16.0, 8.0, 4.0, 5.0):
        log(answer_of(33, seconds))
    assert rates == [LITE_READS * 4, LITE_READS * 8]


@pytest.mark.parametrize(("kept", "measured"), [(0.1, 2), (100.0, 1)])
def test_an_answer_that_read_faster_than_the_kept_bandwidth_has_it_measured_again(
    hub_home: Path, kept: float, measured: int
) -> None:
    made: list[str] = []

    def measure(device: str) -> Bandwidths:
        made.append(device)
        return Bandwidths(ram=kept * LITE_READS, disk=0.0, pcie=0.0, gpu=0.0)

    def read() -> None:
        bandwidths(machine_key(unmeasured()), "cpu", measure=measure, now=lambda: time.time() - 2 * 3600)

    read()
    ReadRateLog(LITE, "cpu", "bfloat16")(answer_of(33, 8.0))
    read()
    assert len(made) == measured


def test_an_engine_compares_each_of_its_answers(folder: Path, hub_home: Path) -> None:
    running = load_engine(folder, eos_token_ids=[])
    done: list[Done] = []
    running._answer_logs = (done.append,)
    events = list(running.generate(request(running, 9, 3)))
    assert done == [events[-1]]
