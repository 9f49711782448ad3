"""Slash commands while they are typed: candidates, their values, and the keys that take them."""

from pathlib import Path

import pytest
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend

from dslite.app.chat.slash_commands import COMMANDS
from dslite.app.settings.config_file import config_path
from dslite.app.settings.profiles import get_profile


def shown(chat: Chat) -> list[str]:
    hints = chat.app.chat.hints
    return [candidate.text for candidate in hints._candidates] if hints.display else []


@drive
async def test_tab_completes_the_command_that_is_typed(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.write("/th")
        await chat.until("/theme [NAME] Change the colours.")
        await chat.press("tab")
        assert chat.prompt.text == "/theme "
        await chat.until(lambda: "/theme light" in shown(chat))
        await chat.write("li")
        await chat.press("tab", "enter")
        await chat.until(lambda: chat.app.theme == "light")
        assert shown(chat) == []


@drive
async def test_down_and_enter_take_a_candidate_and_run_it(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.write("/theme ")
        await chat.until(lambda: len(shown(chat)) > 3)
        await chat.press("down", "down", "enter")
        await chat.until(lambda: chat.app.theme == "light")
        await chat.write("/se")
        await chat.until(lambda: shown(chat) == ["/set "])
        await chat.press("down", "enter")
        assert chat.prompt.text == "/set "  # its argument is missing
        await chat.until(lambda: "/set temperature " in shown(chat))


@drive
async def test_enter_sends_what_was_typed_and_escape_hides_the_candidates(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.write("/sh")
        await chat.until(lambda: shown(chat) == ["/show"])
        await chat.press("escape")
        assert shown(chat) == []
        assert chat.prompt.text == "/sh"
        await chat.write("o")
        await chat.until(lambda: shown(chat) == ["/show"])
        await chat.press("enter")
        await chat.until("there is no command /sho")


@drive
async def test_chats_are_offered_by_their_titles(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about 鲸鱼 whales")
        identity = chat.controller.tree.id
        await chat.press("ctrl+n")
        await chat.write("/load whal")
        await chat.until(lambda: shown(chat) == [f"/load {identity}"])
        await chat.until("about 鲸鱼 whales")
        await chat.press("tab", "enter")
        await chat.until(lambda: chat.contents[:1] == ["about 鲸鱼 whales"])


@drive
async def test_models_and_profiles_and_files_are_offered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "out").mkdir()
    (home / "out" / "chat.md").touch()
    (home / "out" / ".hidden").touch()
    monkeypatch.chdir(home)
    async with open_chat(home) as chat:
        for typed, candidate in [
            ("/model co", "/model coder"),
            ("/profile co", "/profile coder"),
            ("/save ou", "/save out/"),
            ("/save out/", "/save out/chat.md"),
        ]:
            chat.prompt.put(typed)
            await chat.until(lambda candidate=candidate: candidate in shown(chat))
        assert not any("hidden" in text for text in shown(chat))


@drive
async def test_recalled_inputs_keep_up_and_down_for_themselves(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("first")
        await chat.say("/set temperature 0.5")
        await chat.press("up")
        assert chat.prompt.text == "/set temperature 0.5"
        assert shown(chat) == []
        await chat.press("up")
        assert chat.prompt.text == "first"


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
@drive
async def test_candidates_leave_room_for_the_input(home: Path, size: tuple[int, int]) -> None:
    async with open_chat(home, size=size) as chat:
        await chat.write("/")
        await chat.until(lambda: len(shown(chat)) > 15)
        assert "›" in chat.text.splitlines()[-3]


@drive
async def test_show_lists_what_is_set_and_where_it_comes_from(home: Path) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[profiles.cold]\nsystem = "Be cold."\ntemperature = 0.1\ntop_p = 0.5\n')
    async with open_chat(home) as chat:
        await chat.say("/profile cold")
        await chat.say("/set temperature 0.7")
        await chat.say("/set repetition_penalty 1.1")
        await chat.say("/show")
        await chat.until("repetition_penalty 1.1 (flag or /set)")
        await chat.until("temperature 0.7 (flag or /set)")
        await chat.until("top_p 0.5 (profile cold)")
        await chat.until("system Be cold.")
        await chat.until("profile cold (changed here)")
        await chat.say("/save-profile colder")
        await chat.until("saved as profile colder")
        profile = get_profile("colder")
        assert (profile.system, dict(profile.sampling)) == (
            "Be cold.",
            {"temperature": 0.7, "top_p": 0.5, "repetition_penalty": 1.1},
        )
        assert chat.controller.settings.chosen == {}
        await chat.ask("hello")
        assert chat.backend.params[-1].temperature == 0.7


@drive
async def test_quote_puts_the_answer_or_the_selection_into_the_input(home: Path) -> None:
    async with open_chat(home, FakeBackend("first line\n\nsecond *line*")) as chat:
        await chat.ask("go")
        await chat.say("/quote")
        assert chat.prompt.text == "> first line\n>\n> second *line*\n\n"
        await chat.write("why?")
        assert chat.prompt.text.endswith("\n\nwhy?")


@drive
async def test_a_snippet_is_sent_with_the_text_behind_its_name(home: Path) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[snippets]\ntr = "Translate “{input}” into Chinese."\nbrief = "Be brief."\n')
    async with open_chat(home) as chat:
        await chat.say("/p tr good morning")
        await chat.until(lambda: chat.contents[:1] == ["Translate “good morning” into Chinese."])
        await chat.ready()
        await chat.say("/p tr")
        assert chat.prompt.text == "Translate “” into Chinese."
        await chat.write("x")
        assert chat.prompt.text == "Translate “x” into Chinese."
        await chat.say("/p brief What is MLA?")
        await chat.until(lambda: chat.contents[2:3] == ["Be brief.\n\nWhat is MLA?"])
        await chat.say("/p none")
        await chat.until("choose one of tr, brief")
        chat.prompt.put("/p t")
        await chat.until(lambda: shown(chat) == ["/p tr "])


@drive
async def test_the_palette_has_every_command(home: Path) -> None:
    async with open_chat(home) as chat:
        helps = " ".join(command.help for command in chat.app.get_system_commands(chat.app.screen))
        titles = {command.title for command in chat.app.get_system_commands(chat.app.screen)}
        assert {"Show what is set", "Find in this chat", "Make a profile of what is set"} <= titles
        by_key = {"help", "regenerate", "edit", "copy", "new", "load", "inspect", "theme", "mouse", "quit", "find"}
        by_key |= {"tokens"}
        for command in COMMANDS:
            assert command.name in by_key or any(word in helps for word in command.words), command.name
