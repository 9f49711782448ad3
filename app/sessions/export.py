"""Conversations as files: Markdown to read, JSON to keep and to import."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from dslite.app.sessions.records import Conversation, StoredMessage

VERSION = 1


def to_markdown(conversation: Conversation, branch: Sequence[StoredMessage]) -> str:
    """A branch to read: the title, what it was made with, and a section for every message."""
    facts = [f"- Model: {conversation.model}", f"- Date: {local_time(conversation.created)}"]
    if conversation.profile:
        facts.append(f"- Profile: {conversation.profile}")
    sections = [f"## System\n\n{conversation.system}"] if conversation.system else []
    sections += [f"## {message.role.capitalize()}\n\n{message.content.strip()}" for message in branch]
    return "\n\n".join([f"# {conversation.title or 'Conversation'}", "\n".join(facts), *sections]) + "\n"


def to_dict(conversation: Conversation, tree: Sequence[StoredMessage]) -> dict[str, Any]:
    """All of a conversation, its branches and token ids included, as `import_file` takes it."""
    return {
        "format": "dslite-session",
        "version": VERSION,
        "id": conversation.id,
        "title": conversation.title,
        "model": conversation.model,
        "profile": conversation.profile,
        "system": conversation.system,
        "created": conversation.created,
        "updated": conversation.updated,
        "leaf": conversation.leaf,
        "messages": [
            {
                "id": message.id,
                "parent": message.parent,
                "role": message.role,
                "content": message.content,
                "token_ids": None if message.token_ids is None else list(message.token_ids),
                "finish_reason": message.finish_reason,
                "info": dict(message.info),
                "created": message.created,
                "updated": message.updated,
            }
            for message in tree
        ],
    }


def local_time(seconds: float) -> str:
    """A time as people write it, in their zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
