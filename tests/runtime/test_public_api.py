"""`dslite.runtime`: its names, what they cost to import, and what they do."""

import subprocess
import sys

import pytest

import dslite.runtime
from dslite.runtime import (
    Chat,
    Completion,
    DsliteError,
    EngineOptions,
    SamplingParams,
    generate,
    generate_batch,
    open_engine,
    stream,
)
from dslite.runtime.engine.engine import Engine
from dslite.runtime.errors import ContextFullError, ModelUnavailableError, UsageError
from dslite.runtime.events import Done, Token

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("demo", EngineOptions(device="cpu", dtype="float32", ctx_size=256))


def test_the_exported_names_are_these() -> None:
    assert sorted(dslite.runtime.__all__) == [
        "AsyncAnswer",
        "Chat",
        "Completion",
        "Done",
        "DsliteError",
        "EngineOptions",
        "Message",
        "SamplingParams",
        "Token",
        "agenerate",
        "astream",
        "generate",
        "generate_batch",
        "open_engine",
        "stream",
    ]
    assert set(dslite.runtime.__all__) <= set(dir(dslite.runtime))


@pytest.mark.parametrize("name", dslite.runtime.__all__)
def test_each_name_is_what_its_module_defines_and_has_a_docstring(name: str) -> None:
    value = getattr(dslite.runtime, name)
    assert value.__name__ == name
    assert value.__module__.startswith("dslite.")
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nosuch'"):
        getattr(dslite.runtime, "nosuch")  # noqa: B009
    with pytest.raises(ImportError):
        exec("from dslite.runtime import nosuch")


@pytest.mark.parametrize(
    "line",
    [
        "import dslite.runtime",
        "import dslite.runtime.errors",
        "from dslite.runtime import EngineOptions, SamplingParams, DsliteError",
        "import dslite.runtime; dir(dslite.runtime)",
    ],
)
def test_light_names_import_no_torch(line: str) -> None:
    code = f"{line}\nimport sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_internal_imports_do_not_hide_a_name() -> None:
    code = "import dslite.runtime.engine_loader, dslite.runtime.generation, dslite.runtime as r\n"
    code += "assert all(callable(getattr(r, name)) for name in r.__all__)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stream_adds_up_to_the_completion(engine: Engine) -> None:
    whole = generate(engine, "How do I", GREEDY)
    events = list(stream(engine, "How do I", GREEDY))
    assert isinstance(events[-1], Done)
    assert all(isinstance(event, Token) for event in events[:-1])
    assert "".join(event.delta for event in events) == whole.text != ""
    assert whole.finish_reason in ("stop", "length")
    assert whole.completion_tokens == len(events[-1].token_ids) <= 12


def test_a_batch_gives_what_each_prompt_gives_alone(engine: Engine) -> None:
    prompts = ["How do I", "A profile is", "How do I"]
    together = generate_batch(engine, prompts, GREEDY)
    alone = [generate(engine, prompt, GREEDY) for prompt in prompts]
    assert [answer.text for answer in together if isinstance(answer, Completion)] == [each.text for each in alone]


def test_a_prompt_of_a_batch_that_does_not_fit_is_an_error_in_its_place(engine: Engine) -> None:
    first, second, third = generate_batch(engine, ["How do I", "x " * 300, "How do I"], GREEDY)
    assert isinstance(second, ContextFullError)
    assert isinstance(first, Completion)
    assert isinstance(third, Completion)
    assert first.text == third.text


def test_an_echo_without_generation_scores_a_text(engine: Engine) -> None:
    scored = generate(engine, "dslite is", SamplingParams(max_tokens=0), logprobs=2, echo=True)
    assert (scored.text, scored.completion_tokens) == ("dslite is", 0)
    assert scored.tokens[0].logprob is None
    for token in scored.tokens[1:]:
        assert token.logprob is not None
        assert token.top is not None
        assert token.logprob <= max(candidate.logprob for candidate in token.top)


def test_a_chat_keeps_its_history_and_reads_only_what_is_new(engine: Engine) -> None:
    chat = Chat(engine, system="Be brief.", params=GREEDY)
    first = chat.send("How do I save a profile?")
    second = chat.send("And then?")
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [chat.messages[2].content, chat.messages[4].content] == [first.text, second.text]
    assert second.cached_tokens >= first.prompt_tokens


def test_a_question_that_does_not_fit_leaves_the_history_as_it_was(engine: Engine) -> None:
    chat = Chat(engine, params=GREEDY)
    chat.send("How do I save a profile?")
    before = list(chat.messages)
    with pytest.raises(ContextFullError):
        chat.send("x " * 300)
    for _ in chat.stream("And then?"):
        break  # the caller has enough
    assert chat.messages == before


@pytest.mark.parametrize(
    ("wrong", "error"), [("nosuch/model", ModelUnavailableError), ("demo@", DsliteError), ("/nosuch", DsliteError)]
)
def test_a_model_that_is_not_here_is_an_error(wrong: str, error: type[DsliteError]) -> None:
    with pytest.raises(error):
        open_engine(wrong)


def test_an_empty_prompt_is_only_the_begin_of_sentence(engine: Engine) -> None:
    assert generate(engine, "", SamplingParams(max_tokens=0)).prompt_tokens == 1


def test_options_out_of_range_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="--ctx-size"):
        open_engine("demo", EngineOptions(ctx_size=10**9))


SCHEMA = {"type": "object", "properties": {"year": {"type": "integer", "maximum": 9999}}, "required": ["year"]}


def test_a_schema_gives_a_parsed_object(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=60)
    chat = Chat(engine, params=params)
    for answer in (chat.send("When?", json_schema=SCHEMA), generate(engine, "When?", params, json_schema=SCHEMA)):
        assert isinstance(answer.json()["year"], int)
    assert "year" not in chat.send("How do I save a profile?").text  # for one turn alone
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


def test_the_json_of_an_answer_that_was_cut_says_so(engine: Engine) -> None:
    cut = generate(engine, "When?", SamplingParams(temperature=0, max_tokens=2), json_schema=SCHEMA)
    with pytest.raises(DsliteError, match="cut \\(length\\)"):
        cut.json()
    with pytest.raises(DsliteError, match="not JSON"):
        generate(engine, "How do I", GREEDY).json()


def test_a_regex_and_a_grammar_shape_an_answer(engine: Engine) -> None:
    assert Chat(engine).send("Is water wet?", SamplingParams(regex="(yes|no)")).text in ("yes", "no")
    assert generate(engine, "1", SamplingParams(grammar='start: "a" | "b"')).text in ("a", "b")


def test_a_chat_goes_on_with_given_messages(engine: Engine) -> None:
    first = Chat(engine, system="Be brief.", params=GREEDY)
    first.send("How do I save a profile?")
    second = Chat(engine, messages=first.messages, params=GREEDY)
    assert second.send("And then?").cached_tokens > 0
    assert second.messages[:3] == first.messages
    assert second.messages[4].content == first.send("And then?").text
