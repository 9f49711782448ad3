"""How much faster a server answers eight clients at once than one after the other.

    python tests/benchmarks/serve_load.py --layers 8

runs the scheduler that `dslite serve` drives over random weights of DeepSeek-V2-Lite's real size, cut to some layers,
in BF16. Every client asks with a prompt of its own and takes a fixed number of tokens. Prints one JSON object.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch
from support.tokenizers import tiny_tokenizer

from dslite.assets import __file__ as assets
from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.events import Done


def random_engine(layers: int) -> Engine:
    """An engine over random BF16 weights of the real size, cut to some layers."""
    raw = json.loads((Path(assets).parent / "deepseek-v2-lite.config.json").read_text(encoding="utf-8"))
    config = dataclasses.replace(ModelConfig.from_dict(raw), num_hidden_layers=layers)
    shapes = parameter_shapes(config)
    rng = torch.Generator().manual_seed(0)

    def take(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=rng)

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(Path(folder))
    return Engine(Transformer.build(config, take), tokenizer, context=1024, eos_token_ids=[])


def seconds(engine: Engine, requests: list[Request], together: int) -> float:
    """Until all are answered, `together` at a time; their prompts are read beforehand and not counted."""
    scheduler = Scheduler(engine, max_sequences=together)
    for number, request in enumerate(requests):
        scheduler.add(number, dataclasses.replace(request, params=SamplingParams(temperature=0, max_tokens=1)))
    assert sum(isinstance(event, Done) for _, event in scheduler.run()) == len(requests)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    started = time.perf_counter()
    made = sum(len(event.token_ids) for _, event in scheduler.run() if isinstance(event, Done))
    took = time.perf_counter() - started
    assert made == sum(request.params.max_tokens or 0 for request in requests)
    return took


def main() -> None:
    """Measure both ways and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    engine = random_engine(args.layers)
    rng = torch.Generator().manual_seed(1)
    params = SamplingParams(temperature=0, max_tokens=args.tokens)
    prompts = torch.randint(0, 256, (args.clients, 16), generator=rng).tolist()
    requests = [Request(prompt, params) for prompt in prompts]
    alone, together = (seconds(engine, requests, most) for most in (1, args.clients))
    tokens = args.clients * args.tokens
    shown = {
        "layers": args.layers,
        "clients": args.clients,
        "tokens": tokens,
        "one_after_the_other_tps": tokens / alone,
        "together_tps": tokens / together,
        "ratio": alone / together,
    }
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
