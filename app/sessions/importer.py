"""Conversations from files: what `to_dict` wrote, and ChatGPT's conversations.json."""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dslite.app.sessions.export import VERSION
from dslite.app.sessions.ids import clean, new_id, title_of
from dslite.app.sessions.records import Conversation, pack, to_json
from dslite.app.sessions.store import SessionStore
from dslite.runtime.errors import UsageError

_ROLES = ("system", "user", "assistant")


@dataclass
class _Node:
    """A message to be imported. `key` and `parent` name messages within the file."""

    key: Any
    parent: Any
    role: str
    content: str
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0
    updated: float = 0.0


@dataclass
class _Talk:
    """A conversation to be imported."""

    id: str | None
    title: str
    model: str
    profile: str | None
    system: str | None
    leaf: Any
    created: float
    updated: float
    nodes: list[_Node]


def import_text(store: SessionStore, text: str) -> list[Conversation]:
    """Add the conversations of a file: all of them or, when one is wrong, none. Raises UsageError, SessionsError."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the file is not valid JSON: {error}") from None
    items = raw if isinstance(raw, list) else [raw]
    talks = [_parse(item, f"conversation {place}") for place, item in enumerate(items, start=1)]
    with store.database.writing() as db:
        ids = [_insert(db, talk, f"conversation {place}") for place, talk in enumerate(talks, start=1)]
    return [store.get(identity) for identity in ids]


def _parse(raw: Any, where: str) -> _Talk:
    if isinstance(raw, dict) and isinstance(raw.get("messages"), list):
        return _parse_ours(raw, where)
    if isinstance(raw, dict) and isinstance(raw.get("mapping"), dict):
        return _parse_chatgpt(raw)
    raise UsageError(
        f"{where} has neither messages nor a mapping",
        "import what dslite session export -o json wrote, or ChatGPT's conversations.json",
    )


def _parse_ours(raw: dict[str, Any], where: str) -> _Talk:
    version = raw.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise UsageError(f"{where} has version {version!r}, and this dslite knows {VERSION}", "update dslite")
    now = time.time()
    nodes: list[_Node] = []
    for place, message in enumerate(raw["messages"], start=1):
        if not isinstance(message, dict) or message.get("role") not in _ROLES or not _is_text(message, "content"):
            raise UsageError(
                f"{where}, message {place}: it needs a role (system, user or assistant) and content (text)"
            )
        ids = message.get("token_ids")
        if ids is not None and not (isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**32 for i in ids)):
            raise UsageError(f"{where}, message {place}: token_ids must be a list of token ids, or null")
        previous = nodes[-1].key if nodes else None
        nodes.append(
            _Node(
                message.get("id", place),
                message.get("parent", previous),
                message["role"],
                message["content"],
                ids,
                message.get("finish_reason") if _is_text(message, "finish_reason") else None,
                message["info"] if isinstance(message.get("info"), dict) else {},
                _number(message.get("created"), now),
                _number(message.get("updated"), now),
            )
        )
    texts = {key: raw[key] if _is_text(raw, key) else None for key in ("id", "title", "model", "profile", "system")}
    return _Talk(
        texts["id"],
        texts["title"] or "",
        texts["model"] or "",
        texts["profile"],
        texts["system"],
        raw.get("leaf"),
        _number(raw.get("created"), now),
        _number(raw.get("updated"), now),
        nodes,
    )


def _parse_chatgpt(raw: dict[str, Any]) -> _Talk:
    """A conversation of ChatGPT's export: nodes without text of a person or an answer are left out of the tree."""
    now = time.time()
    mapping: dict[str, Any] = {key: node for key, node in raw["mapping"].items() if isinstance(node, dict)}
    kept = {key: text for key, node in mapping.items() if (text := _chatgpt_text(node.get("message")))}

    def kept_from(key: Any) -> Any:
        """The nearest node upwards that is kept, itself included."""
        seen = set()
        while isinstance(key, str) and key in mapping and key not in kept and key not in seen:
            seen.add(key)
            key = mapping[key].get("parent")
        return key if key in kept else None

    nodes = [
        _Node(
            key,
            kept_from(mapping[key].get("parent")),
            mapping[key]["message"]["author"]["role"],
            text,
            created=_number(mapping[key]["message"].get("create_time"), now),
            updated=_number(mapping[key]["message"].get("create_time"), now),
        )
        for key, text in kept.items()
    ]
    title = raw["title"] if _is_text(raw, "title") else ""
    created = _number(raw.get("create_time"), now)
    model = raw["default_model_slug"] if _is_text(raw, "default_model_slug") else "ChatGPT"
    leaf = kept_from(raw.get("current_node"))
    return _Talk(None, title, model, None, None, leaf, created, _number(raw.get("update_time"), created), nodes)


def _chatgpt_text(message: Any) -> str:
    """The text of a message that a person wrote or read; empty for all else."""
    if not isinstance(message, dict) or (message.get("metadata") or {}).get("is_visually_hidden_from_conversation"):
        return ""
    role = (message.get("author") or {}).get("role")
    content = message.get("content") or {}
    if role not in ("user", "assistant") or content.get("content_type") not in ("text", "multimodal_text"):
        return ""
    return "\n\n".join(part for part in content.get("parts") or [] if isinstance(part, str) and part)


def _insert(db: sqlite3.Connection, talk: _Talk, where: str) -> str:
    """Write a conversation under its own id, or a new one where that is taken or missing."""
    taken = db.execute("SELECT 1 FROM conversations WHERE id = ?", (talk.id,)).fetchone()
    identity = new_id(talk.created) if taken or not _is_ulid(talk.id) else str(talk.id)
    title = talk.title or next((title_of(node.content) for node in talk.nodes if node.role == "user"), "")
    conversation = db.execute(
        "INSERT INTO conversations (id, title, model, profile, system, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (identity, clean(title), talk.model, talk.profile, talk.system, talk.created, talk.updated),
    ).lastrowid
    rows: dict[Any, int | None] = {None: None}
    for node in _parents_first(talk.nodes, where):
        rows[node.key] = db.execute(
            "INSERT INTO messages"
            " (conversation, parent, role, content, token_ids, finish_reason, info, created, updated)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                conversation,
                rows[node.parent],
                node.role,
                clean(node.content),
                pack(node.token_ids),
                node.finish_reason,
                to_json(node.info),
                node.created,
                node.updated,
            ),
        ).lastrowid
    leaf = rows.get(talk.leaf if isinstance(talk.leaf, int | str) else None) or max(
        (row for row in rows.values() if row), default=None
    )
    db.execute("UPDATE conversations SET leaf = ? WHERE key = ?", (leaf, conversation))
    return identity


def _parents_first(nodes: Sequence[_Node], where: str) -> list[_Node]:
    """The nodes of a tree in an order in which they can be written. Raises UsageError for what is no tree."""
    children: dict[Any, list[_Node]] = {}
    for node in nodes:
        if not isinstance(node.key, int | str) or not isinstance(node.parent, int | str | None):
            raise UsageError(f"{where}: a message has the id {node.key!r} or parent {node.parent!r}")
        children.setdefault(node.parent, []).append(node)
    ordered = list(children.get(None, []))
    for node in ordered:  # grows while it is read
        ordered += children.pop(node.key, [])
    if len(ordered) != len(nodes) or len({node.key for node in nodes}) != len(nodes):
        raise UsageError(
            f"{where}: its messages are no tree", "every parent must be the id of another message, or null"
        )
    return ordered


def _is_ulid(text: str | None) -> bool:
    return text is not None and len(text) == 26 and text.isascii() and text.isalnum() and text == text.upper()


def _is_text(raw: Mapping[str, Any], key: str) -> bool:
    return isinstance(raw.get(key), str)


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e11 else otherwise
