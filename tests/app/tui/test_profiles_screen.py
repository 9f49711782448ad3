"""F3: profiles edited in the application."""

from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from textual import events

from dslite.app.errors import ConfigFileError
from dslite.app.settings import config_file
from dslite.app.settings.config_file import config_path
from dslite.app.settings.profiles import all_profiles, default_profile, get_profile


@drive
async def test_profiles_are_added_used_made_default_removed_and_restored(home: Path) -> None:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# mine\n[profiles.old]\nsystem = 'Old.'  # kept\n")
    async with open_chat(home) as chat:
        await chat.press("f3")
        await chat.until("translator")
        await chat.press("ctrl+a")
        await chat.until("Name of the new profile")
        await chat.write("poet")
        await chat.press("enter")
        await chat.until("Profile poet")
        await chat.write("Answer in rhyme.")
        await chat.press("ctrl+s")
        await chat.until("poet saved")
        await chat.press("ctrl+s")
        await chat.until("poet is the default now")
        await chat.press("enter")
        await chat.until("profile poet")
        await chat.ask("hi")
        assert chat.backend.asked[-1][0].content == "Answer in rhyme."
        await chat.press("f3")
        await chat.until("translator")
        await chat.press("ctrl+d")
        await chat.until("poet removed")
        text = path.read_text()
        assert "# mine" in text
        assert "# kept" in text
        assert "poet" not in text


def write(text: str) -> Path:
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


async def choose(chat: Chat, name: str) -> None:
    """Open the list and go to a profile."""
    await chat.press("f3")
    await chat.until(lambda: type(chat.app.screen).__name__ == "ProfilesScreen" and "Profiles" in chat.text)
    options = chat.app.screen.query_one("OptionList")
    options.highlighted = options.get_option_index(name)
    await chat.pilot.pause()


def field(chat: Chat, name: str) -> Any:
    return chat.app.screen.query_one(f"#{name}")


MINE = """\
# mine
[defaults]
profile = "poet"

[profiles.poet]
system = 'Rhyme.'  # kept
whim = 1

[chat]
theme = 'light'
"""


@drive
async def test_a_renamed_profile_keeps_comments_and_stays_the_default(home: Path) -> None:
    path = write(MINE)
    async with open_chat(home) as chat:
        await choose(chat, "poet")
        await chat.press("ctrl+t")
        await chat.until(lambda: chat.app.screen.query("Field"))
        field_of_name = chat.app.screen.query_one("Field")
        field_of_name.value = "coder"
        await chat.press("enter")
        await chat.until("there is a profile 'coder' already")
        chat.app.screen.query_one("Field").value = "bard"
        await chat.press("enter")
        await chat.until("poet is called bard now")
    assert [line for line in path.read_text().splitlines() if line] == [
        line for line in MINE.replace("poet", "bard").splitlines() if line
    ]


@drive
async def test_renaming_the_profile_in_use_renames_it_in_the_chat(home: Path) -> None:
    write(MINE)
    async with open_chat(home) as chat:
        await chat.say("/profile poet")
        await chat.until("profile poet")
        await choose(chat, "poet")
        await chat.press("ctrl+t")
        await chat.until(lambda: chat.app.screen.query("Field"))
        chat.app.screen.query_one("Field").value = "bard"
        await chat.press("enter")
        await chat.until("poet is called bard now")
        await chat.press("escape")
        await chat.until("demo · profile bard")


@drive
async def test_a_shipped_profile_is_renamed_and_can_be_restored(home: Path) -> None:
    async with open_chat(home) as chat:
        await choose(chat, "terse")
        await chat.press("ctrl+t")
        await chat.until(lambda: chat.app.screen.query("Field"))
        chat.app.screen.query_one("Field").value = "short"
        await chat.press("enter")
        await chat.until("terse is called short now")
        assert "terse" not in all_profiles()
        await chat.press("ctrl+u")
        await chat.until("terse: back as shipped")
    assert get_profile("terse").system == get_profile("short").system


@drive
async def test_adding_a_name_that_is_there_or_is_none_asks_again(home: Path) -> None:
    async with open_chat(home) as chat:
        await choose(chat, "plain")
        await chat.press("ctrl+a")
        await chat.until("Name of the new profile")
        await chat.press("enter")
        await chat.until("is no name for a profile")
        await chat.write("coder")
        await chat.press("enter")
        await chat.until("there is a profile 'coder' already")
        assert chat.app.screen.query_one("Field").value == "coder"
        await chat.press("escape")
        await chat.until(lambda: "Name of the new profile" not in chat.text)
    assert not config_path().exists()


@drive
async def test_invalid_values_are_named_and_nothing_is_lost(home: Path) -> None:
    async with open_chat(home, size=(80, 24)) as chat:
        await choose(chat, "coder")
        await chat.press("ctrl+e")
        await chat.until("Profile coder")
        field(chat, "system").text = "A long message."
        for name, value, problem in (
            ("temperature", "warm", "temperature is 'warm'; it must be a number"),
            ("temperature", "3", "it must be from 0 to 2"),
            ("top_k", "1.5", "top_k is 1.5; it must be a whole"),
        ):
            field(chat, name).value = value
            await chat.press("ctrl+s")
            await chat.until(problem)
            field(chat, name).value = ""
        await chat.press("ctrl+s")
        await chat.until("coder saved")
    assert get_profile("coder").system == "A long message."
    assert "temperature" not in get_profile("coder").sampling


@drive
async def test_what_was_typed_just_before_it_is_saved_is_saved(home: Path) -> None:
    async with open_chat(home) as chat:
        await choose(chat, "plain")
        await chat.press("ctrl+e")
        await chat.until("Profile plain")
        driver = chat.app._driver
        for key in "quick":
            driver.send_message(events.Key(key, key))
        driver.send_message(events.Key("ctrl+s", None))
        await chat.until("plain saved")
    assert get_profile("plain").system == "quick"


@pytest.mark.parametrize("fault", ["broken", "read-only"])
@drive
async def test_what_cannot_be_saved_stays_in_the_editor(
    home: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = write(MINE)
    async with open_chat(home, size=(80, 24)) as chat:
        await choose(chat, "poet")
        await chat.press("ctrl+e")
        await chat.until("Profile poet")
        field(chat, "system").text = "Many careful words."
        with monkeypatch.context() as patch:
            if fault == "broken":
                path.write_text("[profiles\n")
            else:

                def refuse(*_: object) -> None:
                    raise ConfigFileError(f"{path} cannot be written: Read-only file system", "check the folder")

                patch.setattr(config_file, "write_atomically", refuse)
            await chat.press("ctrl+s")
            await chat.until("is not valid TOML" if fault == "broken" else "Read-only file system")
            assert path.read_text() == ("[profiles\n" if fault == "broken" else MINE)
            assert field(chat, "system").text == "Many careful words."
        path.write_text(MINE)
        await chat.press("ctrl+s")
        await chat.until("poet saved")
    assert path.read_text() == MINE.replace("'Rhyme.'", '"Many careful words."')


@drive
async def test_escape_asks_before_it_throws_words_away(home: Path) -> None:
    async with open_chat(home) as chat:
        await choose(chat, "coder")
        await chat.press("ctrl+e")
        await chat.until("Profile coder")
        await chat.press("escape")
        await chat.until("Ctrl+A adds")
        await chat.press("ctrl+e")
        await chat.until("Profile coder")
        await chat.press("x", "escape")
        await chat.until("what you changed is not saved")
        await chat.press("escape")
        await chat.until("Ctrl+A adds")
    assert not config_path().exists()


@drive
async def test_an_own_profile_that_was_removed_comes_back_with_its_comments(home: Path) -> None:
    path = write(MINE)
    async with open_chat(home) as chat:
        await choose(chat, "poet")
        await chat.press("ctrl+d")
        await chat.until("poet removed; Ctrl+U brings it back")
        assert "poet" not in path.read_text()
        await chat.press("ctrl+u")
        await chat.until("poet is back")
    assert "system = 'Rhyme.'  # kept\nwhim = 1" in path.read_text()


@drive
async def test_a_default_that_is_gone_leaves_the_list_to_choose_another(home: Path) -> None:
    write("[defaults]\nprofile = 'nobody'\n")
    async with open_chat(home) as chat:
        await chat.press("f3")
        await chat.until("there is no profile 'nobody'")
        await chat.until("translator")
        await chat.press("ctrl+s")
        await chat.until("is the default now")
    assert default_profile().name == "plain"


@drive
async def test_a_profile_in_use_is_used_as_it_was_saved(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.say("/profile coder")
        await chat.until("profile coder")
        await choose(chat, "coder")
        await chat.press("ctrl+e")
        await chat.until("Profile coder")
        field(chat, "system").text = "Only Rust."
        await chat.press("ctrl+s")
        await chat.until("coder saved")
        await chat.press("escape")
        await chat.ask("hi")
        assert chat.backend.asked[-1][0].content == "Only Rust."


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
@drive
async def test_every_field_is_reached_on_a_small_terminal(home: Path, size: tuple[int, int]) -> None:
    async with open_chat(home, size=size) as chat:
        await choose(chat, "coder")
        await chat.press("ctrl+e")
        await chat.until("Profile coder")
        for name in ("description", "model", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"):
            await chat.until(lambda: chat.app.screen.focused is not None)
            while chat.app.screen.focused.id != name:
                await chat.press("tab")
            await chat.until(name)
            assert "Ctrl+S saves" in chat.text
