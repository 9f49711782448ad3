"""`dslite session` from outside."""

import json
from collections.abc import Iterator

import pytest
from support.cli_process import Dslite

from dslite.app.sessions.store import SessionStore
from dslite.app.terminal.tables import cell_width


@pytest.fixture
def ids(dslite: Dslite) -> Iterator[list[str]]:
    """Two conversations: the second has a wide title and a question that was asked twice."""
    with SessionStore.open(dslite.folder / "data" / "sessions.db") as store:
        first = store.create(model="demo")
        question = store.append(first.id, "user", "Where is quicksort?\x1b[31m", parent=None)
        store.append(first.id, "assistant", "In *the* library.", parent=question.id, token_ids=[1, 2])
        second = store.create(model="demo", profile="coder", title="快速排序")
        store.append(second.id, "user", "One way", parent=None)
        store.append(second.id, "user", "Another way", parent=None)
    return [first.id, second.id]


def test_the_list_is_a_plain_aligned_table_newest_first(dslite: Dslite, ids: list[str]) -> None:
    result = dslite("session", "list")
    assert (result.code, result.err) == (0, b"")
    head, *rows = result.text.splitlines()
    assert head.split() == ["ID", "CHANGED", "MESSAGES", "TITLE"]
    assert [row.split()[0] for row in rows] == ids[::-1]
    assert rows[0].endswith("  2         快速排序")
    assert "\x1b" not in result.text
    shown = dslite("session", "list", "-o", "json", "-n", "1").json
    assert [talk["id"] for talk in shown] == [ids[1]]
    assert list(shown[0]) == ["id", "title", "model", "profile", "created", "updated", "messages"]


def test_empty_lists_print_nothing_and_as_json_an_empty_list(dslite: Dslite) -> None:
    for command in (["list"], ["search", "x"]):
        assert (dslite("session", *command).code, dslite("session", *command).out) == (0, b"")
        assert dslite("session", *command, "--json").json == []


def test_search_shows_where_the_words_stand(dslite: Dslite, ids: list[str]) -> None:
    result = dslite("session", "search", "quick", "where")
    head, row = result.text.splitlines()
    assert head.split() == ["ID", "CHANGED", "TITLE", "TEXT"]
    assert row.startswith(ids[0])
    assert row.endswith("Where is quicksort?␛[31m")
    (hit,) = dslite("session", "search", "速排", "-o", "json").json
    assert (hit["id"], hit["message"], hit["snippet"]) == (ids[1], None, "快速排序")


def test_show_and_export_take_unique_beginnings_of_ids(dslite: Dslite, ids: list[str]) -> None:
    common = next(place for place, pair in enumerate(zip(*ids, strict=True)) if len(set(pair)) > 1)  # may be the last
    shown = dslite("session", "show", ids[0][: common + 1].lower())
    assert shown.code == 0
    assert "In *the* library." in shown.text
    assert "quicksort?␛[31m" in shown.text
    file = dslite.folder / "talk.md"
    assert dslite("session", "export", ids[0], "--output-file", "talk.md").out == b""
    assert file.read_text() == shown.text.replace("␛", "\x1b")
    ambiguous = dslite("session", "show", ids[0][:common])
    assert (ambiguous.code, ambiguous.out) == (1, b"")
    assert "more than one" in ambiguous.err.decode()
    assert dslite("session", "export", ids[0], "-o", "yaml").code == 2


def test_an_export_as_json_imports_again(dslite: Dslite, ids: list[str]) -> None:
    exported = dslite("session", "export", ids[1], "-o", "json")
    assert len(exported.json["messages"]) == 2
    assert dslite("session", "show", ids[1], "--json").json == exported.json
    assert dslite("session", "rm", ids[1]).code == 0
    imported = dslite("session", "import", "-", stdin=exported.out)
    assert imported.code == 0
    assert imported.text.splitlines()[1].split() == [ids[1], "快速排序"]
    assert dslite("session", "export", ids[1], "-o", "json").json["title"] == "快速排序"
    refused = dslite("session", "import", "-", stdin=b'{"a": 1}')
    assert (refused.code, refused.out) == (2, b"")


def test_rename_and_rm_change_one_conversation(dslite: Dslite, ids: list[str]) -> None:
    assert dslite("session", "rename", ids[0], "Sorting", "things").code == 0
    assert dslite("session", "rename", ids[0], " ").code == 2
    assert dslite("session", "rm", ids[1], "01ZZZ").code == 1
    assert len(dslite("session", "list", "--json").json) == 2  # all are found, or none is removed
    assert dslite("session", "rm", ids[1]).code == 0
    assert [talk["title"] for talk in dslite("session", "list", "--json").json] == ["Sorting things"]
    with SessionStore.open(dslite.folder / "data" / "sessions.db") as store, store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM conversations").fetchone()[0] == 1  # for good


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("快排", 4), ("e\u0301", 1), ("ﾊ", 1), ("Ａ", 2), ("a\u200db", 2), ("😀", 2)]
)
def test_cells_count_columns_of_the_terminal(text: str, width: int) -> None:
    assert cell_width(text) == width


def test_the_json_of_a_list_is_one_line_of_ascii(dslite: Dslite, ids: list[str]) -> None:
    out = dslite("session", "list", "--json").out
    assert out.isascii()
    assert out.count(b"\n") == 1
    assert json.loads(out)[0]["id"] == ids[1]
