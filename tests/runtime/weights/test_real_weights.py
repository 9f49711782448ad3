"""Published greedy continuations of the real DeepSeek-V2-Lite, for whoever has its weights.

DSLITE_WEIGHTS_MODEL names a folder, else the Hub cache is looked at. Two correct programs part at near ties: once a
token differs, so does everything behind it. Each published token is therefore put behind the published ones before it,
and must be the best, or nearly.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from support.checkpoints import load_engine

from dslite.runtime.diagnostics.selftest import read_published
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Token

pytestmark = pytest.mark.weights

CONTINUATIONS: list[dict[str, Any]] = read_published()["sets"]
ENTRIES = [(made, entry) for made in CONTINUATIONS for entry in made["entries"]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    named = os.environ.get("DSLITE_WEIGHTS_MODEL")
    if named:
        return load_engine(Path(named), context=512, dtype=torch.bfloat16)
    config = try_to_load_from_cache("deepseek-ai/DeepSeek-V2-Lite", "config.json")
    if not isinstance(config, str):
        pytest.skip("the weights of deepseek-ai/DeepSeek-V2-Lite are not in the Hub cache")
    return load_engine(Path(config).parent, context=512, dtype=torch.bfloat16)


@pytest.mark.parametrize(("made", "entry"), ENTRIES, ids=[f"{m['id']}: {e['prompt']}" for m, e in ENTRIES])
def test_published_greedy_tokens_are_the_best_or_nearly(
    engine: Engine, made: dict[str, Any], entry: dict[str, Any]
) -> None:
    prompt, answer = entry["prompt_ids"], entry["greedy_ids"]
    params = SamplingParams(temperature=0, max_tokens=0)
    events = list(engine.generate(Request([*prompt, *answer], params, logprobs=1, echo=True)))
    tokens = [event for event in events if isinstance(event, Token)][len(prompt) :]

    gaps = [token.top[0].logprob - token.logprob for token in tokens]  # type: ignore[index,operator]

    assert max(gaps) <= made["near_tie_nats"]
    assert sum(gap == 0 for gap in gaps) >= 0.75 * len(gaps), "near ties are few"


@pytest.mark.parametrize(("made", "entry"), ENTRIES, ids=[f"{m['id']}: {e['prompt']}" for m, e in ENTRIES])
def test_published_prompt_ids_are_ours(engine: Engine, made: dict[str, Any], entry: dict[str, Any]) -> None:
    begin = [engine.model.config.bos_token_id] if made["bos"] else []

    assert begin + engine.tokenizer.encode(entry["prompt"]) == entry["prompt_ids"]
    assert engine.tokenizer.decode(entry["greedy_ids"]) == entry["greedy_text"]
