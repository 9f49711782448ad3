"""Ctrl+F and /find: what is marked, which place is shown, and where a search of the saved chats leads."""

from pathlib import Path

import pytest
from rich.style import Style
from support.chat import Chat, drive, open_chat
from support.chat_texts import prose
from support.fake_engine import FakeBackend

ANSWER = "\n\n".join(f"paragraph {number} has a word" + " and more" * 30 for number in range(40))


def marked(chat: Chat) -> list[tuple[str, bool]]:
    """The marked texts in view, and whether each is the one that is shown."""
    transcript = chat.transcript
    palette = transcript.virtual_list.renderer.palette
    found: list[tuple[str, bool]] = []
    for y in range(transcript.size.height):
        for segment in transcript.render_line(y):
            style = segment.style or Style()
            for wanted in (palette.found, palette.found_here):
                if style.bgcolor is not None and style.bgcolor == wanted.bgcolor:
                    found.append((segment.text, wanted is palette.found_here))
    return found


@drive
async def test_ctrl_f_marks_what_is_typed_and_enter_goes_on(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(100, 30)) as chat:
        await chat.ask("where is the word?")
        await chat.press("ctrl+f")
        await chat.write("a wo")
        await chat.until("1 of 40")
        assert marked(chat)[0] == ("a wo", True)
        tops = []
        for number in (2, 3, 4):
            await chat.press("enter")
            await chat.until(f"{number} of 40")
            assert [text for text, here in marked(chat) if here] == ["a wo"]
            tops.append(chat.transcript.scroll_offset.y)
        await chat.press("up")
        await chat.until("3 of 40")
        await chat.press("up", "up", "up")  # before the first comes the last
        await chat.until("40 of 40")
        assert ("a wo", True) in marked(chat)
        await chat.press("escape")
        assert chat.prompt.has_focus
        assert not chat.app.chat.find_bar.display
        assert not marked(chat)


@drive
async def test_typing_on_keeps_to_the_place_where_it_still_matches(home: Path) -> None:
    async with open_chat(home, FakeBackend("one two. one three. one two.")) as chat:
        await chat.ask("go")
        await chat.say("/find one")
        await chat.until("1 of 3")
        await chat.press("enter")
        await chat.until("2 of 3")
        await chat.press("end")
        await chat.write(" t")
        await chat.until("2 of 3")
        await chat.write("w")
        await chat.until("2 of 2")


@drive
async def test_markdown_and_line_ends_between_words_do_not_hide_them(home: Path) -> None:
    answer = (
        "A **bold** word\nof the\n> quoted text\n\n```py\nthe_name = 1\n```\n| a | cell here |\n|--|--|\n| b | last |\n"
    )
    async with open_chat(home, FakeBackend(answer)) as chat:
        await chat.ask("go")
        for text, shown in [
            ("bold word of", ["bold", " word", " ", "of"]),
            ("quoted TEXT", ["quoted text"]),
            ("_name", ["_name"]),
            ("cell here", ["cell here"]),
        ]:
            await chat.say(f"/find {text}")
            await chat.until("1 of 1")
            assert "".join(shown).replace(" ", "") == "".join(part for part, _ in marked(chat)).replace(" ", ""), text
        await chat.say("/find nowhere")
        await chat.until("not found")
        assert not marked(chat)


@drive
async def test_wide_characters_are_marked_whole(home: Path) -> None:
    async with open_chat(home, FakeBackend("这是一个很长的句子，" * 30 + "模型在这里。"), size=(60, 20)) as chat:
        await chat.ask("模型在哪里？")
        await chat.say("/find 模型在")
        await chat.until("1 of 2")
        assert ("模型在", True) in marked(chat)
        await chat.press("enter")
        await chat.until("2 of 2")
        assert "".join(text for text, here in marked(chat) if here) == "模型在"  # it may be wrapped


@drive
async def test_an_answer_that_grows_adds_its_places(home: Path) -> None:
    import threading

    gate = threading.Semaphore(0)
    async with open_chat(home, FakeBackend("fish and fish and fish", gate=gate)) as chat:
        await chat.say("a fish?")
        await chat.press("ctrl+f")
        await chat.write("fish")
        await chat.until("1 of 1")
        for _ in range(20):
            gate.release()
        await chat.until("1 of 4")


@drive
async def test_a_hit_of_the_saved_chats_opens_at_its_place(home: Path) -> None:
    async with open_chat(
        home, FakeBackend(lambda messages: prose(1500) + " the albatross flies. " + prose(1500))
    ) as chat:
        await chat.ask("about birds")
        await chat.press("ctrl+n")
        await chat.press("ctrl+o")
        await chat.until("about birds")
        await chat.write("albatross")
        await chat.until("the albatross flies")
        await chat.press("enter")
        await chat.until("1 of 1")
        assert marked(chat) == [("albatross", True)]
        assert not chat.transcript.at_end
        assert chat.prompt.has_focus
        await chat.press("escape")
        assert not chat.app.chat.find_bar.display


@drive
async def test_a_hit_in_another_branch_shows_that_branch(home: Path) -> None:
    answers = iter(["the first has a walrus", "the second has none"])
    async with open_chat(home, FakeBackend(lambda _: next(answers))) as chat:
        await chat.ask("go")
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.contents[-1] == "the second has none" and chat.controller.reply is None)
        await chat.press("ctrl+n", "ctrl+o")
        await chat.write("walrus")
        await chat.until("has a walrus")
        await chat.press("enter")
        await chat.until(lambda: chat.contents and chat.contents[-1] == "the first has a walrus")
        await chat.until("1 of 1")


@drive
async def test_ctrl_c_in_the_search_closes_it_and_keeps_what_was_typed_before(home: Path) -> None:
    async with open_chat(home) as chat:
        chat.prompt.put("not sent yet")
        await chat.press("ctrl+f")
        await chat.write("x")
        await chat.press("ctrl+c")
        assert not chat.app.chat.find_bar.display
        assert chat.prompt.text == "not sent yet"


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (300, 80)])
@drive
async def test_the_count_is_seen_at_every_size(home: Path, size: tuple[int, int]) -> None:
    async with open_chat(home, FakeBackend("some word"), size=size) as chat:
        await chat.ask("go")
        await chat.say("/find word")
        await chat.until("1 of 1")
        assert "find word" in " ".join(chat.text.split())
