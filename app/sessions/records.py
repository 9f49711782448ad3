"""Conversations and messages: the rows of the database, and the dataclasses that callers get."""

import json
import sqlite3
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dslite.runtime.text.message import Message

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Conversation:
    """What a list shows of a conversation. Times are Unix seconds; `leaf` is the last message of its active branch."""

    id: str
    title: str
    model: str
    profile: str | None
    system: str | None
    leaf: int | None
    created: float
    updated: float
    messages: int  # of all branches
    pinned: bool = False  # it stands above the others in a list

    @classmethod
    def of_row(cls, row: sqlite3.Row) -> "Conversation":
        return cls(**{**dict(row), "pinned": bool(row["pinned"])})


@dataclass(frozen=True)
class StoredMessage:
    """One message of the tree. `info` is how it was made: sampling, timing; `growing`: its answer is not finished."""

    id: int
    conversation: str
    parent: int | None
    role: Role
    content: str
    token_ids: tuple[int, ...] | None
    finish_reason: str | None
    info: Mapping[str, Any] = field(default_factory=dict)
    growing: bool = False
    created: float = 0.0
    updated: float = 0.0

    def to_message(self, model: str) -> "Message":
        """As the chat template takes it; with the very ids that were generated, where the same model did (`info`)."""
        from dslite.runtime.text.message import Message  # not above: a list of conversations needs no tokenizer

        return Message(self.role, self.content, self.token_ids if self.info.get("model") == model else None)


CONVERSATIONS = (
    "SELECT c.id, c.title, c.model, c.profile, c.system, c.leaf, c.created, c.updated, c.pinned,"
    " (SELECT count(*) FROM messages m WHERE m.conversation = c.key) AS messages FROM conversations c"
)
MESSAGES = (
    "SELECT m.id, c.id AS conversation, m.parent, m.role, m.content, m.token_ids, m.finish_reason, m.info, m.growing,"
    " m.created, m.updated FROM messages m JOIN conversations c ON c.key = m.conversation"
)
UPWARD = (
    "WITH RECURSIVE up (id) AS (VALUES (?) UNION ALL"
    " SELECT m.parent FROM messages m JOIN up ON m.id = up.id WHERE m.parent IS NOT NULL)"
)


def stored_message(row: sqlite3.Row) -> StoredMessage:
    values = dict(row)
    values |= {
        "token_ids": unpack(row["token_ids"]),
        "info": json.loads(row["info"]),
        "growing": bool(row["growing"]),
    }
    return StoredMessage(**values)


def pack(token_ids: Sequence[int] | None) -> bytes | None:
    """Four bytes an id, the lowest first."""
    if token_ids is None:
        return None
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack(blob: bytes | None) -> tuple[int, ...] | None:
    if blob is None:
        return None
    ids = array("I", blob)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)


def to_json(info: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(info or {}), ensure_ascii=False)
