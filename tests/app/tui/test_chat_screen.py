"""What the screen says and does beside its keys."""

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from support.chat import drive, open_chat
from support.fake_engine import FakeBackend, FakeLoader

from dslite.app.chat.autosave import ConversationStored, ConversationWriter, SavingFailed, SavingResumed
from dslite.app.chat.launch import ChatConfig
from dslite.app.chat.model_loading import LoadedModel
from dslite.app.errors import ConfigFileError, SessionsError
from dslite.app.sessions.store import SessionStore
from dslite.app.settings.config_file import config_path
from dslite.app.tui.style.themes import THEMES
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.events import Loading, Prefilling


@drive
async def test_a_message_sent_while_the_model_loads_waits_and_is_answered(home: Path) -> None:
    hold = threading.Event()
    backend = FakeBackend("here I am")
    loading = [Loading(11_600_000_000, 31_400_000_000)]
    async with open_chat(home, backend, loader=FakeLoader(backend, loading=loading, hold=hold)) as chat:
        await chat.until("loading weights 36 % · 11.6 of 31.4 GB")
        await chat.write("hello")
        await chat.press("enter")
        await chat.until("your message waits")
        assert not backend.asked
        hold.set()
        await chat.until("here I am")
        assert "your message waits" not in chat.status


@drive
async def test_reading_shows_how_far_and_how_fast(home: Path) -> None:
    gate = threading.Semaphore(0)
    prefill = [Prefilling(1536, 4112, 0, 0.5)]
    backend = FakeBackend("x", gate=gate, prefill=prefill)
    backend.count_prompt = lambda _: None  # type: ignore[attr-defined]
    async with open_chat(home, backend) as chat:
        held = threading.Event()
        original = backend._run

        def run(*arguments: Any) -> Generator[Any, None, None]:
            events = original(*arguments)
            yield next(events)
            held.wait()
            yield from events

        backend._run = run  # type: ignore[method-assign]
        await chat.say("hi")
        await chat.until("reading 1,536 of 4,112 · 3,072 tok/s")
        await chat.until("Esc stops")
        held.set()
        gate.release()
        await chat.until(lambda: chat.controller.reply is None)


@drive
async def test_a_message_typed_while_an_answer_is_made_waits_for_its_end(home: Path) -> None:
    gate = threading.Semaphore(1)
    async with open_chat(home, FakeBackend(lambda m: f"about {m[-1].content} and more", gate=gate)) as chat:
        await chat.say("one")
        await chat.until("abou")
        await chat.say("two")
        await chat.until("your message waits")
        gate.release(100)
        await chat.until("about two and more")
        assert [content for content in chat.contents[::2]] == ["one", "two"]


@drive
async def test_text_of_the_model_is_neither_control_nor_markup(home: Path) -> None:
    text = "a\x1b[31mred\x1b]0;title\x07 [bold]not bold[/bold] \x9b5m \u202eabc <b>html</b> `[red]code`"
    text += "\n\n```\n\x1b[2J\n```"
    async with open_chat(home, FakeBackend(text)) as chat:
        await chat.ask("\x1b[2J[/]")
        await chat.until("html")
        assert "␛[31mred␛]0;title␇ [bold]not bold[/bold]" in chat.text
        assert "<b>html</b> [red]code" in chat.text
        assert "␛[2J" in chat.text
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(chat.text)
        await chat.say("/title \x1b[31m[red]title")
        await chat.until("␛[31m[red]title")


@drive
async def test_an_unknown_command_is_told_and_stays_in_the_input(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.say("/regne")
        await chat.until("did you mean /regen?")
        assert chat.prompt.text == "/regne"
        await chat.say("/usr/bin/env is a path")
        await chat.until(lambda: chat.contents[:1] == ["/usr/bin/env is a path"])


@pytest.mark.parametrize("size", [(40, 10), (300, 80), (80, 24)])
@drive
async def test_every_size_shows_answer_prompt_and_status(home: Path, size: tuple[int, int]) -> None:
    async with open_chat(home, FakeBackend("x " * 200 + "\n\nthe end 你好 مرحبا"), size=size) as chat:
        await chat.ask("go")
        await chat.until("the end 你好 مرحبا")
        assert "›" in chat.text
        assert "tok/s" in chat.status
        assert max(len(line) for line in chat.text.split("\n")) <= size[0]
        for key in ("f1", "ctrl+o", "f3", "f2"):
            await chat.press(key)
            await chat.pilot.pause()
            await chat.press("escape")
            await chat.pilot.pause()


@drive
async def test_resizing_keeps_the_place_that_is_read(home: Path) -> None:
    text = "\n\n".join(f"paragraph {number} " + "with some words " * 12 for number in range(80))
    async with open_chat(home, FakeBackend(text), size=(100, 30)) as chat:
        await chat.ask("go")
        chat.transcript.choose(chat.transcript.items[0])
        await chat.press("pageup", "pageup", "pageup", "pageup")
        await chat.press("pagedown", "pagedown")
        await chat.pilot.pause()
        top = chat.text.split("\n")[2:6]
        number = next(word for line in top for word in [line.strip()] if word.startswith("paragraph"))
        await chat.pilot.resize_terminal(60, 20)
        await chat.until(lambda: " ".join(number.split()[:2]) in chat.text)
        await chat.pilot.resize_terminal(100, 30)
        await chat.until(lambda: " ".join(number.split()[:2]) in chat.text)


@drive
async def test_every_theme_can_be_chosen_and_kept_apart(home: Path) -> None:
    async with open_chat(home, FakeBackend("```python\nx = 1\n```")) as chat:
        await chat.ask("go")
        seen = set()
        for theme in THEMES:
            await chat.say(f"/theme {theme.name}")
            await chat.until(lambda name=theme.name: chat.app.theme == name)
            await chat.until("x = 1")
            seen.add(chat.app.theme_variables["background"])
        assert len(seen) >= 4
        await chat.say("/theme nothing")
        await chat.until("there is no theme nothing")


@drive
async def test_keys_of_the_config_replace_ours(home: Path) -> None:
    answers = iter(["one", "two"])
    config = ChatConfig(keymap={"regenerate": "f9"})
    async with open_chat(home, FakeBackend(lambda _: next(answers)), config=config) as chat:
        await chat.ask("go")
        await chat.press("ctrl+r")
        await chat.pilot.pause()
        assert chat.contents == ["go", "one"]
        await chat.press("f9")
        await chat.until(lambda: chat.contents == ["go", "two"])


@drive
async def test_the_mouse_is_left_to_the_terminal_and_taken_back(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.say("/mouse")
        await chat.until("the mouse is the terminal's")
        await chat.press("f4")
        await chat.until("the mouse is ours again")


@drive
async def test_a_place_that_cannot_be_written_costs_the_saving_and_not_the_chat(home: Path) -> None:
    place = home / "file"
    place.write_text("not a folder")
    async with open_chat(place, FakeBackend("still here")) as chat:
        await chat.ask("go")
        await chat.until("this chat is not saved")
        await chat.until("still here")
        assert "not saved" in chat.status


@drive
async def test_a_newer_database_is_refused_untouched_and_the_chat_goes_on(home: Path) -> None:
    with SessionStore.open(home / "sessions.db") as store, store.database.writing() as db:
        db.execute("PRAGMA user_version = 999")
    before = (home / "sessions.db").read_bytes()
    async with open_chat(home, FakeBackend("still here")) as chat:
        await chat.until("newer dslite: its version is 999")
        await chat.ask("go")
        await chat.until("still here")
    assert (home / "sessions.db").read_bytes() == before


@drive
async def test_no_save_leaves_no_trace(home: Path) -> None:
    async with open_chat(home, saving=False) as chat:
        await chat.ask("go")
        assert chat.controller.writer.ask(lambda store: store.conversations()).result(30) == []


def test_what_could_not_be_saved_is_saved_with_the_next_message(home: Path) -> None:
    from dslite.app.chat.message_tree import MessageTree

    folder = home / "later"
    folder.write_text("in the way")
    writer = ConversationWriter(lambda: SessionStore.open(folder / "sessions.db"))
    tree = MessageTree(model="demo")
    writer.append(tree, tree.add("user", "first", parent=None))
    writer._jobs.put(lambda: (folder.unlink(), None)[1])
    answer = tree.add("assistant", "second", parent=tree.leaf)
    writer.append(tree, answer)
    writer.close()
    failed, stored, resumed = writer.drain()
    assert isinstance(failed, SavingFailed)
    assert isinstance(failed.error, SessionsError)
    assert isinstance(stored, ConversationStored)
    assert isinstance(resumed, SavingResumed)
    with SessionStore.open(folder / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        assert [message.content for message in store.path(talk.leaf)] == ["first", "second"]


@drive
async def test_a_broken_config_is_told_and_left_alone(home: Path) -> None:
    error = ConfigFileError("config.toml is not valid TOML: at line 3, column 7", "correct it")
    async with open_chat(home, warnings=[error]) as chat:
        await chat.until("line 3, column 7")
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[profiles\n")
    async with open_chat(home) as chat:
        await chat.press("f3")
        await chat.until("is not valid TOML")
        await chat.press("escape")
    assert path.read_text() == "[profiles\n"


@drive
async def test_deleting_a_chat_is_undone(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+o")
        await chat.until(lambda: "about whales" in chat.text and "search" in chat.text)
        await chat.press("ctrl+t")
        await chat.until("Title")
        await chat.press("end", "!", "enter")
        await chat.until("about whales!")
        await chat.press("ctrl+d")
        await chat.until("no chat is saved yet")
        await chat.press("ctrl+underscore")
        await chat.until("about whales!")


@drive
async def test_a_model_that_cannot_be_opened_says_why_and_another_can_be_chosen(home: Path) -> None:
    backend = FakeBackend("works")
    calls: list[str] = []

    class Loader(FakeLoader):
        def load(self, ref: ModelRef, report: Any) -> LoadedModel:
            calls.append(ref.name)
            if len(calls) == 1:
                raise ModelUnavailableError("model.safetensors is cut short", "download the model again")
            return LoadedModel(backend)

    async with open_chat(home, backend, loader=Loader(backend)) as chat:
        await chat.until("model.safetensors is cut short")
        await chat.say("hello")
        await chat.until("your message waits")
        await chat.until("no model is open: /model NAME opens one")
        await chat.say("/model demo")
        await chat.until("works")


@drive
async def test_the_inspector_draws_layers_by_experts_and_slots(home: Path) -> None:
    uses = [[0] * 63 + [9], [3] * 64]
    facts = {"uses": uses, "experts": {"slots": 44, "hits": 90, "misses": 10, "bytes_moved": 170_000_000}}
    async with open_chat(home, FakeBackend("x", facts=facts), size=(130, 45)) as chat:
        await chat.ask("go")
        await chat.press("f2")
        await chat.until("44 of 64 experts a layer")
        await chat.until("90.0% hits · 90 hits · 10 misses")
        await chat.until("65 of 128 experts used, 201 times")
        grid = chat.app.chat.inspector.text.split("\n")
        rows = [line[4:] for line in grid if line.startswith((" 1  ", " 2  "))]
        assert len(rows) == 2
        assert rows[0].strip() == "█"[-1] or rows[0].strip() in "▓█"
        assert len(set(rows[1].strip())) == 1
        assert "GPU" not in chat.status
        assert "44/64 experts" in chat.status
