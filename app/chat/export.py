"""A conversation as a file, saved or not: JSON where the name ends so, else Markdown."""

import json
import time
from pathlib import Path
from typing import TextIO

from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.sessions.export import to_dict, to_markdown
from dslite.app.sessions.ids import new_id
from dslite.app.sessions.records import Conversation, StoredMessage
from dslite.runtime.errors import UsageError


def export(tree: MessageTree, path: Path) -> Path:
    """Write a conversation and return the path. Raises UsageError, also where the file exists already."""
    now = time.time()
    identity = tree.id or new_id(now)
    ids = {node: place for place, node in enumerate(_nodes(tree), start=1)}
    leaf = ids.get(tree.leaf) if tree.leaf else None
    conversation = Conversation(identity, tree.title, tree.model, tree.profile, tree.system, leaf, now, now, len(ids))
    stored = {node: _stored(node, ids, identity, now) for node in ids}
    if path.suffix.lower() == ".json":
        text = json.dumps(to_dict(conversation, list(stored.values())), ensure_ascii=False, indent=2) + "\n"
    else:
        text = to_markdown(conversation, [stored[node] for node in tree.path()])
    try:
        with path.open("x", encoding="utf-8") as file:
            _write_whole(file, text)
    except FileExistsError:
        raise UsageError(f"{path} is there already", "choose another name") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", "check the folder and the disk") from None
    return path


def _write_whole(file: TextIO, text: str) -> None:
    """Write a new file's text; remove the file where that fails. Raises OSError."""
    try:
        file.write(text)
        file.flush()
    except OSError:
        Path(file.name).unlink()
        raise


def _nodes(tree: MessageTree) -> list[Node]:
    """All messages, parents before children."""
    nodes = list(tree.roots)
    for node in nodes:
        nodes += node.children
    return nodes


def _stored(node: Node, ids: dict[Node, int], identity: str, now: float) -> StoredMessage:
    parent = ids[node.parent] if node.parent else None
    return StoredMessage(
        ids[node],
        identity,
        parent,
        node.role,
        node.content,
        node.token_ids,
        node.finish_reason,
        node.info,
        False,
        now,
        now,
    )
