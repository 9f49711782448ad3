"""Lines of a batch whose prompt is token ids, as programs that tokenize for themselves have them."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.scripted_server import ScriptedServer, delta, events
from support.serving import Server
from transformers import AutoTokenizer

from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.text.tokenizer import Tokenizer

# The messages of the sample for vLLM in the model's own README, with its temperature and bound.
SAMPLE = [
    [{"role": "user", "content": "Who are you?"}],
    [
        {
            "role": "user",
            "content": "Translate the following content into Chinese directly: DeepSeek-V2 adopts innovative "
            "architectures to guarantee economical training and efficient inference.",
        }
    ],
    [{"role": "user", "content": "Write a piece of quicksort code in C++."}],
]


def run(dslite: Dslite, *args: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stdin = "\n".join(map(json.dumps, lines)).encode()
    result = dslite("complete", *args, "--batch", "-", stdin=stdin)
    assert result.code == 0, result.err
    return result.lines


def test_the_sample_for_vllm_of_the_models_readme_is_one_batch(dslite: Dslite) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(locate(parse_model("demo")))
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in SAMPLE
    ]
    settings = {"temperature": 0.3, "max_tokens": 256, "stop_token_ids": [tokenizer.eos_token_id], "seed": 7}
    flags = ("-m", "demo", "--dtype", "float32", "--device", "cpu")
    by_ids = run(dslite, *flags, lines=[{"prompt": ids, **settings} for ids in prompts])
    by_messages = run(dslite, *flags, lines=[{"messages": messages, **settings} for messages in SAMPLE])

    assert len(by_ids) == 3
    for answer, ids, same in zip(by_ids, prompts, by_messages, strict=True):
        assert answer["prompt_tokens"] == len(ids)
        assert 0 < answer["completion_tokens"] <= 256
        assert answer["text"] == " " + same["text"]  # the space behind the template's colon, as vLLM has it
        assert (answer["finish_reason"], answer["tokens"]) == (same["finish_reason"], same["tokens"])


def test_token_ids_are_taken_as_they_are_with_and_without_raw(dslite: Dslite, greeter: Path) -> None:
    ids = Tokenizer.from_folder(greeter).encode("ax")
    lines = [{"prompt": ids, "max_tokens": 5, "system": "no part of it"}]
    for flags in ((), ("--raw",), ("--raw", "--no-bos")):
        (answer,) = run(dslite, "-m", str(greeter), *flags, lines=lines)
        assert (answer["text"], answer["prompt_tokens"]) == ("yzxyz", 2)
    (echoed,) = run(dslite, "-m", str(greeter), "--echo", lines=lines)
    assert (echoed["text"], echoed["prompt_tokens"]) == ("axyzxyz", 2)
    (bounded,) = run(dslite, "-m", str(greeter), "--raw", lines=[{"prompt": ids}])
    assert bounded["completion_tokens"] == 256


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ([], "not one of token ids"),
        ([1, "a"], "not one of token ids"),
        ([1, True], "not one of token ids"),
        ([1.0], "not one of token ids"),
        ([-1], "not one of token ids"),
        ([[1]], "not one of token ids"),
        ([1, 10**30], f"{10**30}, which no token has"),
        ([5] * 200, "context"),
    ],
)
def test_what_is_no_prompt_of_token_ids_is_its_lines_error(
    dslite: Dslite, greeter: Path, prompt: list[Any], fault: str
) -> None:
    lines = [{"prompt": prompt}, {"prompt": "hello"}, {"prompt": [5], "messages": []}]
    wrong, good, both = run(dslite, "-m", str(greeter), "--ctx-size", "128", lines=lines)
    assert fault in wrong["error"]
    assert good["text"] == "hi"
    assert "one of them" in both["error"]


def test_token_ids_go_to_a_server_as_its_prompt(dslite: Dslite, demo_server: Server) -> None:
    lines = [{"prompt": [0, 5, 6], "max_tokens": 4, "temperature": 0}]
    (over,) = run(dslite, "--endpoint", demo_server.url, "-m", "demo", lines=lines)
    (inside,) = run(dslite, "-m", "demo", "--dtype", "float32", "--device", "cpu", lines=lines)
    assert (over["text"], over["prompt_tokens"]) == (inside["text"], 3)

    with ScriptedServer([events(delta("x"), "data: [DONE]\n\n")]) as server:
        (answer,) = run(dslite, "--endpoint", server.url, "-m", "x", lines=lines)
        (echoed,) = run(dslite, "--endpoint", server.url, "-m", "x", "--echo", lines=lines)
    body = json.loads(server.asked[0].partition(b"\r\n\r\n")[2])
    assert body["prompt"] == [0, 5, 6]
    assert server.asked[0].startswith(b"POST /v1/completions ")
    assert answer["text"] == "x"
    assert "does not echo token ids" in echoed["error"]
