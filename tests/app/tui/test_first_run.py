"""The screen of a machine without the model: every way on, and back."""

import math
import shutil
import threading
from collections.abc import Generator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend, FakeLoader
from support.terminal import dslite
from textual.widgets import Input, OptionList, Static

from dslite.app.chat.model_setup import FirstRun
from dslite.app.tui.screens.first_run import FirstRunScreen
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.events import Downloading, Found, Present


def absent(ref: ModelRef) -> Exception | None:
    if ref.repo_id is None:
        return None
    return ModelUnavailableError("the model chat is not on this machine", "download it: dslite model pull chat")


FOUND = Found("deepseek-ai/DeepSeek-V2-Lite-Chat", "c0", "DeepSeek licence", "https://x.y", 31_400_000_000, 0,
              90_000_000_000, Path("/cache"))  # fmt: skip


class FakePull:
    """Downloads in steps that a test releases."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.runs = 0
        self.present = False

    def __call__(self, ref: ModelRef, cancel: threading.Event) -> Generator[Any, None, None]:
        yield FOUND
        self.runs += 1
        for done in range(1, 5):
            yield Downloading("fetching", "model-1.safetensors", done, 4, done * 10**9, 4 * 10**9, 2e8)
            while not self.gate.acquire(timeout=0.01):
                if cancel.is_set():
                    return
        self.present = True
        yield Present(Path("/cache"), "c0")


@drive
async def test_the_first_run_shows_machine_plan_and_size_and_downloads_with_a_pause(home: Path) -> None:
    pull = FakePull()
    backend = FakeBackend("ready now")
    loader = FakeLoader(backend, error=lambda ref: None if pull.present else absent(ref))
    first_run = FirstRun(pull=pull, describe=lambda _: ["GPU: none found", "plan: 33 of 64 experts a layer in memory"])
    async with open_chat(home, backend, model="chat", loader=loader, first_run=first_run, size=(100, 40)) as chat:
        await chat.until("is not on this machine")
        await chat.until("33 of 64 experts")
        await chat.until("31 GB of 31 GB to download")
        await chat.until("/cache")
        await choices(chat)
        await chat.press("enter")
        await chat.until("25% · 1.0 GB · 200 MB/s")
        await chat.press("p")
        await chat.until("paused; what came is kept")
        assert pull.runs == 1
        await chat.press("enter")
        pull.gate.release(4)
        await chat.until(lambda: pull.present)
        await chat.until(lambda: chat.controller.status.idle)
        await chat.ask("hi")
        await chat.until("ready now")


@drive
async def test_the_first_run_answers_an_early_message_with_the_demo_model(home: Path) -> None:
    backend = FakeBackend("from the demo")
    first_run = FirstRun(pull=FakePull(), describe=lambda _: [])
    loader = FakeLoader(backend, error=absent)
    async with open_chat(home, backend, model="chat", loader=loader, first_run=first_run) as chat:
        await choices(chat)
        await chat.press("down", "enter")
        await chat.until(lambda: chat.controller.status.idle)
        assert chat.controller.ref.name == "demo"
        await chat.ask("hi")
        await chat.until("from the demo")


def chat_without(home: Path, pull: Any = None, **more: Any) -> Any:
    """A chat whose model is absent; the demo and folders are there."""
    backend = FakeBackend("it works")
    first_run = FirstRun(pull=pull or FakePull(), describe=lambda _: [])
    loader = FakeLoader(backend, error=absent)
    return open_chat(home, backend, model="chat", loader=loader, first_run=first_run, **more)


async def choices(chat: Chat) -> None:
    """Wait for the choices; an Enter that comes before they are drawn counts for nothing."""
    await chat.until("Download the model")
    await chat.until(lambda: getattr(chat.app.screen, "_shown_at", math.inf) < math.inf)


def problem(chat: Chat) -> str:
    """What the dialog on top complains of; on screen a long path breaks it anywhere."""
    return " ".join(str(line.render()) for line in chat.app.screen.query(".problem").results(Static))


async def submit(chat: Chat) -> None:
    """Enter in the line of the dialog on top, which gets the focus a moment after it is seen."""
    await chat.until(lambda: isinstance(chat.app.focused, Input) and chat.app.focused.screen is chat.app.screen)
    await chat.press("enter")


def written(chat: Chat) -> str:
    return str(chat.app.screen.query_one("Input").value)


@drive
async def test_a_folder_that_is_wrong_says_why_and_what_was_written_stays(home: Path) -> None:
    folder = home / "my model"
    async with chat_without(home) as chat:
        await chat.until("Use a folder")
        await chat.press("down", "down", "enter")
        await chat.until("Folder in Hub layout")
        await submit(chat)
        await chat.until("no folder was written")
        chat.app.screen.query_one("Input").value = str(folder)
        await submit(chat)
        await chat.until("there is no folder")
        assert written(chat) == str(folder)
        folder.mkdir()
        await submit(chat)
        await chat.until("has no config.json")
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(str(files("dslite.assets") / "demo" / name), folder)
        await submit(chat)
        await chat.until(lambda: "lacks tokenizer_config.json, *.safetensors" in problem(chat))
        for name in ("tokenizer_config.json", "model.safetensors"):
            (folder / name).touch()
        chat.app.screen.query_one("Input").value = f"'{folder}' "
        await submit(chat)
        await chat.until(lambda: chat.controller.status.idle and chat.controller.ref.folder == folder)


@drive
async def test_escape_goes_back_from_the_folder_to_the_choices_and_from_there_to_the_chat(home: Path) -> None:
    async with chat_without(home) as chat:
        await chat.until("Use a folder")
        await chat.press("down", "down", "enter")
        await chat.until("Folder in Hub layout")
        await chat.press("escape")
        await chat.until(lambda: "Folder in Hub layout" not in chat.text and "Use a folder" in chat.text)
        await chat.press("escape")
        await chat.until("/model chat shows the choices again, /model demo takes the demo model")
        await chat.say("/model chat")
        await chat.until("Use a folder on this machine")


@drive
async def test_a_message_sent_without_a_model_shows_the_choices_again_and_is_answered(home: Path) -> None:
    async with chat_without(home) as chat:
        await chat.until("Use a folder")
        await chat.press("escape")
        await chat.until("shows the choices again")
        await chat.say("hello")
        await choices(chat)
        await chat.press("down", "enter")
        await chat.until("it works")
        assert chat.contents == ["hello", "it works"]


@drive
async def test_p_begins_no_download(home: Path) -> None:
    pull = FakePull()
    async with chat_without(home, pull) as chat:
        await chat.until("31 GB of 31 GB to download")
        await chat.press("p")
        await chat.pilot.pause()
        assert "asking the Hub" not in chat.text
        assert pull.runs == 0


@drive
async def test_a_download_that_cannot_start_says_why_and_the_choices_stay(home: Path) -> None:
    asked: list[ModelRef] = []

    def pull(ref: ModelRef, cancel: threading.Event) -> Generator[Any, None, None]:
        asked.append(ref)
        raise ModelUnavailableError("the Hub cannot be reached", "check the connection")
        yield

    async with chat_without(home, pull) as chat:
        await chat.until("check the connection")
        await choices(chat)
        await chat.press("enter")
        await chat.until(lambda: len(asked) == 2 and "the Hub cannot be reached" in chat.text)
        await chat.until("Download the model")
        assert "Go on with the download" not in chat.text
        await chat.press("down", "enter")
        await chat.until(lambda: chat.controller.status.idle)


@drive
async def test_a_second_escape_leaves_a_download_that_hangs(home: Path) -> None:
    end = threading.Event()

    def pull(ref: ModelRef, cancel: threading.Event) -> Generator[Any, None, None]:
        end.wait(60)
        yield FOUND

    async with chat_without(home, pull) as chat:
        await choices(chat)
        await chat.press("enter")
        await chat.until("asking the Hub")
        await chat.press("escape")
        await chat.until("pausing")
        await chat.press("escape")
        await chat.until("/model chat shows the choices again")
        end.set()
        await chat.until(lambda: not [worker for worker in chat.app.workers if worker.is_running])
        assert chat.app.is_running


@drive
async def test_a_disk_that_is_too_small_is_told_before_the_download(home: Path) -> None:
    small = Found("a/b", "c0", "MIT", "https://x.y", 31_400_000_000, 0, 20_000_000_000, Path("/cache"))

    def pull(ref: ModelRef, cancel: threading.Event) -> Generator[Any, None, None]:
        yield small

    async with chat_without(home, pull) as chat:
        await chat.until("not enough room: free 11 GB more, or set HF_HOME")


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
@drive
async def test_every_choice_can_be_read_and_reached_on_a_small_terminal(home: Path, size: tuple[int, int]) -> None:
    async with chat_without(home, size=size) as chat:
        await chat.until(lambda: type(chat.app.screen).__name__ == "FirstRunScreen")
        for choice in ("Download the model", "Try the demo model", "Use a folder", "Leave it for now"):
            await chat.until(choice)
            await chat.press("down")


class EarlyEnter(FirstRunScreen):
    """Gets an Enter that was typed for the chat: it comes when the screen is mounted and not drawn."""

    def on_mount(self) -> None:
        choices = self.query_one(OptionList)
        choices.highlighted = 0
        choices.action_select()


@pytest.mark.parametrize("size", [(40, 10), (100, 40)])
@drive
async def test_an_enter_before_the_choices_are_drawn_begins_no_download(home: Path, size: tuple[int, int]) -> None:
    pull = FakePull()
    async with chat_without(home, pull, size=size) as chat:
        await chat.until("Download the model")
        first_run = FirstRun(pull=pull, describe=lambda _: [])
        screen = EarlyEnter(parse_model("chat"), ModelUnavailableError("absent", "pull it"), first_run)
        await chat.app.push_screen(screen)
        await chat.until(lambda: screen._shown_at < math.inf)
        await chat.until("Download the model")
        await chat.pilot.pause()
        assert pull.runs == 0
        assert screen._cancel is None
        await chat.press("enter")  # meant for the choice on screen
        await chat.until(lambda: pull.runs == 1)


@drive
async def test_control_c_twice_quits_from_a_panel(home: Path) -> None:
    async with chat_without(home) as chat:
        await chat.until("Use a folder")
        await chat.press("ctrl+c")
        await chat.until("Ctrl+C again quits")
        assert chat.app.is_running
        await chat.press("ctrl+c")
        await chat.until(lambda: chat.app._exit)
        assert chat.app.return_value == 0


def test_offline_asks_no_hub_for_the_size_of_a_download(home: Path) -> None:
    with dslite("chat", "--offline", home=home, HF_ENDPOINT="http://127.0.0.1:9") as terminal:
        terminal.wait("offline")
        assert "127.0.0.1" not in terminal.text
        terminal.press("ctrl+c", "ctrl+c")
        assert terminal.end() == 0
