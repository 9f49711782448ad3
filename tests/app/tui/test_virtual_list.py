"""The virtual list of a transcript, without a screen."""

from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style
from support.chat_texts import mixed

from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem, render_blocks
from dslite.app.tui.transcript.virtual_list import KEPT, VirtualList

WIDTH = 40


def make_list(late: list[RenderBlock] | None = None) -> VirtualList:
    """An empty list; blocks whose colours take long go to `late`."""
    return VirtualList(
        lambda: BlockRenderer(WIDTH, Palette.of_theme({}, Style())), ([] if late is None else late).append
    )


def note_blocks(*heights: int) -> list[RenderBlock]:
    """Blocks of so many lines each, the blank one above included."""
    return [
        RenderBlock(TranscriptItem(0, "notice", "", "\n".join("x" * (height - 1))), kind="note") for height in heights
    ]


def all_lines(virtual_list: VirtualList) -> list[str]:
    """Every line, block by block."""
    return [strip.text for block in virtual_list.blocks for strip in virtual_list.draw(block)]


@given(st.lists(st.integers(2, 6), min_size=1, max_size=12), st.integers(1, 9))
def test_scrolling_through_draws_every_line_once_and_in_order(heights: list[int], view: int) -> None:
    virtual_list = make_list()
    virtual_list.replace(0, 0, note_blocks(*heights))
    assert virtual_list.height == len(heights)  # as estimated
    y = 0
    while y < virtual_list.height:
        while virtual_list.draw_lines(y, y + view):
            pass
        y += view
    assert virtual_list.height == sum(heights)
    assert [virtual_list.strip(*virtual_list.at(line)).text for line in range(virtual_list.height)] == all_lines(
        virtual_list
    )
    assert [virtual_list.top(block) for block in virtual_list.blocks] == [
        sum(heights[:place]) for place in range(len(heights))
    ]


def test_only_blocks_of_the_requested_lines_are_drawn() -> None:
    virtual_list = make_list()
    virtual_list.replace(0, 0, note_blocks(3, 3, 3, 3))
    assert virtual_list.draw_lines(1, 2)
    assert [block.strips is not None for block in virtual_list.blocks] == [False, True, False, False]
    assert not virtual_list.draw_lines(1, 4)  # the blocks that moved down are not requested


def test_replacing_blocks_moves_only_the_blocks_below() -> None:
    virtual_list = make_list()
    virtual_list.replace(0, 0, note_blocks(2, 3, 4))
    all_lines(virtual_list)
    virtual_list.measure()
    first, _, last = virtual_list.blocks
    new = note_blocks(5, 6)
    assert virtual_list.replace(1, 1, new) == 2
    assert [virtual_list.top(block) for block in (first, *new, last)] == [0, 2, 3, 4]
    assert virtual_list.at(3) == (new[1], 0)
    assert virtual_list.at(99) == (last, 95)


def test_strips_of_blocks_drawn_long_ago_are_dropped_and_drawn_again() -> None:
    virtual_list = make_list()
    virtual_list.replace(0, 0, note_blocks(*[2] * (KEPT + 5)))
    all_lines(virtual_list)
    virtual_list.measure()
    assert [place for place, block in enumerate(virtual_list.blocks) if block.strips is None] == [0, 1, 2, 3, 4]
    assert virtual_list.strip(*virtual_list.at(1)).text == "  x"
    assert virtual_list.blocks[0].strips is not None


def test_another_layout_draws_all_blocks_again() -> None:
    virtual_list = make_list()
    virtual_list.replace(0, 0, note_blocks(2, 2))
    all_lines(virtual_list)
    before = virtual_list.renderer
    virtual_list.forget()
    assert [block.strips for block in virtual_list.blocks] == [None, None]
    virtual_list.draw_lines(0, 1)
    assert virtual_list.renderer is not before


def test_a_long_code_block_is_highlighted_in_the_background() -> None:
    late: list[RenderBlock] = []
    virtual_list = make_list(late)
    long = "\n".join(["```python", *["x = 1"] * 200, "```"])
    virtual_list.replace(0, 0, render_blocks(TranscriptItem(1, "assistant", "demo", f"{long}\n\n{mixed(50)}")))
    all_lines(virtual_list)
    assert [block.block and block.block.kind for block in late] == ["fence"]
