"""The self-test's judgement, on an engine whose answers are known."""

from collections.abc import Iterator
from typing import Any

from support.tokenizers import BOS_ID  # any special token does

from dslite.runtime.diagnostics import selftest
from dslite.runtime.engine.request import Request
from dslite.runtime.events import Candidate, Token

ENTRY = {"prompt": "ab", "prompt_ids": [97, 98], "greedy_ids": [1, 2, 3, 4]}
SETS = [{"near_tie_nats": 0.25, "entries": [ENTRY]}]


class FakeTokenizer:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_text(self, token_id: int) -> str:
        return f"<{token_id}>"


class FakeEngine:
    """Gives each scored token the log-probability -1, and its rival what `rivals` says, by the token's place."""

    def __init__(self, rivals: dict[int, float]) -> None:
        self.tokenizer: Any = FakeTokenizer()
        self.requests: list[Request] = []
        self._rivals = rivals

    def generate(self, request: Request) -> Iterator[Token]:
        self.requests.append(request)
        for place, token_id in enumerate(request.prompt_ids):
            rival = self._rivals.get(place - len(ENTRY["prompt_ids"]), -3.0)
            own, other = Candidate(token_id, f"<{token_id}>", -1.0), Candidate(BOS_ID, "other", rival)
            yield Token(token_id, "", logprob=-1.0, top=(max(own, other, key=lambda found: found.logprob),))


def judged(rivals: dict[int, float]) -> selftest.PromptResult:
    (result,) = selftest.run(FakeEngine(rivals), SETS)
    return result


def test_tokens_that_are_the_likeliest_agree() -> None:
    result = judged({})
    assert (result.agreeing, result.tokens, result.near_ties, result.wrong) == (4, 4, (), ())
    assert result.passed


def test_a_rival_within_a_quarter_nat_is_a_near_tie_and_one_beyond_it_is_wrong() -> None:
    result = judged({1: -0.8, 3: -0.5})
    assert result.agreeing == 2
    assert [(tie.place, tie.published, tie.ours) for tie in result.near_ties] == [(1, "<2>", "other")]
    assert [(bad.place, bad.gap) for bad in result.wrong] == [(3, 0.5)]
    assert not result.passed


def test_an_exact_tie_agrees() -> None:
    assert judged({2: -1.0}).agreeing == 4


def test_other_prompt_ids_fail() -> None:
    (result,) = selftest.run(FakeEngine({}), [{"near_tie_nats": 0.25, "entries": [ENTRY | {"prompt": "ba"}]}])
    assert not result.passed


def test_the_published_tokens_are_put_behind_their_prompt_and_only_scored() -> None:
    engine = FakeEngine({})
    list(selftest.run(engine, SETS))
    (request,) = engine.requests
    assert list(request.prompt_ids) == [97, 98, 1, 2, 3, 4]
    assert (request.params.max_tokens, request.logprobs, request.echo) == (0, 1, True)


def test_the_shipped_set_has_eight_prompts_of_sixteen_tokens_with_source_and_tie() -> None:
    (made,) = selftest.read_published()["sets"]
    assert [len(entry["greedy_ids"]) for entry in made["entries"]] == [16] * 8
    assert made["near_tie_nats"] == 0.25
    assert "DeepSeek-V2-Lite" in made["model"]
    assert made["source"]
