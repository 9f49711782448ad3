"""The contract's table of chat keys, row by row."""

import sys
import threading
from pathlib import Path

import pytest
from support.chat import drive, open_chat
from support.fake_engine import FakeBackend
from textual import events
from textual.widgets import Input

from dslite.app.terminal import clipboard

CODE = "First:\n\n```python\nprint(1)\n```\n\nThen:\n\n```sh\nls -l\n```\n"


@drive
async def test_enter_sends_the_message_and_the_answer_appears(home: Path) -> None:
    async with open_chat(home, FakeBackend("It is **blue**.")) as chat:
        await chat.write("why")
        await chat.press("enter")
        await chat.until("It is blue.")
        assert chat.contents == ["why", "It is **blue**."]
        assert chat.prompt.text == ""


@pytest.mark.parametrize("key", ["shift+enter", "ctrl+j", "alt+enter"])
@drive
async def test_a_new_line_key_does_not_send(home: Path, key: str) -> None:
    async with open_chat(home) as chat:
        await chat.write("a")
        await chat.press(key)
        await chat.write("b")
        assert chat.prompt.text == "a\nb"
        assert not chat.backend.asked


@drive
async def test_a_typed_block_takes_enter_as_a_new_line_until_it_is_closed(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.write('"""')
        await chat.press("enter")
        await chat.write("one")
        await chat.press("enter")
        await chat.write('two"""')
        await chat.press("enter")
        await chat.until(lambda: chat.contents)
        assert chat.contents[0] == "one\ntwo"


@drive
async def test_pasted_text_keeps_its_lines_and_sends_nothing(home: Path) -> None:
    async with open_chat(home) as chat:
        chat.app.post_message(events.Paste("one\r\ntwo\n\nthree\x1b[31m"))
        await chat.until(lambda: chat.prompt.text)
        assert chat.prompt.text == "one\ntwo\n\nthree␛[31m"
        assert not chat.backend.asked


@drive
async def test_escape_stops_the_answer_and_keeps_what_came(home: Path) -> None:
    gate = threading.Semaphore(3)
    async with open_chat(home, FakeBackend("one two six ten.", gate=gate)) as chat:
        await chat.say("count")
        await chat.until("one two six")
        await chat.press("escape")
        await chat.until(lambda: chat.controller.reply is None)
        assert chat.contents == ["count", "one two six"]
        assert chat.controller.tree.leaf.finish_reason == "interrupted"
        await chat.until("stopped here")
        assert chat.backend.idle.wait(5)


@drive
async def test_control_c_copies_a_selection_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_natively", lambda text: bool(copied.append(text)) or True)
    async with open_chat(home) as chat:
        await chat.write("some words")
        chat.prompt.select_all()
        await chat.press("ctrl+c")
        await chat.until("copied the selection")
        assert copied == ["some words"]
        assert chat.prompt.text == "some words"


@drive
async def test_control_c_copies_what_the_mouse_selected_in_an_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_natively", lambda text: bool(copied.append(text)) or True)
    async with open_chat(home, FakeBackend("alpha beta gamma\n\ndelta")) as chat:
        await chat.ask("hi")
        await chat.until("delta")
        lines = chat.text.split("\n")
        row = next(place for place, line in enumerate(lines) if "alpha" in line)
        column = lines[row].index("beta")
        await chat.pilot.mouse_down(offset=(column, row))
        await chat.pilot.hover(offset=(column + 4, row))
        await chat.pilot.mouse_up(offset=(column + 4, row))
        await chat.press("ctrl+c")
        await chat.until(lambda: copied)
        assert copied == ["beta"]


@drive
async def test_control_c_stops_an_answer_then_clears_then_hints_then_quits(home: Path) -> None:
    gate = threading.Semaphore(2)
    async with open_chat(home, FakeBackend("one two six ten.", gate=gate)) as chat:
        await chat.say("count")
        await chat.until("one two")
        await chat.write("draft")
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.controller.reply is None)
        assert chat.contents[1] == "one two"
        assert chat.prompt.text == "draft"
        await chat.press("ctrl+c")
        assert chat.prompt.text == ""
        await chat.press("ctrl+c")
        await chat.until("Ctrl+C again quits")
        assert chat.app.is_running
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.app._exit)
        assert chat.app.return_value == 0


@drive
async def test_control_d_deletes_in_a_text_and_quits_on_empty_input(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.write("ab")
        await chat.press("home", "ctrl+d")
        assert chat.prompt.text == "b"
        await chat.press("ctrl+d", "ctrl+d")
        await chat.until(lambda: chat.app._exit)


@pytest.mark.parametrize("command", ["/exit", "/bye", "/quit"])
@drive
async def test_a_quit_command_quits(home: Path, command: str) -> None:
    async with open_chat(home) as chat:
        await chat.say(command)
        await chat.until(lambda: chat.app._exit)


@drive
async def test_up_and_down_walk_earlier_inputs_of_every_session(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("from an older chat")
    async with open_chat(home) as chat:
        await chat.until(lambda: chat.prompt.earlier._inputs)
        await chat.ask("newer\nwith two lines")
        await chat.write("draft")
        await chat.press("up")
        assert chat.prompt.text == "newer\nwith two lines"
        await chat.press("up")
        assert chat.prompt.text == "from an older chat"
        await chat.press("down", "down", "down", "down")
        assert chat.prompt.text == "draft"


@pytest.mark.parametrize("way", ["ctrl+g", "/edit"])
@drive
async def test_the_editor_is_given_the_input_and_gives_it_back(
    home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    script = home / "editor.py"
    script.write_text(
        "import sys\np = sys.argv[1]\ntext = open(p).read()\nopen(p, 'w').write(text + 'more\\nlines\\n')\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")
    monkeypatch.delenv("VISUAL", raising=False)
    async with open_chat(home) as chat:
        monkeypatch.setattr(chat.app, "suspended", lambda work: work())  # there is no terminal to give away
        if way == "/edit":
            await chat.say(way)
        else:
            await chat.write("some ")
            await chat.press(way)
        await chat.until(lambda: "lines" in chat.prompt.text)
        assert chat.prompt.text == ("more\nlines" if way == "/edit" else "some more\nlines")


@pytest.mark.parametrize("way", ["ctrl+r", "/regen"])
@drive
async def test_regenerate_keeps_the_earlier_answer_as_a_branch(home: Path, way: str) -> None:
    answers = iter(["the first", "the second"])
    async with open_chat(home, FakeBackend(lambda _: next(answers))) as chat:
        await chat.ask("tell")
        if way == "/regen":
            await chat.say(way)
        else:
            await chat.press(way)
        await chat.until("the second")
        await chat.until("◂ 2 of 2 ▸")
        await chat.until(lambda: chat.controller.reply is None)
        assert [node.content for node in chat.controller.tree.roots[0].children] == ["the first", "the second"]


@drive
async def test_left_and_right_on_a_message_walk_its_branches(home: Path) -> None:
    answers = iter(["the first", "the second"])
    async with open_chat(home, FakeBackend(lambda _: next(answers))) as chat:
        await chat.ask("tell")
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.contents == ["tell", "the second"] and chat.controller.reply is None)
        await chat.press("shift+tab", "left")
        await chat.until("the first")
        await chat.until("◂ 1 of 2 ▸")
        await chat.press("right")
        await chat.until("the second")


@drive
async def test_editing_a_message_branches_from_there(home: Path) -> None:
    async with open_chat(home, FakeBackend(lambda messages: f"about {messages[-1].content}")) as chat:
        await chat.ask("cats")
        await chat.ask("dogs")
        await chat.press("shift+tab", "up", "up", "up", "ctrl+e")
        assert chat.prompt.text == "cats"
        await chat.write("!")
        await chat.press("enter")
        await chat.until("about cats!")
        assert chat.contents == ["cats!", "about cats!"]
        assert [root.content for root in chat.controller.tree.roots] == ["cats", "cats!"]
        await chat.press("shift+tab", "up", "left")
        await chat.until("about dogs")


@drive
async def test_control_e_on_empty_input_edits_the_last_message_and_escape_leaves_it(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("cats")
        await chat.press("ctrl+e")
        assert chat.prompt.text == "cats"
        await chat.press("escape")
        assert chat.prompt.text == ""
        assert chat.controller.editing is None


@drive
async def test_copy_says_copied_where_there_is_a_native_clipboard(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_natively", lambda text: bool(copied.append(text)) or True)
    async with open_chat(home, FakeBackend(CODE)) as chat:
        await chat.ask("code")
        await chat.press("ctrl+y")
        await chat.until("copied the answer to the clipboard")
        await chat.say("/copy 2")
        await chat.until("copied code block 2")
        assert copied == [CODE, "ls -l\n"]
        await chat.say("/copy 3")
        await chat.until("the answer has no code block 3")


@drive
async def test_copy_says_sent_where_only_the_terminal_can_copy(home: Path) -> None:
    async with open_chat(home, FakeBackend(CODE)) as chat:
        await chat.ask("code")
        await chat.say("/copy 1")
        await chat.until("sent code block 1 to the terminal's clipboard (OSC 52)")
        assert "copied" not in chat.status
        assert chat.app.clipboard == "print(1)\n"


@pytest.mark.parametrize("way", ["ctrl+n", "/clear"])
@drive
async def test_a_new_chat_leaves_the_old_one_saved(home: Path, way: str) -> None:
    async with open_chat(home) as chat:
        await chat.ask("old question")
        if way == "/clear":
            await chat.say(way)
        else:
            await chat.press(way)
        await chat.until(lambda: not chat.contents)
        await chat.until("Try:")
        await chat.ask("new question")
        saved = chat.controller.writer.ask(lambda store: store.conversations()).result(30)
        assert [talk.title for talk in saved] == ["new question", "old question"]


@pytest.mark.parametrize("way", ["ctrl+o", "/load"])
@drive
async def test_an_old_chat_is_found_and_opened(home: Path, way: str) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+n")
        await chat.ask("about sparrows")
        if way == "/load":
            await chat.say(way)
        else:
            await chat.press(way)
        await chat.until("search in titles")
        await chat.write("whal")
        await chat.until(lambda: "sparrows" not in chat.text.split("\n")[6] and "about whales" in chat.text)
        await chat.until(lambda: len(chat.app.screen.query_one("OptionList").options) == 1)
        await chat.press("enter")
        await chat.until(lambda: chat.contents and chat.contents[0] == "about whales")


@drive
async def test_load_takes_the_beginning_of_an_id(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.until(lambda: chat.controller.tree.id)
        identity = chat.controller.tree.id
        await chat.press("ctrl+n")
        await chat.say(f"/load {identity[:20]}")
        await chat.until(lambda: chat.contents and chat.contents[0] == "about whales")
        await chat.say("/load ZZZZ")
        await chat.until("no conversation has an id that begins")


@drive
async def test_save_exports_markdown_and_json_and_replaces_nothing(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("a question")
        await chat.say(f"/save {home / 'talk.md'}")
        await chat.until("saved as")
        assert "## User\n\na question" in (home / "talk.md").read_text()
        await chat.say(f"/save {home / 'talk.json'}")
        await chat.until(lambda: (home / "talk.json").exists())
        await chat.say(f"/save {home / 'talk.md'}")
        await chat.until("is there already")


@drive
async def test_title_renames_the_chat(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("a question")
        await chat.say("/title Deep things")
        await chat.until("Deep things")
        saved = chat.controller.writer.ask(lambda store: store.latest()).result(30)
        assert saved.title == "Deep things"


@pytest.mark.parametrize("command", ["/set temperature 0.7", "/set parameter temperature 0.7"])
@drive
async def test_set_changes_how_the_next_answer_is_made(home: Path, command: str) -> None:
    async with open_chat(home) as chat:
        await chat.say(command)
        await chat.until("temperature is 0.7")
        await chat.ask("hi")
        assert chat.backend.params[-1].temperature == 0.7
        await chat.say("/set temperature 7")
        await chat.until("it must be from 0 to 2")


@pytest.mark.parametrize("command", ["/set system Be brief.", "/system Be brief."])
@drive
async def test_the_system_message_is_changed_for_the_next_answer(home: Path, command: str) -> None:
    async with open_chat(home) as chat:
        await chat.say(command)
        await chat.ask("hi")
        assert [(message.role, message.content) for message in chat.backend.asked[-1]] == [
            ("system", "Be brief."),
            ("user", "hi"),
        ]


@drive
async def test_profile_changes_system_message_and_sampling(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.say("/profile coder")
        await chat.until("profile coder")
        await chat.ask("hi")
        assert chat.backend.asked[-1][0].role == "system"
        assert chat.backend.params[-1].temperature == 0.1
        await chat.say("/profile nobody")
        await chat.until("there is no profile 'nobody'")


@drive
async def test_model_opens_another_model(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.say(f"/model {home}")
        await chat.until(lambda: chat.controller.ref.folder == home and chat.controller.status.idle)
        await chat.ask("hi")
        assert chat.controller.tree.leaf.info["model"] == str(home)


@drive
async def test_continue_goes_on_with_an_answer_that_was_cut(home: Path) -> None:
    async with open_chat(home, FakeBackend("one two six ten.")) as chat:
        await chat.say("/set max_tokens 2")
        await chat.ask("count")
        await chat.until("cut at the most tokens")
        await chat.say("/set max_tokens default")
        chat.backend._text = " six ten."
        await chat.ask("/continue")
        assert chat.contents == ["count", "one two six ten."]
        assert chat.backend.asked[-1][-1].content == "one two"
        assert len(chat.controller.tree.roots[0].children) == 1


@pytest.mark.parametrize("way", ["f1", "/help", "/?"])
@drive
async def test_help_shows_every_key_and_command(home: Path, way: str) -> None:
    async with open_chat(home, size=(100, 70)) as chat:
        if way.startswith("/"):
            await chat.say(way)
        else:
            await chat.press(way)
        await chat.until("/regen")
        for word in ("Enter", "Ctrl+J", "Esc", "Ctrl+G", "Ctrl+R", "Ctrl+E", "Ctrl+Y", "Ctrl+O", "/copy", "/continue"):
            assert word in chat.text
        await chat.press("escape")
        await chat.until(lambda: "/regen" not in chat.text)


@drive
async def test_the_palette_does_what_keys_do(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("old")
        await chat.press("ctrl+p")
        await chat.until(lambda: type(chat.app.screen).__name__ == "CommandPalette")
        await chat.write("new chat")
        await chat.until("New chat")
        await chat.pilot.pause(0.2)
        await chat.press("down", "enter")
        await chat.until(lambda: not chat.contents)


@drive
async def test_f2_shows_and_hides_the_inspector(home: Path) -> None:
    async with open_chat(home, size=(120, 40)) as chat:
        await chat.ask("hi")
        await chat.press("f2")
        await chat.until("31.1 KB a token")
        await chat.until("8.9×")
        await chat.press("f2")
        await chat.until(lambda: "31.1 KB a token" not in chat.text)


@drive
async def test_keys_that_arrive_together_are_done_in_their_order(home: Path) -> None:
    """As a slow line delivers them: nothing else happens between two of them."""
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.write("aaaaaa")

        def arrive(*keys: tuple[str, str | None]) -> None:
            for key, character in keys:
                chat.app.post_message(events.Key(key, character))

        back = ("backspace", "\x7f")
        arrive(back, back, back, ("x", "x"), ("left", None), ("y", "y"), ("end", None), back, ("z", "z"))
        await chat.until(lambda: chat.prompt.text == "aaayz")
        await chat.press("ctrl+o")
        await chat.until(lambda: chat.app.screen.query(Input))
        field = chat.app.screen.query_one(Input)
        field.value = "aaa"
        field.cursor_position = 3
        field.focus()
        await chat.pilot.pause()
        arrive(back, back, ("x", "x"), ("home", None), ("y", "y"))
        await chat.until(lambda: field.value == "yax")
