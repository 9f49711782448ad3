"""Files attached to a message. Their text is part of the message; its info says where each one stands in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_BETWEEN = "\n\n"


@dataclass(frozen=True)
class Attachment:
    """A file in a message: `block` is its text under its name; `tokens` None where they cannot be counted."""

    name: str
    block: str
    tokens: int | None = None

    @property
    def label(self) -> str:
        """`notes.txt · 2,410 tokens`."""
        size = f"{len(self.block):,} characters" if self.tokens is None else f"{self.tokens:,} tokens"
        return f"{self.name} · {size}"


def with_attachments(files: Sequence[Attachment], text: str) -> tuple[str, dict[str, Any]]:
    """The content and the info of a message of files and a text."""
    if not files:
        return text, {}
    places = [{"name": file.name, "tokens": file.tokens, "characters": len(file.block)} for file in files]
    return _BETWEEN.join([*(file.block for file in files), *filter(None, [text])]), {"files": places}


def split_attachments(content: str, info: Mapping[str, Any]) -> tuple[list[Attachment], str]:
    """The files and the text of a message. Info of an imported file may be anything: then all of it is text."""
    places, files, start = info.get("files"), [], 0
    if not isinstance(places, list):
        return [], content
    for place in places:
        name, length = (place.get("name"), place.get("characters")) if isinstance(place, dict) else (None, None)
        if not isinstance(name, str) or type(length) is not int or not 0 < length <= len(content) - start:
            return [], content
        tokens = place.get("tokens")
        files.append(Attachment(name, content[start : start + length], tokens if type(tokens) is int else None))
        start += length
        if not content.startswith(_BETWEEN, start) and start < len(content):
            return [], content
        start += len(_BETWEEN)
    return files, content[start:]
