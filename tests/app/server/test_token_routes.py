"""/tokenize and /detokenize count and convert as an answer would."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here
from support.tokenizers import BOS, BOS_ID, EOS

from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine

TALK = [{"role": "user", "content": "the end"}, {"role": "assistant", "content": "is"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("tokens"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine, Limits(tokenize_characters=1000, detokenize_tokens=100)) as started:
        yield started


def tokenize(server: Server, **body: Any) -> Any:
    status, answer, _ = server.request("POST", "/tokenize", body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"prompt": "the end"}, "/v1/completions"),
        ({"prompt": f"the {EOS}end"}, "/v1/completions"),
        ({"prompt": f"the {EOS}end", "parse_special": True}, "/v1/completions"),
        ({"prompt": "the end", "add_special_tokens": False}, "/v1/completions"),
        ({"messages": TALK}, "/v1/chat/completions"),
        ({"messages": TALK, "add_generation_prompt": False}, "/v1/chat/completions"),
        ({"messages": TALK, "continue_final_message": True}, "/v1/chat/completions"),
    ],
)
def test_a_prompt_has_as_many_tokens_as_its_answer_says(server: Server, body: dict[str, Any], path: str) -> None:
    counted = tokenize(server, **body, return_token_strs=True)
    status, answer, _ = server.request("POST", path, {**body, "max_tokens": 1})
    assert status == 200, answer
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"]) == answer["usage"]["prompt_tokens"]
    assert counted["max_model_len"] == 200


def test_llama_cpps_content_has_no_begin_of_sentence_token_unless_it_asks(server: Server) -> None:
    bare = tokenize(server, content="the end")["tokens"]
    assert bare == tokenize(server, prompt="the end", add_special_tokens=False)["tokens"]
    assert tokenize(server, content="the end", add_special=True)["tokens"] == [BOS_ID, *bare]
    assert tokenize(server, prompt="the end")["tokens"] == [BOS_ID, *bare]


@pytest.mark.parametrize("text", ["the end", "日本語 ü\n", f"a{EOS}b{BOS}", ""])
def test_token_ids_become_the_text_that_they_came_from(server: Server, text: str) -> None:
    for special in (False, True):
        ids = tokenize(server, prompt=text, parse_special=special)["tokens"]
        status, answer, _ = server.request("POST", "/detokenize", {"model": "tiny", "tokens": ids})
        assert (status, answer) == (200, {"prompt": BOS + text, "content": BOS + text})


def test_a_text_longer_than_the_context_is_counted(server: Server) -> None:
    assert tokenize(server, prompt="x" * 900)["count"] > 200


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/tokenize", {}, "prompt", "one of prompt, content and messages"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "prompt", "one of prompt"),
        ("/tokenize", {"prompt": "a", "messages": TALK}, "prompt", "leave it out beside messages"),
        ("/tokenize", {"parse_special": True, "messages": TALK}, "parse_special", "leave it out"),
        ("/tokenize", {"prompt": "x" * 1001}, "prompt", "1,001 characters; the most is 1,000"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "must be a text"),
        ("/tokenize", {"promt": "a"}, "promt", "did you mean prompt?"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "with_pieces", "return_token_strs"),
        ("/tokenize", {"messages": []}, "messages", "at least one message"),
        ("/detokenize", {}, "tokens", "send a list"),
        ("/detokenize", {"tokens": [10**9]}, "tokens", "an id that no token has"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "whole numbers from 0"),
        ("/detokenize", {"tokens": [1] * 101}, "tokens", "at most 100"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(
    server: Server, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    status, answer, _ = server.request("POST", path, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"]


def test_another_model_is_a_404_here_too(server: Server) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        status, answer, _ = server.request("POST", path, {**body, "model": "gpt-4"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_messages_over_the_context_are_refused_before_they_are_encoded(server: Server) -> None:
    status, answer, _ = server.request("POST", "/tokenize", {"messages": [{"role": "user", "content": "x" * 99_999}]})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
