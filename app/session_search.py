"""Full-text search over conversations, newest first."""

import sqlite3
from dataclasses import dataclass

_BEFORE, _AFTER = "\x02", "\x03"  # no text that a user reads has them
_SNIPPET_TRIGRAMS = 60


@dataclass(frozen=True)
class Hit:
    """A conversation that was found. `snippet` is the text around the words; `marks` are their (start, end) in it."""

    id: str
    title: str
    updated: float
    message: int | None  # None: found by its title
    snippet: str
    marks: tuple[tuple[int, int], ...] = ()


def search(db: sqlite3.Connection, text: str, limit: int) -> list[Hit]:
    """Conversations with a message or a title that holds every word of a text, the newest message first."""
    words = text.split()
    if not words:
        return []
    hits = {hit.id: hit for hit in _by_title(db, words, limit)}
    for hit in _by_message(db, words, limit):
        hits.setdefault(hit.id, hit)
    return sorted(hits.values(), key=lambda hit: hit.updated, reverse=True)[:limit]


def _by_title(db: sqlite3.Connection, words: list[str], limit: int) -> list[Hit]:
    like = " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(words))
    rows = db.execute(
        f"SELECT id, title, updated FROM conversations WHERE deleted IS NULL AND {like} ORDER BY updated DESC LIMIT ?",
        [*map(_pattern, words), limit],
    )
    return [Hit(row["id"], row["title"], row["updated"], None, row["title"]) for row in rows]


def _by_message(db: sqlite3.Connection, words: list[str], limit: int) -> list[Hit]:
    long = [word for word in words if len(word) > 2]
    short = [word for word in words if len(word) <= 2]
    like = "".join([" AND m.content LIKE ? ESCAPE '\\'"] * len(short))
    match = " ".join(map(_quoted, long))
    rows = db.execute(
        "SELECT c.id, c.title, c.updated, m.id AS message,"
        f" snippet(message_search, 0, '{_BEFORE}', '{_AFTER}', '…', {_SNIPPET_TRIGRAMS}) AS snippet"
        " FROM message_search JOIN messages m ON m.id = message_search.rowid"
        " JOIN conversations c ON c.key = m.conversation"
        f" WHERE message_search MATCH ? AND c.deleted IS NULL{like} ORDER BY message_search.rowid DESC LIMIT ?",
        [match, *map(_pattern, short), limit],
    )
    return [_hit(row) for row in rows]


def _hit(row: sqlite3.Row) -> Hit:
    pieces = row["snippet"].rstrip(" ").replace(_AFTER, _BEFORE).split(_BEFORE)
    text, marks = "", []
    for place, piece in enumerate(pieces):
        if place % 2:
            marks.append((len(text), len(text) + len(piece)))
        text += piece
    return Hit(row["id"], row["title"], row["updated"], row["message"], text, tuple(marks))


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _pattern(word: str) -> str:
    escaped = word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{escaped}%"
