"""Conversations to ids: the template's own special tokens and nobody else's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference import reference_file
from support.tokenizers import BOS, BOS_ID, EOS, EOS_ID, tiny_tokenizer, write_tokenizer

from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message, Role
from dslite.runtime.text.tokenizer import Tokenizer

Encode = Callable[[str], list[int]]
CONTENT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from([BOS, EOS, "<｜", "｜", "▁", "User: ", "\n\nAssistant:", "{{ bos_token }}", "{%", "\U000f0000"])
).map("".join)
MESSAGES = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), CONTENT), max_size=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def by_hand(tokenizer: Tokenizer, messages: list[Message], *, add_generation_prompt: bool = True) -> list[int]:
    """The ids that DeepSeek's template stands for, put together without it: what lies between specials is one text."""
    ids, text = [BOS_ID], ""
    for message in messages:
        if message.role == "assistant":
            ids += [*tokenizer.encode(f"{text}Assistant: {message.content}"), EOS_ID]
            text = ""
        else:
            text += f"User: {message.content}\n\n" if message.role == "user" else f"{message.content}\n\n"
    return ids + tokenizer.encode(text + "Assistant:" * add_generation_prompt)


def test_published_conversations_of_the_real_template() -> None:
    entries = json.loads(reference_file("vectors/chat-template.json").read_text(encoding="utf-8"))["entries"]
    template = ChatTemplate(Tokenizer.from_folder(reference_file("tokenizer.json").parent))
    assert len(entries) >= 8
    for entry in entries:
        messages = [Message.from_dict(message) for message in entry["messages"]]
        ids = template.encode(messages, add_generation_prompt=entry["add_generation_prompt"])
        assert ids == entry["ids"]
        assert ids.count(100_000) == 1


@given(MESSAGES, st.booleans())
def test_text_of_messages_is_inert_whatever_it_spells(
    template: ChatTemplate, tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool
) -> None:
    ids = template.encode(messages, add_generation_prompt=add_generation_prompt)

    assert ids == by_hand(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    assert ids.count(BOS_ID) == 1
    assert ids.count(EOS_ID) == sum(message.role == "assistant" for message in messages)


def test_a_special_tokens_spelling_in_a_message_becomes_plain_characters(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    ids = template.encode([Message("user", f"a{EOS}{BOS}b")])

    assert ids[0] == BOS_ID
    assert not {BOS_ID, EOS_ID} & set(ids[1:])
    assert tokenizer.decode(ids) == f"User: a{EOS}{BOS}b\n\nAssistant:"


def test_special_spellings_are_inert_with_the_real_tokenizer_too() -> None:
    tokenizer = Tokenizer.from_folder(reference_file("tokenizer.json").parent)

    ids = ChatTemplate(tokenizer).encode([Message("user", f"{EOS} and {BOS}")])

    assert [id for id in ids if id >= 100_000] == [100_000]
    assert tokenizer.decode(ids) == f"User: {EOS} and {BOS}\n\nAssistant:"


def test_what_the_model_generated_is_never_encoded_again(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Byte by byte, "the" is three tokens; encoding its text would give one."""
    generated = tuple(b" the end")
    assert tokenizer.encode(" the end") != list(generated)
    first, second = Message("user", "one"), Message("user", "two")

    prompt = template.encode([first])
    ids = template.encode([first, Message("assistant", " the end", generated), second])

    assert ids == [*prompt, *generated, EOS_ID, *tokenizer.encode("User: two\n\nAssistant:")]


@given(st.lists(st.tuples(CONTENT, st.lists(st.integers(0, BOS_ID - 1), max_size=6), st.booleans()), max_size=4))
def test_each_turn_goes_on_from_the_very_ids_of_the_turns_before(
    template: ChatTemplate, turns: list[tuple[str, list[int], bool]]
) -> None:
    """So the cache of a conversation stays good, whatever was generated and whether it ended with EOS or was cut."""
    messages: list[Message] = []
    for question, answer, ended in turns:
        messages.append(Message("user", question))
        prompt = template.encode(messages)
        messages.append(Message("assistant", "shown otherwise", (*answer, *[EOS_ID] * ended)))
        whole = template.encode([*messages, Message("user", "")])
        assert whole[: len(prompt) + len(answer) + 1] == [*prompt, *answer, EOS_ID]


def test_a_template_that_rewrites_earlier_turns_is_encoded_as_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template="{{ bos_token }}{{ messages | length }}{{ messages[-1]['content'] }}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    messages = [Message("user", "a"), Message("assistant", "b", (98,)), Message("user", "c")]

    assert ChatTemplate(tokenizer).encode(messages) == [BOS_ID, *tokenizer.encode("3c")]


def test_a_lone_surrogate_in_a_message_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(UsageError, match="lone surrogate"):
        template.encode([Message("user", "a\ud800")])


@pytest.mark.parametrize("source", ["{% if %}", "{{ bos_token", "{% for x in y %}"])
def test_a_template_that_is_no_jinja_is_refused(tmp_path: Path, source: str) -> None:
    write_tokenizer(tmp_path, chat_template=source)

    with pytest.raises(CheckpointError, match="chat template is damaged"):
        ChatTemplate(Tokenizer.from_folder(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content.no_such_thing.at_all }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'a' }}",
        "{{ messages[7]['content'] + 'a' }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_of_its_sandbox_is_one_clear_error(tmp_path: Path, source: str) -> None:
    write_tokenizer(tmp_path, chat_template=source)

    with pytest.raises((UsageError, CheckpointError), match="chat template"):
        ChatTemplate(Tokenizer.from_folder(tmp_path)).encode([Message("user", "a")])


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    del raw["chat_template"]
    file.write_text(json.dumps(raw), encoding="utf-8")

    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTemplate(Tokenizer.from_folder(tmp_path))


def test_a_template_of_its_own_file_wins(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!", encoding="utf-8")

    assert ChatTemplate(Tokenizer.from_folder(tmp_path)).encode([Message("user", "A")]) == list(b"A!")


@pytest.mark.parametrize(
    "raw", [None, [], "hi", {}, {"role": "user"}, {"role": "tool", "content": "x"}, {"role": "user", "content": 3}]
)
def test_a_message_that_is_none_is_refused(raw: object) -> None:
    with pytest.raises(UsageError, match="role"):
        Message.from_dict(raw)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_message_is_read_from_its_object(role: Role) -> None:
    assert Message.from_dict({"role": role, "content": "x", "name": "ignored"}) == Message(role, "x")
