"""Programs that people have, talking to `dslite serve -m demo`: the openai package and LangChain."""

import asyncio
import threading
from typing import Any

import httpx2
import openai
import pytest
from support.serving import Server, serving

from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done, Token
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message

QUESTION = "How do I save a profile?"
ASKED = [{"role": "user", "content": QUESTION}]


def in_process(engine: Engine, params: SamplingParams, question: str = QUESTION) -> Done:
    ids = ChatTemplate(engine.tokenizer).encode([Message("user", question)])
    (done,) = [event for event in engine.generate(Request(ids, params)) if isinstance(event, Done)]
    return done


def chat(client: openai.OpenAI, **settings: Any) -> Any:
    return client.chat.completions.create(**{"model": "demo", "messages": ASKED, "temperature": 0, **settings})


def test_a_chat_answer_is_the_engines(demo_server: Server, demo_engine: Engine) -> None:
    answer = chat(demo_server.openai())
    expected = in_process(demo_engine, SamplingParams(temperature=0))
    (choice,) = answer.choices
    assert choice.message.content == expected.text.removeprefix(" ")
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_seed_draws_the_engines_answer(demo_server: Server, demo_engine: Engine) -> None:
    answer = chat(demo_server.openai(), temperature=1.5, top_p=0.9, seed=7, max_completion_tokens=30)
    expected = in_process(demo_engine, SamplingParams(temperature=1.5, top_p=0.9, seed=7, max_tokens=30))
    assert answer.choices[0].message.content == expected.text.removeprefix(" ")


def test_a_stream_adds_up_to_the_whole_answer(demo_server: Server) -> None:
    whole = chat(demo_server.openai())
    chunks = list(chat(demo_server.openai(), stream=True, stream_options={"include_usage": True}))
    *pieces, usage = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces][-2:] == [None, "stop"]
    assert len(pieces) > 5
    assert (usage.choices, usage.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert all(piece.usage is None for piece in pieces)


def test_a_stream_without_include_usage_has_none(demo_server: Server) -> None:
    chunks = list(chat(demo_server.openai(), stream=True, max_tokens=3))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_repeated_prompt_is_found_in_the_cache(demo_server: Server) -> None:
    messages = [{"role": "user", "content": "one two three four five six seven eight nine ten " * 3}]
    first, second = (chat(demo_server.openai(), messages=messages, max_tokens=1).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < first.prompt_tokens - 10
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1


def test_answers_to_the_id_and_to_the_name_of_the_langchain_sample(demo_server: Server) -> None:
    client = demo_server.openai()
    assert [model.id for model in client.models.list()] == ["demo", "deepseek-chat"]
    assert client.models.retrieve("deepseek-chat").id == "deepseek-chat"
    assert chat(client, model="deepseek-chat", max_tokens=1).model == "deepseek-chat"


def test_another_name_is_a_404_that_lists_the_names(demo_server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match=r"'gpt-4'.*demo, deepseek-chat") as caught:
        chat(demo_server.openai(), model="gpt-4")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        demo_server.openai().models.retrieve("deepseek-ai/DeepSeek-V2")


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(demo_server: Server) -> None:
    whole = chat(demo_server.openai()).choices[0].message.content
    stop = whole[10:16]
    cut = chat(demo_server.openai(), stop=[stop, "never there"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_n_answers_are_drawn_apart_and_repeat_with_their_seed(demo_server: Server) -> None:
    settings: dict[str, Any] = {"n": 3, "seed": 1, "temperature": 2, "top_p": 1, "max_tokens": 40}
    first, second = (chat(demo_server.openai(), **settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage.prompt_tokens == chat(demo_server.openai(), max_tokens=1).usage.prompt_tokens


def test_max_tokens_beyond_the_context_is_clamped_to_it(demo_server: Server) -> None:
    assert chat(demo_server.openai(), max_tokens=1_000_000).choices[0].finish_reason == "stop"


def test_chat_logprobs_are_the_engines(demo_server: Server, demo_engine: Engine) -> None:
    answer = chat(demo_server.openai(), logprobs=True, top_logprobs=3, max_tokens=8)
    ids = ChatTemplate(demo_engine.tokenizer).encode([Message("user", QUESTION)])
    request = Request(ids, SamplingParams(temperature=0, max_tokens=8), logprobs=3)
    expected = [event for event in demo_engine.generate(request) if isinstance(event, Token)]
    entries = answer.choices[0].logprobs.content
    assert [entry.logprob for entry in entries] == pytest.approx([token.logprob for token in expected], abs=1e-4)
    for entry, token in zip(entries, expected, strict=True):
        assert token.top is not None
        assert [top.token for top in entry.top_logprobs] == [candidate.text for candidate in token.top]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == "".join(token.text for token in expected)


def test_a_cut_answer_is_continued_where_it_was_cut(demo_server: Server) -> None:
    whole = chat(demo_server.openai()).choices[0].message.content
    begun = chat(demo_server.openai(), max_tokens=9).choices[0].message.content
    rest = chat(
        demo_server.openai(),
        messages=[*ASKED, {"role": "assistant", "content": begun}],
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert begun + rest.choices[0].message.content == whole


def test_text_parts_are_one_text(demo_server: Server) -> None:
    parts = [{"type": "text", "text": "How do I "}, {"type": "text", "text": "save a profile?"}]
    in_parts = chat(demo_server.openai(), messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == chat(demo_server.openai()).choices[0].message.content


def test_an_echoed_completion_scores_its_prompt(demo_server: Server, demo_engine: Engine) -> None:
    text = "dslite answers a prompt"
    answer = demo_server.openai().completions.create(model="demo", prompt=text, max_tokens=0, echo=True, logprobs=2)
    ids = [demo_engine.model.config.bos_token_id, *demo_engine.tokenizer.encode(text)]
    request = Request(ids, SamplingParams(max_tokens=0), logprobs=2, echo=True)
    expected = [event for event in demo_engine.generate(request) if isinstance(event, Token)]
    scored = answer.choices[0].logprobs
    assert scored is not None
    assert answer.choices[0].text == text
    assert scored.token_logprobs is not None
    assert scored.token_logprobs[0] is None
    assert scored.token_logprobs[1:] == pytest.approx([token.logprob for token in expected[1:]], abs=1e-4)
    assert scored.tokens is not None
    assert "".join(scored.tokens[1:]) == text
    assert scored.text_offset is not None
    assert [text[at:].startswith(token) for at, token in zip(scored.text_offset[1:], scored.tokens[1:], strict=True)]
    assert scored.top_logprobs is not None
    best = [max(top.values()) for top in scored.top_logprobs[1:]]
    assert best == pytest.approx([token.top[0].logprob for token in expected[1:] if token.top], abs=1e-4)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_token_ids_complete_as_their_text_does(demo_server: Server, demo_engine: Engine) -> None:
    text = "How do I"
    ids = [demo_engine.model.config.bos_token_id, *demo_engine.tokenizer.encode(text)]
    client = demo_server.openai()
    prompts: list[Any] = [text, [text], ids, [ids]]
    answers = [client.completions.create(model="demo", prompt=prompt, temperature=0) for prompt in prompts]
    assert len({answer.choices[0].text for answer in answers}) == 1


def test_a_completion_has_sixteen_tokens_where_nobody_says_how_many(demo_server: Server) -> None:
    answer = demo_server.openai().completions.create(model="demo", prompt="a", n=8, temperature=2, top_p=1, logprobs=0)
    lengths = [len(choice.logprobs.tokens or []) for choice in answer.choices if choice.logprobs]
    assert max(lengths) == 16
    assert {choice.finish_reason for choice in answer.choices} >= {"length"}


def test_every_prompt_of_a_list_gets_n_choices_in_order(demo_server: Server) -> None:
    client = demo_server.openai()
    prompts = ["To save a profile, run", "To list the models, run"]
    settings: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 6}
    together = client.completions.create(prompt=prompts, n=2, **settings)
    alone = [client.completions.create(prompt=prompt, **settings).choices[0].text for prompt in prompts]
    assert [choice.text for choice in together.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]


def test_a_streamed_completion_tells_every_choice(demo_server: Server) -> None:
    client = demo_server.openai()
    prompts = ["To save a profile, run", "To list the models, run"]
    settings: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 6, "echo": True, "logprobs": 0}
    whole = client.completions.create(prompt=prompts, **settings)
    texts, offsets = ["", ""], [[], []]
    for chunk in client.completions.create(prompt=prompts, stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices if choice.logprobs]


def test_the_end_token_has_its_logprob_for_harnesses_that_count(demo_server: Server) -> None:
    answer = chat(demo_server.openai(), logprobs=True)
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert answer.choices[0].logprobs.content[-1].token == "<｜end▁of▁sentence｜>"


def test_a_prompt_over_the_context_is_refused_with_openais_code(demo_server: Server) -> None:
    for text in ("word " * 5000, "x" * 1_000_000):
        with pytest.raises(openai.BadRequestError, match="context") as caught:
            chat(demo_server.openai(), messages=[{"role": "user", "content": text}])
        assert caught.value.code == "context_length_exceeded"


def test_async_clients_are_answered_together(demo_server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=demo_server.url, api_key="none") as client:
            streams = [
                await client.chat.completions.create(
                    model="demo", messages=ASKED, temperature=0, max_tokens=20, stream=True
                )
                for _ in range(4)
            ]
            texts = [""] * 4
            for number, stream in enumerate(streams):
                async for chunk in stream:
                    texts[number] += chunk.choices[0].delta.content or ""
            return texts

    texts = asyncio.run(ask())
    alone = chat(demo_server.openai(), max_tokens=20).choices[0].message.content
    assert texts == [alone] * 4


def test_a_client_that_runs_out_of_patience_stops_its_answer(demo_server: Server) -> None:
    # The demo would go on for thousands of tokens; if they were still made, the next answer would wait for them.
    slow = demo_server.openai(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        slow.completions.create(model="demo", prompt=["a"] * 64, max_tokens=4000, temperature=2)
    assert chat(demo_server.openai(), max_tokens=1).choices


def test_a_key_is_asked_for_and_compared(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("demo", "--api-key-env", "THE_KEY", env={"THE_KEY": "s3cret-key"}) as server:
        with pytest.raises(openai.AuthenticationError) as caught:
            chat(server.openai(api_key="s3cret"))
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            server.openai(default_headers={"Authorization": "Basic s3cret"}).models.list()
        assert chat(server.openai(api_key="s3cret-key"), max_tokens=2).choices
        assert "s3cret" not in "".join(server.said)


def test_chat_openai_of_langchain_with_the_arguments_of_the_models_readme(demo_server: Server) -> None:
    from langchain_openai import ChatOpenAI

    with httpx2.Client() as connections:
        llm = ChatOpenAI(
            model="deepseek-chat",
            openai_api_key="none",
            openai_api_base=demo_server.url,
            temperature=0.85,
            max_tokens=8000,
            http_client=connections,
        )
        answer = llm.invoke(QUESTION)
        assert isinstance(answer.content, str)
        assert answer.content
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["input_tokens"] > 5
        assert "".join(str(chunk.content) for chunk in llm.stream(QUESTION))
        threads = [threading.Thread(target=llm.invoke, args=(QUESTION,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
