"""How fast saved conversations are listed and found, among 10,000 of them by default.

    python tests/benchmarks/sessions.py [--conversations 10000] [--repeat 9]

Each has six messages: questions of a dozen words and answers of 120, every tenth in Chinese. Prints medians and worst
cases in milliseconds, with the file's size; the aims are 150 ms for the list and 100 ms for a search.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sized
from pathlib import Path

from dslite.app.sessions.ids import new_id
from dslite.app.sessions.records import pack
from dslite.app.sessions.store import SessionStore

_COMMON = (
    "the of and quicksort python list tensor model memory cache write read function return value error token".split()
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions.db"
        with SessionStore.open(path) as store:
            rare, chinese = fill(store, arguments.conversations)
        print(f"{arguments.conversations:,} conversations, {path.stat().st_size / 1e6:.0f} MB")

        def opened() -> Sized:
            with SessionStore.open(path) as fresh:
                return fresh.conversations(limit=50)

        measure("open, and the first page of the list", opened, arguments.repeat)
        with SessionStore.open(path) as store:
            measure("a page of the list", lambda: store.conversations(limit=50), arguments.repeat)
            measure("the whole list", lambda: store.conversations(limit=None), arguments.repeat)
            measure("earlier inputs", store.inputs, arguments.repeat)
            searches = [
                "the",
                rare,
                "quicksort tensor",
                "absentword",
                chinese[:3],
                chinese[:2],
                chinese[0],
                "q",
                "zz",
                "\u9fa5",
            ]
            for text in searches:
                measure(f"search {text}", lambda text=text: store.search(text), arguments.repeat)


def fill(store: SessionStore, count: int) -> tuple[str, str]:
    """Write the conversations; return a rare word and a stretch of Chinese that occurs."""
    rng = random.Random(1)
    words = [*_COMMON, *("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(5000))]
    characters = [chr(rng.randint(0x4E00, 0x6000)) for _ in range(1500)]
    now = time.time() - count
    chinese = ""
    with store.database.writing() as db:
        for number in range(count):
            when = now + number
            key = db.execute(
                "INSERT INTO conversations (id, title, model, created, updated) VALUES (?, ?, 'chat', ?, ?)",
                (new_id(when), " ".join(rng.choices(words, k=5)), when, when),
            ).lastrowid
            parent = None
            for turn in range(6):
                size = 120 if turn % 2 else 12
                if number % 10:
                    text = " ".join(rng.choices(words, k=size))
                else:
                    text = chinese = "".join(rng.choices(characters, k=size * 3))
                parent = db.execute(
                    "INSERT INTO messages (conversation, parent, role, content, token_ids, created, updated)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (key, parent, "assistant" if turn % 2 else "user", text, pack(range(size)), when, when),
                ).lastrowid
            db.execute("UPDATE conversations SET leaf = ? WHERE key = ?", (parent, key))
    return words[len(_COMMON)], chinese


def measure(name: str, work: Callable[[], Sized], repeat: int) -> None:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        found = len(work())
        times.append(1000 * (time.perf_counter() - started))
    print(f"{name:<40} {statistics.median(times):7.1f} ms, worst {max(times):7.1f} ms, {found:,} found")


if __name__ == "__main__":
    main()
