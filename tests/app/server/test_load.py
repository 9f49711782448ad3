"""Many clients at once: every answer is the one that its client would get alone, and nobody waits for a slow reader."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest
from support.serving import Server, serving

from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done

CLIENTS, REQUESTS = 16, 20


@dataclass(frozen=True)
class Wish:
    """What a client asks. `leaves_after` chunks it hangs up; None: it reads all."""

    ids: tuple[int, ...]
    max_tokens: int
    leaves_after: int | None


def wishes(seed: int, count: int) -> list[Wish]:
    """Prompts of random lengths, half of which share beginnings, and random disconnects."""
    rng = random.Random(seed)
    shared = [rng.randrange(200, 3000) for _ in range(150)]
    made = []
    for _ in range(count):
        beginning = shared[: rng.randrange(150)] if rng.random() < 0.5 else []
        own = [rng.randrange(200, 3000) for _ in range(rng.randrange(1, 40))]
        leaves = rng.randrange(6) if rng.random() < 0.3 else None
        made.append(Wish((3070, *beginning, *own), rng.randrange(1, 16), leaves))
    return made


async def ask(client: openai.AsyncOpenAI, wish: Wish) -> str | None:
    """The whole answer, or None where the client left."""
    stream = await client.completions.create(
        model="demo", prompt=list(wish.ids), max_tokens=wish.max_tokens, temperature=0, stream=True
    )
    text, chunks = "", 0
    async with stream:
        async for chunk in stream:
            if wish.leaves_after is not None and chunks >= wish.leaves_after:
                return None
            text += chunk.choices[0].text
            chunks += 1
    return text


async def ask_all(server: Server, each: list[list[Wish]]) -> list[list[str | None]]:
    async def one(mine: list[Wish]) -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            return [await ask(client, wish) for wish in mine]

    return await asyncio.gather(*(one(mine) for mine in each))


def alone(engine: Engine, wish: Wish) -> str:
    request = Request(wish.ids, SamplingParams(temperature=0, max_tokens=wish.max_tokens))
    (done,) = [event for event in engine.generate(request) if isinstance(event, Done)]
    return done.text


def test_sixteen_clients_get_the_answers_that_each_would_get_alone(demo_server: Server, demo_engine: Engine) -> None:
    each = [wishes(seed, REQUESTS) for seed in range(CLIENTS)]
    answers = asyncio.run(ask_all(demo_server, each))
    whole = 0
    for mine, got in zip(each, answers, strict=True):
        for wish, answer in zip(mine, got, strict=True):
            if answer is not None:
                assert answer == alone(demo_engine, wish), wish
                whole += 1
    assert whole > CLIENTS * REQUESTS / 2


def test_slow_readers_hold_nobody_up_and_get_their_whole_answer(demo_server: Server) -> None:
    async def go() -> tuple[list[str], list[str | None]]:
        async with openai.AsyncOpenAI(base_url=demo_server.url, api_key="none", max_retries=0) as client:
            # As many as answer together: they ask, and do not read until the others have their answers.
            slow = [
                await client.completions.create(
                    model="demo", prompt="dslite", max_tokens=300, temperature=1, seed=seed, stream=True
                )
                for seed in range(8)
            ]
            (quick,) = await ask_all(demo_server, [[Wish((3070, 612, 326), 8, None)]])
            texts = []
            for stream in slow:
                texts.append("".join([chunk.choices[0].text async for chunk in stream]))
            return texts, quick

    texts, quick = asyncio.run(go())
    assert len(quick) == 1
    whole = demo_server.openai().completions.create(
        model="demo", prompt="dslite", max_tokens=300, temperature=1, seed=3
    )
    assert texts[3] == whole.choices[0].text


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with serving("demo", "--dtype", "float32") as server:
        yield server


@pytest.mark.slow
def test_memory_does_not_grow_over_a_thousand_requests(own_server: Server) -> None:
    sizes = []
    for round_ in range(5):
        each = [wishes(100 * round_ + seed, 250 // CLIENTS) for seed in range(CLIENTS)]
        asyncio.run(ask_all(own_server, each))
        sizes.append(own_server.rss())
    assert sizes[-1] - sizes[1] < 8 * 2**20, [size >> 20 for size in sizes]
