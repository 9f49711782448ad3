"""Conversations in the database: kept as trees, found again, deleted and brought back."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dslite.app.errors import NoConversationError
from dslite.app.sessions import database
from dslite.app.sessions.database import Database
from dslite.app.sessions.ids import new_id
from dslite.app.sessions.store import SessionStore, StoredMessage, title_of
from dslite.runtime.paths import latents_file


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    with SessionStore.open(tmp_path / "sessions.db") as opened:
        yield opened


def talk_with(store: SessionStore, *texts: str, model: str = "chat") -> tuple[str, list[StoredMessage]]:
    """A conversation of alternating questions and answers."""
    talk = store.create(model=model)
    branch: list[StoredMessage] = []
    for place, text in enumerate(texts):
        parent = branch[-1].id if branch else None
        branch.append(store.append(talk.id, "assistant" if place % 2 else "user", text, parent=parent))
    return talk.id, branch


def test_a_conversation_comes_back_as_it_was_written(store: SessionStore) -> None:
    talk = store.create(model="chat", profile="coder", system="Be brief.")
    question = store.append(talk.id, "user", "你好 \0 \x1b[31m", parent=None)
    answer = store.append(
        talk.id, "assistant", "Hello", parent=question.id, token_ids=[0, 102_399], finish_reason="length", info={"a": 1}
    )
    found = store.get(talk.id)
    assert (found.model, found.profile, found.system, found.leaf) == ("chat", "coder", "Be brief.", answer.id)
    assert found.messages == 2
    first, second = store.path(found.leaf)
    assert (first.role, first.content, first.token_ids) == ("user", "你好 \0 \x1b[31m", None)
    assert second == answer
    assert (second.token_ids, second.finish_reason, second.info) == ((0, 102_399), "length", {"a": 1})


def test_a_second_answer_is_a_branch_and_the_first_one_stays(store: SessionStore) -> None:
    talk, (question, first, follow_up) = talk_with(store, "Why?", "Because.", "And then?")
    second = store.append(talk, "assistant", "Therefore.", parent=question.id)
    assert [message.content for message in store.path(store.get(talk).leaf)] == ["Why?", "Therefore."]
    children = {message.id: message.parent for message in store.tree(talk)}
    assert children == {question.id: None, first.id: question.id, follow_up.id: first.id, second.id: question.id}
    store.set_leaf(talk, follow_up.id)
    assert [message.content for message in store.path(store.get(talk).leaf)] == ["Why?", "Because.", "And then?"]


def test_an_edited_first_question_is_a_second_root_of_its_own_conversation(store: SessionStore) -> None:
    talk_with(store, "another conversation")
    talk, (question,) = talk_with(store, "Wy?")
    edited = store.append(talk, "user", "Why?", parent=None)
    assert [(message.id, message.parent) for message in store.tree(talk)] == [(question.id, None), (edited.id, None)]


def test_generated_ids_go_back_only_to_the_model_that_made_them(store: SessionStore) -> None:
    talk = store.create(model="demo")
    answer = store.append(talk.id, "assistant", "x", parent=None, token_ids=[5, 6], info={"model": "demo"})
    assert answer.to_message("demo").token_ids == (5, 6)
    assert answer.to_message("deepseek-ai/DeepSeek-V2-Lite-Chat").token_ids is None


def test_ids_of_conversations_sort_by_age_and_are_ulids(store: SessionStore) -> None:
    ids = [store.create(model="chat").id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(identity) == 26 and set(identity) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for identity in ids)
    milliseconds = int("".join(f"{'0123456789ABCDEFGHJKMNPQRSTVWXYZ'.index(char):05b}" for char in ids[0][:10]), 2)
    assert abs(milliseconds / 1000 - time.time()) < 600


def test_the_first_question_titles_the_conversation_and_a_given_title_stays(store: SessionStore) -> None:
    talk, _ = talk_with(store, "  \n\tWhy is\tthe sky blue?\nTell me.", "Rayleigh.", "Really?")
    assert store.get(talk).title == "Why is the sky blue?"
    store.rename(talk, "Sky")
    store.append(talk, "user", "More", parent=None)
    assert store.get(talk).title == "Sky"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("", ""),
        ("word " * 40, " ".join(["word"] * 12) + "…"),
        ("快" * 100, "快" * 59 + "…"),
        ("a\x1b[31mb", "a [31mb"),
    ],
)
def test_titles_are_one_short_line_of_visible_characters(text: str, title: str) -> None:
    assert title_of(text) == title


def test_lists_come_in_pages_the_last_changed_first(store: SessionStore) -> None:
    ids = [talk_with(store, f"question {number}")[0] for number in range(5)]
    store.append(ids[1], "user", "again", parent=None)
    expected = [ids[1], ids[4], ids[3], ids[2], ids[0]]
    first = store.conversations(limit=2)
    second = store.conversations(limit=2, before=first[-1])
    third = store.conversations(limit=2, before=second[-1])
    assert [talk.id for talk in [*first, *second, *third]] == expected
    assert [talk.id for talk in store.conversations(limit=None)] == expected
    latest = store.latest()
    assert latest is not None
    assert latest.id == ids[1]


def test_a_page_of_the_list_is_one_query_along_an_index(store: SessionStore) -> None:
    for number in range(30):
        talk_with(store, f"question {number}", "answer")
    statements: list[str] = []
    with store.database.reading() as db:
        db.set_trace_callback(statements.append)
        store.conversations(limit=20)
        db.set_trace_callback(None)
        assert len(statements) == 1
        plan = [row["detail"] for row in db.execute(f"EXPLAIN QUERY PLAN {statements[0]}")]
    assert not [step for step in plan if "TEMP B-TREE" in step], plan
    assert not [step for step in plan if step.startswith("SCAN m")], plan


def test_conversations_are_found_by_how_their_id_begins(store: SessionStore) -> None:
    first, second = (talk_with(store, "x")[0] for _ in range(2))
    common = first[: next(place for place in range(26) if first[place] != second[place])]
    assert store.find(first.lower()).id == first
    assert store.find(first[: len(common) + 1]).id == first
    for prefix, fault in ((common, "more than one"), ("ZZZ", "no conversation"), ("", "no conversation"), ("%", "no")):
        with pytest.raises(NoConversationError, match=fault):
            store.find(prefix)


def test_a_deleted_conversation_is_nowhere_and_comes_back_whole(store: SessionStore) -> None:
    talk, _ = talk_with(store, "quicksort please", "Here it is.")
    store.delete(talk)
    assert store.conversations() == []
    assert store.latest() is None
    assert store.search("quicksort") == []
    assert store.inputs() == []
    with pytest.raises(NoConversationError):
        store.find(talk)
    with pytest.raises(NoConversationError):
        store.get(talk)
    assert store.find(talk, deleted=True).title == "quicksort please"
    store.restore(talk)
    assert [message.content for message in store.path(store.get(talk).leaf)] == ["quicksort please", "Here it is."]
    assert [hit.id for hit in store.search("quicksort")] == [talk]


def test_deleting_ends_what_was_deleted_over_a_week_ago(store: SessionStore) -> None:
    old, (message,) = talk_with(store, "old")
    recent, _ = talk_with(store, "recent")
    store.delete(old)
    store.delete(recent)
    with store.database.writing() as db:
        db.execute("UPDATE conversations SET deleted = deleted - 8 * 86400 WHERE id = ?", (old,))
    store.delete(talk_with(store, "third")[0])
    assert store.find(recent, deleted=True).id == recent
    with pytest.raises(NoConversationError):
        store.find(old, deleted=True)
    with store.database.reading() as db:
        assert db.execute("SELECT * FROM messages WHERE id = ?", (message.id,)).fetchall() == []


def test_a_chain_longer_than_sqlites_recursion_can_be_read_and_purged(store: SessionStore) -> None:
    talk = store.create(model="chat")
    parent = None
    with store.database.writing() as db:
        key = db.execute("SELECT key FROM conversations").fetchone()[0]
        for number in range(1500):
            parent = db.execute(
                "INSERT INTO messages (conversation, parent, role, content, created, updated)"
                " VALUES (?, ?, 'user', ?, 0, 0)",
                (key, parent, f"message number {number}"),
            ).lastrowid
    branch = store.path(parent)
    assert [message.content for message in branch] == [f"message number {number}" for number in range(1500)]
    store.purge(talk.id)
    with store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone()[0] == 0
        assert db.execute("SELECT count(*) FROM message_search WHERE message_search MATCH 'number'").fetchone()[0] == 0


def test_earlier_inputs_come_newest_first_and_once(store: SessionStore) -> None:
    talk_with(store, "first", "an answer", "second")
    talk_with(store, "first", "an answer", "third")
    assert store.inputs() == ["third", "first", "second"]
    assert store.inputs(limit=1) == ["third"]


@pytest.mark.parametrize(
    "word", ["quick", "QUICK", "sort", "ickso", "快速", "速排", "排序", "序", "C#", "t.", "é", "快速排序"]
)
def test_words_are_found_within_words_and_at_both_ends(store: SessionStore, word: str) -> None:
    talk_with(store, "nothing to see", "中文")
    talk, (_, answer) = talk_with(store, "which one", "快 In C# the café uses quicksort. 快速排序")
    hits = store.search(word)
    assert [(hit.id, hit.message) for hit in hits] == [(talk, answer.id)]
    marked = [hits[0].snippet[start:end] for start, end in hits[0].marks]
    assert marked
    assert {text.lower() for text in marked} == {word.lower()}


@pytest.mark.parametrize(
    "text", ["", "  ", "absent", "缺席", "缺", '"', "x AND", "* OR (", "%", "_", "\0", "quick absent", "q 缺"]
)
def test_what_nobody_wrote_is_not_found_and_no_character_is_an_operator(store: SessionStore, text: str) -> None:
    talk_with(store, "quicksort and more", "Here.")
    assert store.search(text) == []


def test_every_word_of_a_search_counts(store: SessionStore) -> None:
    both, _ = talk_with(store, "quicksort in Python 快排")
    talk_with(store, "quicksort in C 快排")
    talk_with(store, "mergesort in Python 快排")
    assert [hit.id for hit in store.search("python quick 快排")] == [both]
    assert [hit.id for hit in store.search("Py qu")] == [both]


def test_a_search_names_each_conversation_once_and_titles_count(store: SessionStore) -> None:
    often, _ = talk_with(store, *["quicksort"] * 8)
    titled, _ = talk_with(store, "another thing")
    store.rename(titled, "About Quicksort")
    hits = store.search("quicksort", limit=2)
    assert {hit.id for hit in hits} == {often, titled}
    assert {hit.id: hit.message is None for hit in hits}[titled]


def test_a_very_common_pair_of_letters_is_found_all_the_same(store: SessionStore) -> None:
    talk, _ = talk_with(store, " ".join(f"th{chr(code)}" for code in range(0x4E00, 0x4E00 + 300)))
    assert [hit.id for hit in store.search("th")] == [talk]


def test_text_that_was_replaced_is_found_no_more(store: SessionStore) -> None:
    talk, (question, answer) = talk_with(store, "go on", "an unfinished sentence")
    store.update_answer(answer.id, "an unfinished sentence that goes", [1])
    assert store.search("sentence") == []
    store.finish_answer(answer.id, "another ending", [1, 2], "stop")
    assert store.search("sentence") == []
    assert [hit.message for hit in store.search("ending")] == [answer.id]
    assert question.id != answer.id
    with store.database.writing() as db:
        db.execute("INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 1)")
    assert talk


def test_a_growing_answer_is_kept_when_the_process_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dslite.app.sessions.store import SessionStore\n"
        "store = SessionStore.open(Path(sys.argv[1]))\n"
        "talk = store.create(model='chat')\n"
        "question = store.append(talk.id, 'user', 'Why?', parent=None)\n"
        "answer = store.append(talk.id, 'assistant', '', parent=question.id, growing=True)\n"
        "store.update_answer(answer.id, 'Because of half a sen', [1, 2, 3])\n"
        "print('saved', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = tmp_path / "sessions.db"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
    with SessionStore.open(path) as store:
        talk = store.latest()
        assert talk is not None
        _, answer = store.path(talk.leaf)
        assert (answer.content, answer.token_ids, answer.growing) == ("Because of half a sen", (1, 2, 3), True)
        with store.database.writing() as db:
            db.execute("UPDATE messages SET updated = updated - 120")
    with SessionStore.open(path) as store:
        assert [hit.message for hit in store.search("half a sen")] == [answer.id]
        assert store.path(answer.id)[-1].finish_reason == "interrupted"


def test_two_processes_write_to_one_database_and_lose_nothing(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dslite.app.sessions.store import SessionStore\n"
        "for number in range(15):\n"
        "    with SessionStore.open(Path(sys.argv[1])) as store:\n"
        "        talk = store.create(model='chat')\n"
        "        store.append(talk.id, 'user', f'{sys.argv[2]} {number}', parent=None)\n"
    )
    path = tmp_path / "sessions.db"
    processes = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in ("one", "two")]
    assert [process.wait() for process in processes] == [0, 0]
    with SessionStore.open(path) as store:
        texts = sorted(talk.title for talk in store.conversations(limit=None))
    assert texts == sorted(f"{name} {number}" for name in ("one", "two") for number in range(15))


def test_saving_survives_text_that_utf8_cannot_carry(store: SessionStore) -> None:
    talk, (question,) = talk_with(store, "broken \ud83d text \U0001f600")
    assert question.content == "broken \ufffd text \U0001f600"
    store.rename(talk, "\udc80")
    json.dumps(store.get(talk).title).encode("utf-8")


SECRET = "the owl of Minerva 猫頭鷹 flies at dusk"


def traces(folder: Path) -> list[str]:
    """The files of a folder in which a secret can be read, as text or as the words of it."""
    words = [word.encode() for word in (SECRET, "Minerva", "猫頭鷹", "inerv")]
    return [file.name for file in folder.rglob("*") if file.is_file() and any(w in file.read_bytes() for w in words)]


@pytest.mark.parametrize("reader", [False, True])
def test_a_removed_conversation_is_in_no_file_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: bool
) -> None:
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    with SessionStore.open(folder / "sessions.db") as store:
        for number in range(50):
            talk_with(store, f"question {number} " + "word " * 200, "answer " * 300)
        secret, (_, answer) = talk_with(store, SECRET, f"{SECRET} " * 500)
        store.update_answer(answer.id, f"{SECRET} again")
        store.finish_answer(answer.id, SECRET, None, "stop")
        store.rename(secret, SECRET)
        latents = latents_file(secret)
        latents.parent.mkdir(parents=True)
        for name in (latents.name, f".{secret}.17.tmp", "another.safetensors"):
            (latents.parent / name).write_text(SECRET if "another" not in name else "x")
        assert traces(tmp_path)
        if reader:
            with SessionStore.open(folder / "sessions.db") as other:
                assert len(other.conversations(limit=None)) == 51
        store.purge(secret)
        assert traces(tmp_path) == []
        assert store.search("Minerva") == []
        assert len(store.search("question")) == 50
    assert traces(tmp_path) == []
    assert [file.name for file in latents.parent.iterdir()] == ["another.safetensors"]


def talk_in(path: Path, *texts: str) -> str:
    with SessionStore.open(path) as store:
        return talk_with(store, *texts)[0]


def deleted_by_an_earlier_version(path: Path, talk: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA secure_delete = OFF")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA application_id = 0")
        db.execute("DELETE FROM conversations WHERE id = ?", (talk,))


def deleted_by_a_process_that_is_killed(path: Path, talk: str) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dslite.app.sessions import database\n"
        "from dslite.app.sessions.store import SessionStore\n"
        "database._erase = lambda *_: os._exit(9)\n"
        "SessionStore.open(Path(sys.argv[1])).purge(sys.argv[2])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path), talk]).returncode == 9


def deleted_while_another_process_reads(path: Path, talk: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as reader, SessionStore.open(path) as store:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        with store.database.reading() as db:
            db.execute("PRAGMA busy_timeout = 0")
        store.purge(talk)
        assert traces(path.parent)


@pytest.mark.parametrize(
    "delete",
    [deleted_by_an_earlier_version, deleted_by_a_process_that_is_killed, deleted_while_another_process_reads],
)
def test_what_is_left_of_a_deleted_conversation_goes_with_the_next_opening(
    tmp_path: Path, delete: Callable[[Path, str], None], hub_home: Path
) -> None:
    path = tmp_path / "data" / "sessions.db"
    talk_in(path, *(f"question {number} " + "word " * 200 for number in range(50)))
    talk = talk_in(path, SECRET, f"{SECRET} " * 500)
    delete(path, talk)
    with SessionStore.open(path) as store:
        assert traces(path.parent) == []
        assert len(store.conversations()) == 1
        assert len(store.search("question")) == 1
        with store.database.writing() as db:
            db.execute("INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 1)")
    assert traces(path.parent) == []


def test_a_file_is_searched_for_old_traces_once(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    deleted_by_an_earlier_version(path, talk_in(path, SECRET))
    talk_in(path, "a new one")
    statements: list[str] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.set_trace_callback(statements.append)
        database._erase_leftovers(db, indexed=True)
    assert statements == ["PRAGMA application_id"]


@pytest.mark.parametrize(("days", "there"), [(6.9, True), (7.1, False), (400, False)])
def test_a_conversation_whose_week_of_undo_is_over_is_gone_at_the_next_opening(
    tmp_path: Path, days: float, there: bool, hub_home: Path
) -> None:
    path = tmp_path / "data" / "sessions.db"
    talk = talk_in(path, SECRET, "Here.")
    with SessionStore.open(path) as store:
        store.delete(talk)
        with store.database.writing() as db:
            db.execute("UPDATE conversations SET deleted = ?", (time.time() - days * 86400,))
    with SessionStore.open(path):
        pass
    assert bool(traces(path.parent)) == there
    with SessionStore.open(path) as store:
        if there:
            store.restore(talk)
        assert [conversation.id for conversation in store.conversations()] == [talk] * there


def test_ids_made_in_one_millisecond_sort_by_age() -> None:
    ids = [new_id(1.7e9) for _ in range(2000)]
    assert ids == sorted(set(ids))
    assert new_id(1.6e9) < ids[0] < ids[-1] < new_id(1.8e9)


def test_the_file_shrinks_when_much_of_it_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with SessionStore.open(path) as store:
        large, _ = talk_with(store, "q", "answer " * 100_000)
        talk_with(store, "another")
        size = path.stat().st_size + path.with_name("sessions.db-wal").stat().st_size
        store.purge(large)
        assert path.stat().st_size < size / 10
        assert len(store.conversations()) == 1


def test_an_answer_that_is_saved_whole_at_once_is_found(store: SessionStore) -> None:
    talk = store.create(model="demo").id
    answer = store.append(talk, "assistant", "an albatross", parent=None)
    store.finish_answer(answer.id, "an albatross", None, "stop")
    assert [hit.message for hit in store.search("albatross")] == [answer.id]


def test_answers_that_the_index_of_0_1_0_has_lost_are_found_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with SessionStore.open(path) as store:
        talk, (_, answer) = talk_with(store, "which bird?", "an albatross")
        with store.database.writing() as db:
            db.execute("DROP TRIGGER message_changed")
            for name, word, when in (("left", "'delete'", "old"), ("whole", "NULL", "new")):
                db.execute(
                    f"CREATE TRIGGER message_{name} AFTER UPDATE OF content, growing ON messages"
                    f" WHEN NOT {when}.growing BEGIN INSERT INTO message_search (message_search, rowid, content)"
                    f" VALUES ({word}, {when}.id, {when}.content || '  '); END"
                )
        store.finish_answer(answer.id, "an albatross", None, "stop")
        assert store.search("albatross") == []
    with SessionStore.open(path) as store:
        assert [hit.id for hit in store.search("albatross")] == [talk]
        store.finish_answer(answer.id, "a gannet", None, "stop")
        assert store.search("albatross") == []
        assert [hit.id for hit in store.search("gannet")] == [talk]


def test_without_an_index_of_trigrams_texts_are_gone_through_and_later_indexed(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with SessionStore(Database.open(path, trigrams=False)) as store:
        talk, (_, answer) = talk_with(store, "Why is 天 blue?", "Because")
        growing = store.append(talk, "assistant", "half of a sentence", parent=None, growing=True)
        assert [hit.id for hit in store.search("blue")] == [talk]
        assert [hit.id for hit in store.search("天")] == [talk]
        assert store.search("green") == store.search("sentence") == []
        store.purge(talk_with(store, "gone")[0])
    with SessionStore(Database.open(path, trigrams=True)) as store:
        assert [hit.message for hit in store.search("Because")] == [answer.id]
        assert store.search("sentence") == store.search("gone") == []
        store.finish_answer(growing.id, "half of a sentence", None, "stop")
        assert [hit.message for hit in store.search("sentence")] == [growing.id]
    with SessionStore(Database.open(path, trigrams=False)) as store:
        another, _ = talk_with(store, "a green one")
        assert [hit.id for hit in store.search("green")] == [another]
    with SessionStore(Database.open(path)) as store:
        assert [hit.id for hit in store.search("green")] == [another]
        with store.database.writing() as db:
            db.execute("INSERT INTO message_search (message_search, rank) VALUES ('integrity-check', 1)")
