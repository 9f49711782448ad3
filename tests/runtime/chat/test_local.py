"""LocalChatBackend: messages in, events out."""

import threading
from pathlib import Path

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.tokenizers import EOS_ID

from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import Done, Token
from dslite.runtime.text.message import Message

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return load_engine(write_checkpoint(tmp_path / "model", tiny_config()), context=200)


def run(session: LocalChatBackend, messages: list[Message], params: SamplingParams = GREEDY, **more: bool) -> Done:
    events = list(session.reply(messages, params, threading.Event(), **more))
    assert isinstance(events[-1], Done)
    made = "".join(event.delta for event in events if isinstance(event, Token | Done))
    assert made == events[-1].text  # what streams is what is told at the end
    return events[-1]


def test_a_second_turn_reads_only_what_is_new(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    first = [Message("user", "in the")]
    answer = run(session, first)
    second = [*first, Message("assistant", answer.text, answer.token_ids), Message("user", "the")]
    done = run(session, second)
    assert done.cached_tokens >= answer.prompt_tokens + len(answer.token_ids) - 1


def test_going_on_makes_the_tokens_that_one_long_answer_would_have(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    question = [Message("user", "the inner")]
    whole = run(session, question)
    begun = run(session, question, SamplingParams(temperature=0.0, max_tokens=5))
    rest = run(
        session,
        [*question, Message("assistant", begun.text, begun.token_ids)],
        SamplingParams(temperature=0.0, max_tokens=7),
        continue_final_message=True,
    )
    assert begun.token_ids + rest.token_ids == whole.token_ids


def test_going_on_leaves_out_the_end_token_of_what_was_there(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    messages = [Message("user", "the"), Message("assistant", "in", (105, 110, EOS_ID))]
    assert session.prompt_ids(messages, continue_final_message=True)[-2:] == [105, 110]


QUESTION = Message("user", "the inner")
CONTINUED = {
    "": "",
    " ": "",
    "   ": "",
    "in": " in",
    "in ": " in",
    "in   ": " in",
    "in\n": " in\n",
    "in\n    ": " in\n",
}


@pytest.mark.parametrize("content", CONTINUED)
def test_an_answer_to_continue_never_ends_the_prompt_in_a_lone_space(engine: Engine, content: str) -> None:
    session = LocalChatBackend(engine, "tiny")
    ids = session.prompt_ids([QUESTION, Message("assistant", content)], continue_final_message=True)
    assert ids == session.prompt_ids([QUESTION]) + engine.tokenizer.encode(CONTINUED[content])


@pytest.mark.parametrize("content", ["", " ", "in", "in ", "in    "])
@pytest.mark.parametrize("answer", [" the", "the", "  the", "     the"])
def test_a_continued_text_has_the_spaces_that_were_left_out_of_the_prompt_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, content: str, answer: str
) -> None:
    """Clients join what they sent and what they get: the spaces at the seam are those that they sent."""
    session = LocalChatBackend(engine, "tiny")
    tokens = [Token(1, character, character) for character in answer]
    end = Done("stop", answer, (1,) * len(answer), 1, 0)
    monkeypatch.setattr(engine, "generate", lambda *_: iter([*tokens, end]))
    events = list(
        session.reply([QUESTION, Message("assistant", content)], GREEDY, threading.Event(), continue_final_message=True)
    )
    spaces = len(content) - len(content.rstrip(" ")) + (not content.strip(" "))  # the template's own
    expected = answer[min(spaces, len(answer) - len(answer.lstrip(" "))) :]
    done = events[-1]
    assert isinstance(done, Done)
    assert done.text == expected
    assert "".join(event.delta for event in events if isinstance(event, Token | Done)) == expected


def test_an_answer_that_had_nothing_but_its_end_token_begins_as_a_new_one(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    empty = Message("assistant", "", (EOS_ID,))
    assert session.prompt_ids([QUESTION, empty], continue_final_message=True) == session.prompt_ids([QUESTION])


def test_fit_drops_the_oldest_turns_and_keeps_system_and_question(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    turns = [
        message
        for number in range(10)
        for message in (Message("user", f"question {number}"), Message("assistant", f"answer {number}"))
    ]
    messages = [Message("system", "be brief"), *turns, Message("user", "the last")]
    kept = session.trim_to_fit(messages)
    assert len(session.prompt_ids(kept)) <= 150  # a quarter of 200 is left for the answer
    assert kept[0].role == "system"
    assert kept[1].role == "user"
    assert kept[-1].content == "the last"
    assert kept[1:] == messages[-len(kept) + 1 :]


def test_fit_changes_nothing_that_fits(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    messages = [Message("user", "the"), Message("assistant", "in"), Message("user", "the")]
    assert session.trim_to_fit(messages) == messages


def test_a_message_that_alone_is_too_long_is_refused(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    with pytest.raises(ContextFullError, match="the last message alone"):
        session.trim_to_fit([Message("user", "x" * 500)])
    with pytest.raises(ContextFullError):
        list(session.reply([Message("user", "x" * 500)], GREEDY, threading.Event()))


@pytest.mark.parametrize("text", ["word " * 100_000, "x" * 500_000, "7" * 500_000, "中文字" * 100_000, "\n " * 100_000])
def test_nothing_is_encoded_of_a_conversation_that_cannot_fit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr(engine.tokenizer, "encode", encode)
    session = LocalChatBackend(engine, "tiny")
    short = Message("user", "the")
    for messages in ([Message("user", text)], [Message("system", text), short], [short, Message("assistant", text)]):
        with pytest.raises(ContextFullError, match="the prompt has at least"):
            session.reply(messages, GREEDY, threading.Event())
    with pytest.raises(ContextFullError, match="the last message alone"):
        session.trim_to_fit([Message("user", text)])


def test_facts_compare_the_cache_with_plain_attention(engine: Engine) -> None:
    facts = LocalChatBackend(engine, "tiny").stats()
    # 3 layers of float32: a latent of 32 and 8 rotary values, against 4 heads of 24 key and 16 value each.
    assert facts.kv_bytes_per_token == 3 * 40 * 4
    assert facts.plain_kv_bytes_per_token == 3 * 4 * (24 + 16) * 4
    assert facts.context == 200


def test_experts_are_counted_until_another_conversation_begins(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    done = run(session, [Message("user", "in the house")])
    uses = session.stats().uses
    assert uses is not None
    seen = done.prompt_tokens + len(done.token_ids) - 1  # nobody reads the last token
    last = len(done.token_ids)  # of the prompt, too, its last token alone runs through the last layer
    assert [sum(layer) for layer in uses] == [count * engine.model.config.num_experts_per_tok for count in (seen, last)]
    session.reset_expert_counts()
    assert session.stats().uses == [[0] * 8] * 2


def test_a_conversation_goes_on_from_disk_in_another_process(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    store = LatentDiskCache(tmp_path / "latents", "model")
    before = LocalChatBackend(load_engine(folder, context=200, open_disk_cache=lambda: store), "tiny")
    first = [Message("user", "in the house that is by the water")]
    answer = run(before, first)
    before.save_cache("talk")
    second = [*first, Message("assistant", answer.text, answer.token_ids), Message("user", "the")]
    after = LocalChatBackend(load_engine(folder, context=200, open_disk_cache=lambda: store), "tiny")
    after.restore_cache("talk", second)
    done = run(after, second)
    assert done.cached_tokens >= answer.prompt_tokens + len(answer.token_ids) - 1
    assert done.token_ids == run(before, second).token_ids


def test_the_scores_of_an_answer_are_those_with_which_it_was_drawn(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    question = [Message("system", "of the"), Message("user", "the inner")]
    request = Request(session.prompt_ids(question), GREEDY, logprobs=5)
    drawn = [event for event in engine.generate(request) if isinstance(event, Token)]
    done = run(session, question)
    answer = [*question, Message("assistant", done.text, done.token_ids)]
    scored = session.score(answer, 5, threading.Event())
    assert scored is not None
    assert [token.id for token in scored] == [token.id for token in drawn]
    for one, other in zip(scored, drawn, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top is not None
        assert other.top is not None
        assert [each.id for each in one.top] == [each.id for each in other.top]
    later = [*answer, Message("user", "the")]
    assert run(session, later).cached_tokens >= done.prompt_tokens + len(done.token_ids) - 1


def test_an_answer_without_ids_is_scored_by_its_text(engine: Engine) -> None:
    session = LocalChatBackend(engine, "tiny")
    scored = session.score([Message("user", "the inner"), Message("assistant", "of the")], 2, threading.Event())
    assert scored is not None
    assert "".join(token.text for token in scored) == " of the"
    assert all(token.logprob is not None and token.logprob < 0 for token in scored)
