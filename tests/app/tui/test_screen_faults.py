"""Inputs that the screen must not lose, and keys that must not do more than they say."""

import threading
from pathlib import Path
from typing import Any

import pytest
from support.chat import drive, open_chat
from support.fake_engine import FakeBackend, FakeLoader

from dslite.app.chat.model_setup import FirstRun
from dslite.app.terminal import clipboard
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import CheckpointError, ModelUnavailableError

CODE = "```python\nprint({0})\n```\n"


@pytest.mark.parametrize("way", ["escape", "ctrl+c", "ctrl+n", "failure"])
@drive
async def test_messages_that_wait_are_shown_and_go_back_into_the_input(home: Path, way: str) -> None:
    gate = threading.Semaphore(2)

    class Failing(FakeBackend):
        def _wait(self, started: float, place: int, cancel: Any) -> bool:
            if way == "failure" and place == 3:
                raise CheckpointError("the weights are damaged")
            return super()._wait(started, place, cancel)

    async with open_chat(home, Failing("one two six ten.", gate=gate)) as chat:
        await chat.say("count")
        await chat.until("one two")
        await chat.say("second question")
        await chat.say("third question")
        await chat.until("waits: second question")
        await chat.until("waits: third question")
        await chat.write("draft")
        if way == "failure":
            gate.release(9)
        else:
            await chat.press(way)
        await chat.until(lambda: chat.prompt.text == "second question\nthird question\ndraft")
        await chat.until(lambda: "waits:" not in chat.text)
        assert chat.controller.queue == []


@drive
async def test_delete_and_end_on_empty_input_neither_quit_nor_edit(home: Path) -> None:
    async with open_chat(home, FakeBackend("line\n\n" * 60)) as chat:
        await chat.ask("long")
        await chat.press("ctrl+home")
        await chat.until(lambda: chat.transcript.scroll_offset.y == 0)
        await chat.press("delete")
        assert not chat.app._exit
        await chat.press("end")
        await chat.until(lambda: chat.transcript.at_end)
        assert chat.prompt.text == ""
        assert chat.controller.editing is None
        await chat.press("ctrl+home")
        await chat.until(lambda: chat.transcript.scroll_offset.y == 0)
        await chat.press("ctrl+end")
        await chat.until(lambda: chat.transcript.at_end)


@drive
async def test_control_up_and_down_choose_questions(home: Path) -> None:
    async with open_chat(home) as chat:
        for text in ("first", "second", "third"):
            await chat.ask(text)
        chosen: list[str] = []
        for key in ("ctrl+up", "alt+up", "ctrl+up", "ctrl+up", "ctrl+down", "alt+down"):
            await chat.press(key)
            chosen.append(chat.transcript.chosen.text)
        assert chosen == ["third", "second", "first", "first", "second", "third"]


@pytest.mark.parametrize("name", ["demi", "./no/such/folder", "deepseek-ai/DeepSeek-V2-Lite-Chta"])
@drive
async def test_a_mistyped_model_leaves_the_one_that_runs(home: Path, name: str) -> None:
    loaded: list[str] = []

    def error(ref: ModelRef) -> Exception | None:
        if ref.name == "demo":
            return None
        kind = ModelUnavailableError if ref.repo_id else CheckpointError
        return kind(f"there is no model {ref.name}", "see dslite model list")

    class Loader(FakeLoader):
        def load(self, ref: ModelRef, report: Any) -> Any:
            loaded.append(ref.name)
            return super().load(ref, report)

    backend = FakeBackend("still here")
    first_run = FirstRun(pull=lambda *_: iter(()), describe=lambda _: [])  # type: ignore[arg-type,return-value]
    async with open_chat(home, backend, loader=Loader(backend, error=error), first_run=first_run) as chat:
        await chat.ask("before")
        await chat.say(f"/model {name}")
        await chat.until(f"there is no model {name}")
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        await chat.ask("after")
        assert loaded == ["demo"]
        assert chat.controller.ref.name == "demo"
        assert chat.controller.tree.leaf.info["model"] == "demo"
        saved = chat.controller.writer.ask(lambda store: store.latest()).result(30)
        assert saved.model == "demo"


@drive
async def test_a_model_that_breaks_while_it_loads_gives_way_to_the_one_before(home: Path) -> None:
    backend = FakeBackend("back again")

    class Loader(FakeLoader):
        def load(self, ref: ModelRef, report: Any) -> Any:
            if ref.name != "demo":
                raise CheckpointError("model.safetensors is cut short")
            return super().load(ref, report)

    async with open_chat(home, backend, loader=Loader(backend)) as chat:
        await chat.ready()
        await chat.say(f"/model {home}")
        await chat.until("model.safetensors is cut short")
        await chat.ready()
        await chat.ask("hello")
        assert chat.controller.tree.leaf.info["model"] == "demo"


@drive
async def test_a_deleted_chat_and_a_removed_profile_come_back_after_their_panel_was_closed(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+o")
        await chat.until("search in titles")
        await chat.press("ctrl+underscore")
        await chat.until("nothing to undo")
        await chat.until("about whales")
        await chat.press("ctrl+d")
        await chat.until("no chat is saved yet")
        await chat.press("escape", "ctrl+o")
        await chat.until("no chat is saved yet")
        await chat.press("ctrl+underscore")
        await chat.until("“about whales” is back")
        await chat.press("escape", "f3")
        await chat.until("translator")
        await chat.press("ctrl+underscore")
        await chat.until("nothing to undo")
        await chat.press("ctrl+d")
        await chat.until("removed; Ctrl+U")
        await chat.press("escape", "f3")
        await chat.until(lambda: type(chat.app.screen).__name__ == "ProfilesScreen")
        await chat.press("ctrl+underscore")
        await chat.until("is back")


@drive
async def test_the_number_beside_a_code_block_is_the_one_that_copy_takes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_natively", lambda text: bool(copied.append(text)) or True)
    answers = iter([CODE.format(1), CODE.format(2) + "\n> ```sh\n> quoted\n> ```\n\n" + CODE.format(3)])
    async with open_chat(home, FakeBackend(lambda _: next(answers)), size=(100, 40)) as chat:
        await chat.ask("one")
        assert chat.text.count("/copy 1") == 1
        await chat.ask("two")
        await chat.until(lambda: chat.text.count("/copy 1") == 1)
        lines = chat.text.split("\n")
        for label in [line for line in lines if "copy: /copy" in line]:
            below = lines[lines.index(label) + 1]
            number = label.rpartition("/copy ")[2].strip()
            await chat.say(f"/copy {number}")
            await chat.until(f"copied code block {number}")
            assert copied[-1].strip() in below
        assert copied[-1] == "print(3)\n"


@pytest.mark.parametrize(
    "failed", ["/foo", "/set temperature 9", "/help foo", "/quit now", "/load nothing of the kind"]
)
@drive
async def test_what_is_typed_after_a_failed_command_replaces_it(home: Path, failed: str) -> None:
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.say(failed)
        await chat.until(lambda: "!" in chat.text or chat.controller.view._transcript.items[-1].text.startswith("!"))
        await chat.write("/title new")
        await chat.press("enter")
        await chat.until(lambda: chat.controller.tree.title == "new")
        assert not chat.backend.asked


@pytest.mark.parametrize("command", ["/help foo", "/quit now", "/new chat", "/continue please", "/mouse off", "/? x"])
@drive
async def test_an_argument_that_a_command_does_not_take_is_an_error(home: Path, command: str) -> None:
    async with open_chat(home) as chat:
        await chat.say(command)
        await chat.until("takes nothing behind it")
        assert len(chat.app.screen_stack) == 1


@pytest.mark.parametrize("key", ["ctrl+n", "ctrl+o"])
@drive
async def test_hints_of_the_chat_before_are_gone_in_another_chat(home: Path, key: str) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        identity = chat.controller.tree.id
        await chat.press("ctrl+e")
        await chat.until("editing: Enter makes a branch")
        if key == "ctrl+n":
            await chat.press(key)
        else:
            await chat.until(lambda: chat.controller.tree.id is not None)
            identity = chat.controller.tree.id
            chat.controller.load(lambda _: identity)
        await chat.until(lambda: "editing" not in chat.status)
        assert chat.controller.editing is None


@drive
async def test_stopped_is_not_said_of_a_new_chat(home: Path) -> None:
    gate = threading.Semaphore(2)
    async with open_chat(home, FakeBackend("one two six ten.", gate=gate)) as chat:
        await chat.say("count")
        await chat.until("one two")
        await chat.press("ctrl+n")
        await chat.until("Try:")
        assert "stopped" not in chat.status
        assert chat.controller.status.idle


@drive
async def test_a_key_between_two_control_c_keeps_the_chat_open(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.press("ctrl+c")
        await chat.until("Ctrl+C again quits")
        await chat.press("x", "backspace", "ctrl+c")
        await chat.pilot.pause()
        assert not chat.app._exit
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.app._exit)


@pytest.mark.parametrize("text", ["", "  \n"])
@drive
async def test_an_empty_answer_says_so(home: Path, text: str) -> None:
    async with open_chat(home, FakeBackend(text)) as chat:
        await chat.ask("say nothing")
        await chat.until("(empty answer)")
        chat.controller.load(lambda store: store.latest().id)  # type: ignore[union-attr]
        await chat.until("(empty answer)")


@drive
async def test_set_alone_shows_the_values(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.say("/set temperature 0.7")
        await chat.until("temperature is 0.7")
        await chat.say("/set")
        await chat.until("temperature 0.7")
        await chat.until("system (none)")


@drive
async def test_a_chat_that_is_not_saved_says_so_from_the_beginning(home: Path) -> None:
    async with open_chat(home, saving=False) as chat:
        await chat.until(lambda: "not saved (--no-save)" in chat.status)


@drive
async def test_resizing_keeps_the_place_that_was_scrolled_to(home: Path) -> None:
    text = "\n\n".join(f"paragraph {number} " + "with some words " * 12 for number in range(80))
    async with open_chat(home, FakeBackend(text)) as chat:
        await chat.ask("go")
        await chat.press("pageup", "pageup", "pageup")
        await chat.pilot.pause()
        await chat.pilot.resize_terminal(60, 20)
        await chat.pilot.pause()
        assert not chat.transcript.at_end


@pytest.mark.parametrize(
    ("search", "written"),
    [
        ("Save", "/save "),
        ("Rename", "/title "),
        ("Model", "/model "),
        ("System", "/system "),
        ("Temperature", "/set temperature "),
        ("Use a profile", "/profile "),
    ],
)
@drive
async def test_the_palette_begins_commands_that_need_an_argument(home: Path, search: str, written: str) -> None:
    async with open_chat(home) as chat:
        commands = {command.title: command for command in chat.app.get_system_commands(chat.app.screen)}
        [command] = [command for title, command in commands.items() if title.startswith(search)]
        command.callback()
        assert chat.prompt.text == written


def absent(ref: ModelRef) -> Exception | None:
    return ModelUnavailableError("the model chat is not on this machine", "pull it") if ref.repo_id else None


@drive
async def test_the_smallest_first_run_shows_its_choices_and_an_early_enter_downloads_nothing(home: Path) -> None:
    pulled: list[str] = []

    def pull(ref: ModelRef, cancel: threading.Event) -> Any:
        pulled.append("found")
        yield
        pulled.append("begun")

    backend = FakeBackend("works")
    first_run = FirstRun(pull=pull, describe=lambda _: ["a long line about this machine"] * 4)
    loader = FakeLoader(backend, error=absent)
    async with open_chat(home, backend, model="chat", loader=loader, first_run=first_run, size=(40, 10)) as chat:
        await chat.until(lambda: type(chat.app.screen).__name__ == "FirstRunScreen")
        await chat.until("Download the model")
        await chat.until("Try the demo model")
        await chat.until("Leave it for now")
        assert "begun" not in pulled
