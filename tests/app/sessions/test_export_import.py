"""Conversations as files: what is exported comes back, and what is no conversation is refused whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dslite.app.sessions.export import to_dict, to_markdown
from dslite.app.sessions.importer import import_text
from dslite.app.sessions.store import SessionStore
from dslite.runtime.errors import UsageError


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
    store.activate(first.id)
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
    assert len(store.siblings(because.id)) == 2


GOOD = {"messages": [{"id": 1, "parent": None, "role": "user", "content": "fine"}]}


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (3, "neither messages nor a mapping"),
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
def test_a_file_with_one_wrong_conversation_adds_none(store: SessionStore, raw: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        import_text(store, json.dumps([GOOD, raw]))
    assert store.conversations() == []


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_refused(store: SessionStore, text: str) -> None:
    with pytest.raises(UsageError, match="not valid JSON"):
        import_text(store, text)


def test_odd_values_of_a_file_do_not_break_the_import(store: SessionStore) -> None:
    odd = {**GOOD, "leaf": [1], "title": 3, "created": "yesterday", "updated": 1e99, "id": "../../etc", "model": None}
    (talk,) = import_text(store, json.dumps(odd))
    assert (talk.title, talk.model, len(talk.id)) == ("fine", "", 26)
    assert [message.content for message in store.path(talk.leaf)] == ["fine"]
