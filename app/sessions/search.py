"""Full-text search over conversations, newest first.

The index holds trigrams, so a word of three characters or more is looked up as it is. A shorter one, as most Chinese
words are, is looked up by the trigrams that begin with it; where these are very many the word is so common that going
through the newest texts finds it sooner.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

_BEFORE, _BEHIND = 40, 80  # characters of a snippet around the first word that was found
_MOST_TRIGRAMS = 200


@dataclass(frozen=True)
class Hit:
    """A conversation that was found. `snippet` is the text around the words; `marks` are their (start, end) in it."""

    id: str
    title: str
    updated: float
    message: int | None  # None: found by its title
    snippet: str
    marks: tuple[tuple[int, int], ...] = ()


def search(db: sqlite3.Connection, text: str, limit: int, *, indexed: bool = True) -> list[Hit]:
    """Conversations with a message or a title that holds every word of a text, the newest message first.

    `indexed` False: without the index, which this SQLite cannot read.
    """
    words = text.replace("\0", " ").split()
    if not words:
        return []
    hits: dict[str, Hit] = {}
    for row in _by_message(db, words, indexed):
        if row["id"] not in hits:
            hits[row["id"]] = Hit(
                row["id"], row["title"], row["updated"], row["message"], *_snippet(row["content"], words)
            )
        if len(hits) == limit:
            break
    for row in _by_title(db, words, limit):
        hits.setdefault(row["id"], Hit(row["id"], row["title"], row["updated"], None, *_snippet(row["title"], words)))
    return sorted(hits.values(), key=lambda hit: hit.updated, reverse=True)[:limit]


def _by_title(db: sqlite3.Connection, words: list[str], limit: int) -> Iterator[sqlite3.Row]:
    like = " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(words))
    return db.execute(
        f"SELECT id, title, updated FROM conversations WHERE deleted IS NULL AND {like} ORDER BY updated DESC LIMIT ?",
        [*map(_pattern, words), limit],
    )


def _by_message(db: sqlite3.Connection, words: list[str], indexed: bool) -> Iterator[sqlite3.Row]:
    """Messages with all words, the newest first, each when it is asked for: more may match than anybody reads."""
    queries = {word: _query(db, word) if indexed else None for word in words}
    if "" in queries.values():
        return iter(())
    match = " AND ".join(query for query in queries.values() if query)
    scanned = [_pattern(word) for word, query in queries.items() if query is None]
    columns = "SELECT c.id, c.title, c.updated, m.id AS message, m.content FROM"
    like = "".join([" AND m.content LIKE ? ESCAPE '\\'"] * len(scanned))
    if match:
        return db.execute(
            f"{columns} message_search JOIN messages m ON m.id = message_search.rowid"
            " JOIN conversations c ON c.key = m.conversation"
            f" WHERE message_search MATCH ? AND c.deleted IS NULL{like} ORDER BY message_search.rowid DESC",
            [match, *scanned],
        )
    return db.execute(
        f"{columns} messages m JOIN conversations c ON c.key = m.conversation"
        f" WHERE c.deleted IS NULL AND NOT m.growing{like} ORDER BY m.id DESC",
        scanned,
    )


def _query(db: sqlite3.Connection, word: str) -> str | None:
    """What finds a word in the index; empty where nothing has it, None where it is too common to be looked up."""
    if len(word) > 2:
        return _quoted(word)
    start = word.lower()  # as the index writes them
    trigrams = db.execute(
        "SELECT term FROM message_trigrams WHERE term >= ? AND term < ? LIMIT ?",
        (start, start + "\U0010ffff", _MOST_TRIGRAMS + 1),
    ).fetchall()
    if len(trigrams) > _MOST_TRIGRAMS:
        return None
    return f"({' OR '.join(_quoted(row['term']) for row in trigrams)})" if trigrams else ""


def _snippet(text: str, words: list[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text around the first word that stands in it, on one line, and where words are in that."""
    pattern = re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)), re.IGNORECASE)
    found = pattern.search(text)
    place = found.start() if found else 0
    start, end = max(0, place - _BEFORE), place + _BEHIND
    line = "…" * (start > 0) + re.sub(r"\s", " ", text[start:end]) + "…" * (end < len(text))
    return line, tuple(match.span() for match in pattern.finditer(line))


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _pattern(word: str) -> str:
    escaped = word.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{escaped}%"
