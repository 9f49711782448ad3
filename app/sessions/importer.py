"""Conversations from files: what `to_dict` wrote, and ChatGPT's export, as conversations.json or as its ZIP.

A file is foreign text: each conversation is imported whole or not at all, and one that is not sound does not keep the
others out. Sizes are bounded, as JSON takes up to thirty times its bytes in memory, and so is depth: what is read back
in a deeper call must not reach Python's limit.
"""

import codecs
import io
import json
import os
import re
import sqlite3
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from dslite.app.sessions.export import VERSION
from dslite.app.sessions.ids import clean, new_id, title_of
from dslite.app.sessions.records import Conversation, pack, to_json
from dslite.app.sessions.store import SessionStore
from dslite.runtime.errors import UsageError
from dslite.runtime.nesting import is_deeper

MAX_BYTES = 2**30  # of the texts of an archive
MAX_JSON_BYTES = 2**28  # of one text; newer archives hold several of them
_MAX_DEPTH = 64  # of what is kept of a conversation as JSON
_ROLES = ("system", "user", "assistant")
_CONVERSATIONS = re.compile(r"(^|/)conversations(-\d+)?\.json$")


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
class _ImportedConversation:
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


@dataclass(frozen=True)
class ImportResult:
    """The conversations that were imported, and why the others were not: a line each, with the place in the file."""

    imported: list[Conversation]
    skipped: list[str]


def import_file(store: SessionStore, data: bytes | BinaryIO, name: str = "the file") -> ImportResult:
    """Add the conversations of an export of dslite or of ChatGPT, as JSON or as its ZIP; what is not sound is skipped.

    `data` is the file's bytes, or the file itself, of which an archive's images are not read. Raises UsageError for
    what is no such file or too large, OSError, and SessionsError where nothing can be saved.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    head = stream.read(2)
    if head == b"PK":
        # A pipe cannot be read from its end, where an archive has its table.
        archive = stream if stream.seekable() else io.BytesIO(_read_bounded(head, stream, MAX_BYTES, name))
        texts, skipped = _read_zip(archive)
    else:
        try:
            texts, skipped = {"": _decode(_read_bounded(head, stream, MAX_JSON_BYTES, name))}, []
        except UnicodeDecodeError as error:
            raise UsageError(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from None
    imported: list[str] = []
    for member, text in texts.items():
        prefix = f"{member}, " if member else ""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            fault = f"{member or name} is not valid JSON: {error}"
            if not member:
                raise UsageError(fault) from None
            skipped.append(fault)
            continue
        for place, item in enumerate(raw if isinstance(raw, list) else [raw], start=1):
            try:
                imported.append(_import_one(store, item, f"{prefix}conversation {place}"))
            except UsageError as error:
                skipped.append(error.message)
    return ImportResult([store.get(identity) for identity in imported], skipped)


def import_path(store: SessionStore, path: "str | os.PathLike[str]") -> ImportResult:
    """Import a file by its path. Raises UsageError where it cannot be read, too."""
    try:
        with open(path, "rb") as stream:
            return import_file(store, stream, str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"the file {path} cannot be read: {reason}", "check its path and permissions") from None


def _read_bounded(head: bytes, stream: BinaryIO, most: int, name: str) -> bytes:
    """The rest of a stream after its head. Raises UsageError where both are longer than `most` bytes, OSError."""
    data = head + stream.read(most + 1 - len(head))
    if len(data) > most:
        raise UsageError(f"{name} has more than {most:,} bytes", "split its list of conversations into several files")
    return data


def _import_one(store: SessionStore, raw: Any, where: str) -> str:
    """Add one conversation; return its id. Raises UsageError for one that is not sound, of which nothing is kept."""
    try:
        conversation = _parse(raw, where)
        with store.database.writing() as db:
            return _insert(db, conversation, where)
    except (RecursionError, OverflowError, TypeError, ValueError, sqlite3.IntegrityError) as error:
        raise UsageError(f"{where} cannot be imported: {type(error).__name__}: {error}") from None


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def _read_zip(file: BinaryIO) -> tuple[dict[str, str], list[str]]:
    """The texts of conversations.json, or conversations-000.json and so on, of an archive, within bounds."""
    texts: dict[str, str] = {}
    skipped: list[str] = []
    left = MAX_BYTES
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(info.filename for info in archive.infolist() if _CONVERSATIONS.search(info.filename))
            for name in names:
                with archive.open(name) as stream:
                    raw = stream.read(min(left, MAX_JSON_BYTES) + 1)  # a header may lie about the size
                left -= len(raw)
                if left < 0:
                    skipped.append(f"{name} and what follows: more than {MAX_BYTES:,} bytes unpacked")
                    break
                if len(raw) > MAX_JSON_BYTES:
                    skipped.append(f"{name}: more than {MAX_JSON_BYTES:,} bytes unpacked")
                    continue
                try:
                    texts[name] = _decode(raw)
                except UnicodeDecodeError as error:
                    skipped.append(f"{name} is not valid UTF-8: {error.reason}")
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(f"the archive cannot be read: {error}", "download it again") from None
    if not texts and not skipped:
        raise UsageError("the archive has no conversations.json", "import the ZIP that ChatGPT's export gives")
    return texts, skipped


def _parse(raw: Any, where: str) -> _ImportedConversation:
    if isinstance(raw, dict) and isinstance(raw.get("messages"), list):
        return _parse_ours(raw, where)
    if isinstance(raw, dict) and isinstance(raw.get("mapping"), dict):
        conversation = _parse_chatgpt(raw)
        if not conversation.nodes:
            raise UsageError(f"{where} has no message of a person or an answer")
        return conversation
    raise UsageError(
        f"{where} has neither messages nor a mapping",
        "import what dslite session export -o json wrote, or ChatGPT's conversations.json",
    )


def _parse_ours(raw: dict[str, Any], where: str) -> _ImportedConversation:
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
                _info(message.get("info"), f"{where}, message {place}"),
                _number(message.get("created"), now),
                _number(message.get("updated"), now),
            )
        )
    texts = {key: raw[key] if _is_text(raw, key) else None for key in ("id", "title", "model", "profile", "system")}
    return _ImportedConversation(
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


def _info(raw: Any, where: str) -> dict[str, Any]:
    """The table `info` of a message; empty for what is none. Raises UsageError for one that is nested too deeply."""
    if is_deeper(raw, _MAX_DEPTH):
        raise UsageError(f"{where}: info is nested more than {_MAX_DEPTH} levels deep")
    return raw if isinstance(raw, dict) else {}


def _parse_chatgpt(raw: dict[str, Any]) -> _ImportedConversation:
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
        return key if isinstance(key, str) and key in kept else None

    nodes = [
        _Node(
            key,
            kept_from(mapping[key].get("parent")),
            _chatgpt_role(mapping[key]["message"]),
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
    return _ImportedConversation(
        None, title, model, None, None, leaf, created, _number(raw.get("update_time"), created), nodes
    )


def _chatgpt_text(message: Any) -> str:
    """The text of a message that a person wrote or read; empty for all else."""
    if not isinstance(message, dict) or _table(message, "metadata").get("is_visually_hidden_from_conversation"):
        return ""
    content = _table(message, "content")
    if _chatgpt_role(message) not in ("user", "assistant"):
        return ""
    if content.get("content_type", "text") not in ("text", "multimodal_text"):
        return ""
    parts = content.get("parts")
    return "\n\n".join(part for part in parts if isinstance(part, str) and part) if isinstance(parts, list) else ""


def _chatgpt_role(message: Mapping[str, Any]) -> Any:
    author = message.get("author")
    return author if isinstance(author, str) else _table(message, "author").get("role")


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _insert(db: sqlite3.Connection, imported: _ImportedConversation, where: str) -> str:
    """Write a conversation under its own id, or a new one where that is taken or missing."""
    taken = db.execute("SELECT 1 FROM conversations WHERE id = ?", (imported.id,)).fetchone()
    identity = new_id(imported.created) if taken or not _is_ulid(imported.id) else str(imported.id)
    title = imported.title or next((title_of(node.content) for node in imported.nodes if node.role == "user"), "")
    conversation = db.execute(
        "INSERT INTO conversations (id, title, model, profile, system, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            identity,
            clean(title),
            clean(imported.model),
            _cleaned(imported.profile),
            _cleaned(imported.system),
            imported.created,
            imported.updated,
        ),
    ).lastrowid
    rows: dict[Any, int | None] = {None: None}
    for node in _parents_first(imported.nodes, where):
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
                _cleaned(node.finish_reason),
                clean(to_json(node.info)),
                node.created,
                node.updated,
            ),
        ).lastrowid
    leaf = rows.get(imported.leaf if isinstance(imported.leaf, int | str) else None) or max(
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


def _cleaned(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _is_ulid(text: str | None) -> bool:
    return text is not None and len(text) == 26 and text.isascii() and text.isalnum() and text == text.upper()


def _is_text(raw: Mapping[str, Any], key: str) -> bool:
    return isinstance(raw.get(key), str)


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e11 else otherwise
