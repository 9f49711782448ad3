"""Conversations as files: what is exported comes back, and what is no conversation is refused whole."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dslite.app.sessions import importer
from dslite.app.sessions.export import to_dict, to_markdown
from dslite.app.sessions.importer import ImportResult, import_file
from dslite.app.sessions.records import Conversation
from dslite.app.sessions.store import SessionStore
from dslite.runtime.errors import UsageError


def import_text(store: SessionStore, text: str) -> list[Conversation]:
    """The conversations of a text in which all are sound."""
    result = import_file(store, text.encode("utf-8", "surrogatepass"))
    assert result.skipped == []
    return result.imported


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "sessions.db") as opened:
        yield opened


def branched(store: SessionStore) -> str:
    """A conversation with two answers to its question, the first one active."""
    talk = store.create(model="demo", profile="coder", system="Be brief.", title="Sky")
    question = store.append(talk.id, "user", "Why 天?\n```c\nx\n```", parent=None)
    first = store.append(
        talk.id,
        "assistant",
        "Because.",
        parent=question.id,
        token_ids=[3, 1],
        finish_reason="stop",
        info={"model": "demo"},
    )
    store.append(talk.id, "assistant", "Therefore.", parent=question.id, finish_reason="length")
    store.set_leaf(talk.id, first.id)
    return talk.id


def shape(raw: dict[str, Any]) -> dict[str, Any]:
    """An export without what must differ: ids, whose messages are numbered by their places."""
    places = {message["id"]: place for place, message in enumerate(raw["messages"])}
    messages = [
        {**message, "id": places[message["id"]], "parent": places.get(message["parent"])} for message in raw["messages"]
    ]
    return {**raw, "id": None, "leaf": places[raw["leaf"]], "messages": messages}


def test_an_export_imports_as_the_same_tree(store: SessionStore, tmp_path: Path) -> None:
    identity = branched(store)
    exported = to_dict(store.get(identity), store.tree(identity))
    text = json.dumps(exported)
    with SessionStore.open(tmp_path / "elsewhere" / "sessions.db") as other:
        (talk,) = import_text(other, text)
        assert talk.id == identity
        assert shape(to_dict(talk, other.tree(talk.id))) == shape(exported)
        assert [hit.id for hit in other.search("Therefore")] == [identity]


def test_importing_again_makes_a_second_conversation(store: SessionStore) -> None:
    identity = branched(store)
    exported = to_dict(store.get(identity), store.tree(identity))
    (copy,) = import_text(store, json.dumps(exported))
    assert copy.id != identity
    assert shape(to_dict(copy, store.tree(copy.id))) == shape(exported)
    assert len(store.conversations()) == 2


def test_markdown_has_the_active_branch_and_its_text_unchanged(store: SessionStore) -> None:
    identity = branched(store)
    talk = store.get(identity)
    text = to_markdown(talk, store.path(talk.leaf))
    assert text.startswith("# Sky\n")
    assert "- Model: demo\n" in text
    assert "- Profile: coder\n" in text
    sections = text.split("\n## ")[1:]
    assert sections == ["System\n\nBe brief.\n", "User\n\nWhy 天?\n```c\nx\n```\n", "Assistant\n\nBecause.\n"]


def test_plain_lists_of_messages_import_as_one_branch(store: SessionStore) -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    (talk,) = import_text(store, json.dumps({"messages": turns}))
    assert [message.content for message in store.path(talk.leaf)] == ["one", "two", "three"]
    assert talk.title == "one"


def node(key: str, parent: str | None, role: str = "user", text: str = "", **more: Any) -> dict[str, Any]:
    message = {
        "author": {"role": role},
        "content": {"content_type": "text", "parts": [text]},
        "create_time": 1.7e9,
        **more,
    }
    return {"id": key, "parent": parent, "message": message, "children": []}


def test_chatgpts_export_imports_with_its_branches(store: SessionStore) -> None:
    nodes = [
        {"id": "root", "parent": None, "message": None, "children": ["s"]},
        node("s", "root", "system"),
        node("q", "s", "user", "Why?"),
        node("hidden", "q", "assistant", "thinking", metadata={"is_visually_hidden_from_conversation": True}),
        node("tool", "hidden", "tool", "{}"),
        node("a", "tool", "assistant", "Because."),
        node("b", "q", "assistant", "Therefore."),
        node(
            "image", "b", "user", "look", content={"content_type": "multimodal_text", "parts": [{"asset": 1}, "look"]}
        ),
    ]
    raw = {
        "title": "Sky",
        "create_time": 1.7e9,
        "mapping": {item["id"]: item for item in nodes},
        "current_node": "tool",
    }
    (talk, second) = import_text(store, json.dumps([raw, {**raw, "current_node": "image"}]))
    assert (talk.title, talk.created) == ("Sky", 1.7e9)
    assert {message.content for message in store.tree(talk.id)} == {"Why?", "Because.", "Therefore.", "look"}
    assert [message.content for message in store.path(talk.leaf)] == ["Why?"]
    assert [message.content for message in store.path(second.leaf)] == ["Why?", "Therefore.", "look"]
    because = next(message for message in store.tree(talk.id) if message.content == "Because.")
    assert len([message for message in store.tree(talk.id) if message.parent == because.parent]) == 2


def chatgpt(nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"title": "Sky", "mapping": nodes, **more}


GOOD = {"messages": [{"id": 1, "parent": None, "role": "user", "content": "fine"}]}


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (3, "neither messages nor a mapping"),
        (None, "neither messages nor a mapping"),
        ([], "neither messages nor a mapping"),
        ({"mapping": {}}, "no message"),
        ({"mapping": {"a": {"message": {"author": {"role": "user"}, "content": {"parts": 5}}}}}, "no message"),
        ({"mapping": {"a": None, "b": 3, "c": {"message": None}}}, "no message"),
        (chatgpt({"a": node("a", "b", text="x"), "b": node("b", "a", text="y")}), "no tree"),
        ({"messages": 3}, "neither"),
        ({"messages": [3]}, "message 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "user", "content": "x", "token_ids": [-1]}]}, "token_ids"),
        ({"messages": [{"role": "user", "content": "x", "token_ids": [2**32]}]}, "token_ids"),
        ({"messages": [{"role": "user", "content": "x", "parent": 7}]}, "no tree"),
        ({"messages": [{"role": "user", "content": "x", "id": 1, "parent": 1}]}, "no tree"),
        ({"messages": [{"role": "user", "content": "x", "id": 1, "parent": None}] * 2}, "no tree"),
        ({"messages": [{"role": "user", "content": "x", "id": [1]}]}, "has the id"),
        ({"version": 2, "messages": []}, "version 2"),
    ],
)
def test_a_wrong_conversation_is_named_and_the_sound_ones_are_added(store: SessionStore, raw: Any, fault: str) -> None:
    result = import_file(store, json.dumps([GOOD, raw, GOOD]).encode())
    (named,) = result.skipped
    assert fault in named
    assert "conversation 2" in named
    assert [conversation.title for conversation in store.conversations()] == ["fine", "fine"]
    assert len(result.imported) == 2


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(store: SessionStore, text: str) -> None:
    with pytest.raises(UsageError, match="not valid JSON"):
        import_file(store, text.encode())


def test_odd_values_of_a_file_do_not_break_the_import(store: SessionStore) -> None:
    odd = {**GOOD, "leaf": [1], "title": 3, "created": "yesterday", "updated": 1e99, "id": "../../etc", "model": None}
    (talk,) = import_text(store, json.dumps(odd))
    assert (talk.title, talk.model, len(talk.id)) == ("fine", "", 26)
    assert [message.content for message in store.path(talk.leaf)] == ["fine"]


@pytest.mark.parametrize(
    "odd",
    [
        node("q", None, text="Why?", author="user"),
        node("q", None, text="Why?", metadata=[1], create_time=float("inf")),
        node("q", None, text="Why?", content={"parts": ["Why?", 5, None, {"x": 1}]}),
    ],
)
def test_odd_fields_of_chatgpts_messages_keep_no_text_out(store: SessionStore, odd: dict[str, Any]) -> None:
    raw = chatgpt({"q": odd, "x": None}, current_node=[1], title=4, default_model_slug="\ud800", create_time=1e99)
    (conversation,) = import_text(store, json.dumps(raw))
    assert [message.content for message in store.path(conversation.leaf)] == ["Why?"]
    assert conversation.model == "\ufffd"


SURROGATE = {
    "messages": [{"role": "user", "content": "a\ud800", "finish_reason": "\udfff", "info": {"k": "\ud800"}}],
    "title": "\ud800",
    "model": "\ud800",
    "profile": "\ud800",
    "system": "\ud800",
}


def test_a_lone_surrogate_in_any_field_is_replaced(store: SessionStore) -> None:
    (conversation,) = import_text(store, json.dumps(SURROGATE))
    assert (conversation.title, conversation.profile, conversation.system) == ("\ufffd",) * 3
    assert store.path(conversation.leaf)[0].content == "a\ufffd"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_with_a_mark_of_byte_order_are_read(store: SessionStore, encoding: str) -> None:
    result = import_file(store, json.dumps(GOOD).encode(encoding))
    assert [conversation.title for conversation in result.imported] == ["fine"]


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # of a fixed date
    return buffer.getvalue()


def of_zip(store: SessionStore, members: dict[str, bytes]) -> ImportResult:
    return import_file(store, zipped(members))


def titled(*titles: str) -> bytes:
    return json.dumps([chatgpt({"q": node("q", None, text="x")}, title=title) for title in titles]).encode()


def test_every_file_of_chatgpts_archive_is_imported_and_a_damaged_one_is_named(store: SessionStore) -> None:
    members = {
        "user.json": b"{}",
        "conversations-000.json": titled("a", "b"),
        "conversations-001.json": b"{",
        "export/conversations-002.json": titled("c"),
        "my-conversations.json.txt": b"x",
    }
    result = of_zip(store, members)
    assert [conversation.title for conversation in result.imported] == ["a", "b", "c"]
    (fault,) = result.skipped
    assert fault.startswith("conversations-001.json is not valid JSON")


def test_an_archive_that_unpacks_to_too_much_is_cut(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importer, "MAX_BYTES", 5000)
    result = of_zip(store, {"conversations-0.json": titled("a"), "conversations-1.json": b" " * 10_000_000})
    assert [conversation.title for conversation in result.imported] == ["a"]
    assert "more than 5,000 bytes" in result.skipped[0]


def test_a_large_file_of_an_archive_does_not_keep_the_others_out(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "MAX_JSON_BYTES", 5000)
    result = of_zip(store, {"conversations-0.json": b" " * 10_000, "conversations-1.json": titled("a")})
    assert [conversation.title for conversation in result.imported] == ["a"]
    assert result.skipped == ["conversations-0.json: more than 5,000 bytes unpacked"]


class Unseekable(io.BytesIO):
    """A pipe."""

    def seekable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("make", [io.BytesIO, Unseekable])
@pytest.mark.parametrize("size", [0, 1, 4999])
def test_json_is_read_up_to_a_bound(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, make: Callable[[bytes], io.BytesIO], size: int
) -> None:
    monkeypatch.setattr(importer, "MAX_JSON_BYTES", 5000)
    sound = titled("a")
    assert [talk.title for talk in import_file(store, make(sound + b" " * (5000 - len(sound)))).imported] == ["a"]
    stream = make(sound + b" " * (5001 - len(sound) + size))
    with pytest.raises(UsageError, match="more than 5,000 bytes"):
        import_file(store, stream)
    assert len(stream.read()) == size, "no more is read than shows that it is too large"


@pytest.mark.parametrize("make", [io.BytesIO, Unseekable])
def test_an_archive_is_read_from_a_file_and_from_a_pipe(
    store: SessionStore, make: Callable[[bytes], io.BytesIO]
) -> None:
    result = import_file(store, make(zipped({"conversations.json": titled("a"), "image.png": b"x" * 100_000})))
    assert [conversation.title for conversation in result.imported] == ["a"]


def nested(depth: int, inner: Any = 1, wrap: Callable[[Any], Any] = lambda value: {"k": value}) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


@pytest.mark.parametrize("wrap", [lambda value: {"k": value}, lambda value: {"k": [1, value]}])
def test_a_message_keeps_no_value_that_is_nested_too_deeply(store: SessionStore, wrap: Callable[[Any], Any]) -> None:
    def conversation(depth: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "fine", "info": nested(depth, wrap=wrap)}]}

    result = import_file(store, json.dumps([conversation(300), conversation(20), conversation(100)]).encode())
    assert [fault.partition(":")[0] for fault in result.skipped] == [
        "conversation 1, message 1",
        "conversation 3, message 1",
    ]
    (talk,) = result.imported
    assert store.path(talk.leaf)[0].info == nested(20, wrap=wrap)


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [{"role": "user", "content": "fine", "info": {"x": 1' + "0" * 5000 + "}}]}",
        '{"mapping": ' * 5000,
        '[{"messages":' * 3000 + "1" + "}]" * 3000,
        '{"messages": [' + "[" * 200_000,
    ],
    ids=["digits", "mappings", "messages", "lists"],
)
def test_json_made_to_break_the_parser_is_refused(store: SessionStore, text: str) -> None:
    with pytest.raises(UsageError, match="not valid JSON"):
        import_file(store, text.encode())
    assert store.conversations() == []


@pytest.mark.parametrize(
    "data",
    [b"PK", zipped({"x.json": b""}), zipped({"conversations.json": b"[]" * 999})[:60]],
    ids=["the first two bytes", "other files only", "cut"],
)
def test_what_is_no_archive_of_conversations_is_refused(store: SessionStore, data: bytes) -> None:
    with pytest.raises(UsageError, match="archive"):
        import_file(store, data)


FIELDS = st.sampled_from(
    "messages mapping role content id parent token_ids info title created leaf author parts message metadata "
    "create_time current_node version".split()
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(JSON, max_size=3))
def test_any_json_is_imported_or_named(store: SessionStore, items: list[Any]) -> None:
    result = import_file(store, json.dumps([*items, GOOD]).encode())
    assert len(result.imported) + len(result.skipped) == len(items) + 1
    assert result.imported[-1].title == "fine"
    for conversation in result.imported:
        store.path(conversation.leaf)
