"""Answers of a network that are forced into a shape: alone, in a batch, continued, and drawn on a device."""

import json
from pathlib import Path

import jsonschema
import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.schemas import bounded_schema

from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.events import Done

PROMPT = [5, 9, 3]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config()), context=1200)


def answer(engine: Engine, params: SamplingParams, **more: object) -> Done:
    events = list(engine.generate(Request(PROMPT, params, **more)))  # type: ignore[arg-type]
    assert isinstance(events[-1], Done)
    return events[-1]


def test_two_hundred_bounded_objects_of_random_weights_are_valid(engine: Engine) -> None:
    """Many at once, each with a shape of its own, beside answers that have none."""
    scheduler, found = Scheduler(engine), {}
    for number in range(200):
        text = json.dumps(bounded_schema(number))
        scheduler.add(number, Request(PROMPT, SamplingParams(temperature=1.5, seed=number, json_schema=text), spaces=1))
    for number in range(3):
        scheduler.add(("free", number), Request(PROMPT, SamplingParams(seed=number, max_tokens=20)))
    for key, event in scheduler.run():
        assert not isinstance(event, DsliteError), event
        if isinstance(event, Done):
            found[key] = event
    for number in range(200):
        assert found[number].finish_reason == "stop", bounded_schema(number)
        jsonschema.validate(json.loads(found[number].text), bounded_schema(number))


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine: Engine) -> None:
    params = [SamplingParams(temperature=1.2, seed=n, regex="[a-z]{3,9}( [a-z]{2}){1,3}") for n in range(4)]
    alone = [answer(engine, one).text for one in params]
    scheduler = Scheduler(engine)
    for number, one in enumerate(params):
        scheduler.add(number, Request(PROMPT, one))
    together = {key: event.text for key, event in scheduler.run() if isinstance(event, Done)}
    assert [together[number] for number in range(4)] == alone
    assert len(set(alone)) == 4


def test_an_answer_ends_with_its_shape_whatever_min_tokens_and_ignore_eos_say(engine: Engine) -> None:
    done = answer(engine, SamplingParams(seed=1, regex="(ab){2}", min_tokens=50, ignore_eos=True))
    assert (done.text, done.finish_reason) == ("abab", "stop")


def test_an_answer_that_is_cut_says_so(engine: Engine) -> None:
    assert answer(engine, SamplingParams(seed=1, regex="a{30}", max_tokens=3)).finish_reason == "length"
    assert answer(engine, SamplingParams(seed=1, regex="a{3}", max_tokens=3)).finish_reason == "stop"


def test_a_begun_answer_goes_on_in_its_shape_or_is_whole_already(engine: Engine) -> None:
    params = SamplingParams(seed=1, regex="abcdef")
    assert answer(engine, params, begun="abcd").text == "ef"
    assert answer(engine, params, begun="abcdef").text == ""
    with pytest.raises(UsageError, match="does not follow"):
        answer(engine, params, begun="xyz")


def test_text_that_waits_for_a_stop_text_is_kept_where_the_shape_ends(engine: Engine) -> None:
    assert answer(engine, SamplingParams(seed=1, regex="abc", stop=("cd",))).text == "abc"
    assert answer(engine, SamplingParams(seed=1, regex="abcde", stop=("cd",))).text == "ab"


def test_log_probabilities_are_those_of_the_raw_logits(engine: Engine) -> None:
    request = Request(PROMPT, SamplingParams(temperature=0, regex="ab"), logprobs=20)
    tokens = [event for event in engine.generate(request) if not isinstance(event, Done) and hasattr(event, "top")]
    free = next(
        event
        for event in engine.generate(Request(PROMPT, SamplingParams(temperature=0, max_tokens=1), logprobs=20))
        if hasattr(event, "top")
    )
    assert tokens[0].top == free.top


def test_what_cannot_be_enforced_is_refused_before_the_answer(engine: Engine) -> None:
    with pytest.raises(UsageError, match="uniqueItems"):
        engine.generate(Request(PROMPT, SamplingParams(json_schema='{"type": "array", "uniqueItems": true}')))


def test_a_model_without_a_shape_never_loads_the_library(tmp_path: Path) -> None:
    fresh = load_engine(write_checkpoint(tmp_path, tiny_config()))
    list(fresh.generate(Request(PROMPT, SamplingParams(max_tokens=2))))
    assert fresh._constraints is None
