"""A conversation in memory: a tree of messages with one active branch, and immutable snapshots of it.

The tree belongs to the thread of the front end. Other threads (the engine's, the writer's) get snapshots.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dslite.runtime.errors import UsageError

if TYPE_CHECKING:
    from dslite.app.sessions.store import Conversation, StoredMessage
    from dslite.runtime.text.message import Message, Role

_keys = itertools.count(1)


@dataclass(frozen=True)
class MessageSnapshot:
    """One message at one moment. `key` and `parent` are keys of nodes; `stored` is its id if it was loaded."""

    key: int
    parent: int | None
    role: "Role"
    content: str
    token_ids: tuple[int, ...] | None
    finish_reason: str | None
    info: Mapping[str, Any]
    growing: bool
    stored: int | None


@dataclass(frozen=True)
class ConversationSnapshot:
    """A branch of a conversation at one moment, its first message first. `key` names the tree in this process."""

    key: int
    id: str | None
    title: str
    model: str
    profile: str | None
    system: str | None
    path: tuple[MessageSnapshot, ...]


@dataclass(eq=False)
class Node:
    """One message. `stored` is its id in the database if it was loaded; `info` has an answer's model and figures."""

    role: "Role"
    content: str
    parent: "Node | None" = None
    token_ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    stored: int | None = None
    growing: bool = False
    reasoning: str = ""  # of a server's model, before its answer; shown as long as the program runs, and never saved
    reasoning_tokens: int = 0
    children: list["Node"] = field(default_factory=list)
    key: int = field(default_factory=lambda: next(_keys))


class MessageTree:
    """All branches of a conversation. `leaf` ends the active one; `id` is the database's, None until it is saved."""

    def __init__(self, *, model: str, profile: str | None = None, system: str | None = None, title: str = "") -> None:
        self.key = next(_keys)
        self.id: str | None = None
        self.title = title
        self.model = model
        self.profile = profile
        self.system = system
        self.roots: list[Node] = []
        self.leaf: Node | None = None
        self._first_read: Node | None = None  # messages before it are left out: they do not fit the context

    @classmethod
    def load(cls, conversation: "Conversation", stored: Sequence["StoredMessage"]) -> "MessageTree":
        """A saved conversation. An answer that was still growing was cut by the end of its process."""
        self = cls(
            model=conversation.model,
            profile=conversation.profile,
            system=conversation.system,
            title=conversation.title,
        )
        self.id = conversation.id
        nodes: dict[int, Node] = {}
        for message in stored:
            parent = nodes.get(message.parent) if message.parent is not None else None
            reason = "interrupted" if message.growing else message.finish_reason
            node = Node(message.role, message.content, parent, message.token_ids, reason, message.info, message.id)
            nodes[message.id] = node
            (parent.children if parent else self.roots).append(node)
        self.leaf = nodes.get(conversation.leaf) if conversation.leaf is not None else None
        return self

    def path(self, end: Node | None = None) -> list[Node]:
        """The active branch, or the one that ends in `end`."""
        nodes: list[Node] = []
        node = end or self.leaf
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def siblings(self, node: Node) -> list[Node]:
        """The branches at a message, itself among them."""
        return node.parent.children if node.parent else self.roots

    def node(self, key: int) -> Node | None:
        """The message of the active branch with a key."""
        return next((node for node in self.path() if node.key == key), None)

    def key_of(self, stored: int | None) -> int | None:
        """The key of the message of the active branch that has an id in the database."""
        return next((node.key for node in self.path() if stored is not None and node.stored == stored), None)

    def show(self, stored: int | None) -> None:
        """Make a branch that has a message, by its id in the database, the active one."""
        if stored is None or self.key_of(stored) is not None:
            return
        waiting = list(self.roots)
        while waiting:
            node = waiting.pop()
            if node.stored == stored:
                self.end_in(node)
                return
            waiting += node.children

    def end_in(self, node: Node) -> None:
        """Make the branch that goes through a message, and on to the newest answers, the active one."""
        while node.children:
            node = node.children[-1]
        self.leaf = node

    def add(self, role: "Role", content: str, *, parent: Node | None, growing: bool = False) -> Node:
        """A new message, and the end of the branch."""
        node = Node(role, content, parent, growing=growing)
        self.siblings(node).append(node)
        self.leaf = node
        return node

    def remove(self, node: Node) -> None:
        """Remove a message that was never saved and has no children."""
        self.siblings(node).remove(node)
        self.leaf = node.parent

    def walk(self, node: Node, step: int) -> bool:
        """Make the branch `step` beside a message the active one; return whether there is one."""
        siblings = self.siblings(node)
        place = siblings.index(node) + step
        if not 0 <= place < len(siblings):
            return False
        self.end_in(siblings[place])
        return True

    def question_of(self, node: Node) -> Node:
        """The user's message that an answer replies to. Raises UsageError."""
        found: Node | None = node
        while found is not None and found.role != "user":
            found = found.parent
        if found is None:
            raise UsageError("there is no question to answer again")
        return found

    def last_answer(self) -> Node:
        """The last answer of the branch. Raises UsageError where there is none."""
        for node in reversed(self.path()):
            if node.role == "assistant":
                return node
        raise UsageError("there is no answer yet")

    def forget(self, end: Node, count: int) -> int:
        """Leave the oldest `count` messages of the prompt out from now on; return how many are left out in all.

        The cut stays where it is until the context is full again, so the cached prefix of the rest stays valid.
        """
        self._first_read = self._read(end)[count]
        return self.path(end).index(self._first_read)

    def _read(self, end: Node | None) -> list[Node]:
        nodes = self.path(end) if end else []
        return nodes[nodes.index(self._first_read) :] if self._first_read in nodes else nodes

    def snapshot(self, end: Node | None = None) -> ConversationSnapshot:
        """The active branch, or the one that ends in `end`, for another thread."""
        path = tuple(
            MessageSnapshot(
                node.key,
                node.parent.key if node.parent else None,
                node.role,
                node.content,
                node.token_ids,
                node.finish_reason,
                MappingProxyType(dict(node.info)),
                node.growing,
                node.stored,
            )
            for node in self.path(end)
        )
        return ConversationSnapshot(self.key, self.id, self.title, self.model, self.profile, self.system, path)

    def messages(self, end: Node | None, model: str, *, system: str | None = None) -> tuple["Message", ...]:
        """The prompt for an answer to `end`. Answers of the same model are given as the token ids that it generated.

        `system` takes the place of the conversation's system message; an empty one leaves it out.
        """
        from dslite.runtime.text.message import Message  # imported late: the first paint does not need it

        text = self.system if system is None else system
        first = [Message("system", text)] if text else []
        answers = [
            Message(node.role, node.content, node.token_ids if node.info.get("model") == model else None)
            for node in self._read(end)
        ]
        return (*first, *answers)
