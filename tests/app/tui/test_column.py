"""Pieces one below the other, without a screen."""

from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style
from support.chat_texts import mixed

from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem, render_blocks
from dslite.app.tui.transcript.virtual_list import KEPT, VirtualList

WIDTH = 40


def make_column(late: list[RenderBlock] | None = None) -> VirtualList:
    """An empty column; blocks whose colours take long go to `late`."""
    return VirtualList(
        lambda: BlockRenderer(WIDTH, Palette.of_theme({}, Style())), ([] if late is None else late).append
    )


def notes(*heights: int) -> list[RenderBlock]:
    """Pieces of so many lines each, with the empty one above."""
    return [
        RenderBlock(TranscriptItem(0, "notice", "", "\n".join("x" * (height - 1))), kind="note") for height in heights
    ]


def whole(column: VirtualList) -> list[str]:
    """Every line, block by block."""
    return [strip.text for block in column.blocks for strip in column.draw(block)]


@given(st.lists(st.integers(2, 6), min_size=1, max_size=12), st.integers(1, 9))
def test_scrolling_through_draws_every_line_once_and_in_order(heights: list[int], view: int) -> None:
    column = make_column()
    column.replace(0, 0, notes(*heights))
    assert column.height == len(heights)  # as estimated
    y = 0
    while y < column.height:
        while column.draw_lines(y, y + view):
            pass
        y += view
    assert column.height == sum(heights)
    assert [column.strip(*column.at(line)).text for line in range(column.height)] == whole(column)
    assert [column.top(block) for block in column.blocks] == [sum(heights[:place]) for place in range(len(heights))]


def test_only_pieces_of_the_lines_that_are_asked_for_are_drawn() -> None:
    column = make_column()
    column.replace(0, 0, notes(3, 3, 3, 3))
    assert column.draw_lines(1, 2)
    assert [block.strips is not None for block in column.blocks] == [False, True, False, False]
    assert not column.draw_lines(1, 4)  # what moved down behind it is not asked for


def test_replacing_pieces_moves_only_what_stands_below() -> None:
    column = make_column()
    column.replace(0, 0, notes(2, 3, 4))
    whole(column)
    column.measure()
    first, _, last = column.blocks
    new = notes(5, 6)
    assert column.replace(1, 1, new) == 2
    assert [column.top(block) for block in (first, *new, last)] == [0, 2, 3, 4]
    assert column.at(3) == (new[1], 0)
    assert column.at(99) == (last, 95)


def test_lines_of_pieces_drawn_long_ago_are_dropped_and_drawn_again() -> None:
    column = make_column()
    column.replace(0, 0, notes(*[2] * (KEPT + 5)))
    whole(column)
    column.measure()
    assert [place for place, block in enumerate(column.blocks) if block.strips is None] == [0, 1, 2, 3, 4]
    assert column.strip(*column.at(1)).text == "  x"
    assert column.blocks[0].strips is not None


def test_another_layout_draws_all_anew() -> None:
    column = make_column()
    column.replace(0, 0, notes(2, 2))
    whole(column)
    before = column.renderer
    column.forget()
    assert [block.strips for block in column.blocks] == [None, None]
    column.draw_lines(0, 1)
    assert column.renderer is not before


def test_of_a_long_code_block_the_colours_are_asked_for_elsewhere() -> None:
    late: list[RenderBlock] = []
    column = make_column(late)
    long = "\n".join(["```python", *["x = 1"] * 200, "```"])
    column.replace(0, 0, render_blocks(TranscriptItem(1, "assistant", "demo", f"{long}\n\n{mixed(50)}")))
    whole(column)
    assert [block.block and block.block.kind for block in late] == ["fence"]
