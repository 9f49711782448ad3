"""What Markdown looks like: mathematics, tables, HTML, task lists, diffs, quotations, and untrusted text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style

from dslite.app.chat.markdown_blocks import Splitter, code_blocks
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import BlockRenderer, TranscriptItem, render_blocks

PALETTE = Palette.of_theme({"error": "#ff0000", "code-string": "#00ff00"}, Style())


def lines(text: str, width: int = 80, *, growing: bool = False) -> list[str]:
    """An answer as the screen shows it, without its head and the empty lines at its ends."""
    return [line for line, _ in styled_lines(text, width, growing=growing)]


def styled_lines(text: str, width: int = 80, *, growing: bool = False) -> list[tuple[str, list[tuple[str, Style]]]]:
    item = TranscriptItem(1, "assistant", "demo", text, growing=growing)
    renderer = BlockRenderer(width, PALETTE)
    strips = [strip for block in render_blocks(item)[1:] for strip in renderer.draw(block)]
    return [(s.text[2:].rstrip(), [(part.text, part.style or Style()) for part in s]) for s in strips]


@pytest.mark.parametrize(
    "text",
    [
        r"\(x_{i}\) and \(x_{j}*y*z\)",
        r"\[ a_{1} \, b \\ c_{2} * d * e \]",
        "\\[\n  x_{1} = 1 \\\\\n\n- y *z*\n= 0\n\\]",
        r"$$\sum_{i=1}^{n} x_i * y_i * z_i$$",
        "$$\n# no head\n> a_b_ c_d_\n$$",
        r"so $x_i * y * z_j$ holds",
        r"**bold** is not \(**this**\)".replace("**bold**", "bold"),
        "\\begin{align}\na &= b_{1} \\\\\n  &= *c*\n\\end{align}",
        r"$a_{\text{one}} \_ \{b\}$",
        r"open \(x_{1} * y * z",
        r"\[ open_{1} * y * z \\ \,",
        r"a set \(\{x \mid x_1 \_ y\}\), then",
        r"\(\alpha\), \(\beta\)",
    ],
)
def test_mathematics_is_shown_as_written(text: str) -> None:
    assert [line for line in lines(text) if line] == [line.rstrip() for line in text.split("\n") if line]
    assert not any(style.italic or style.bold for _, parts in styled_lines(text) for _, style in parts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("it costs $5 and $6, *really*", "it costs $5 and $6, really"),
        ("between $5-$6 *or* $7", "between $5-$6 or $7"),
        ("US$5 *and* CA$6", "US$5 and CA$6"),
        ("set $HOME and *not* $PATH", "set $HOME and not $PATH"),
        ("`$x$` *and* `\\(y\\)`", "$x$ and \\(y\\)"),
        (r"\$5 *and* \$6", "$5 and $6"),
        ("$ 5 *and* 6 $", "$ 5 and 6 $"),
        ("a $$$ *place*", "a $$$ place"),
        (r"\*not emphasis\*", "*not emphasis*"),
    ],
)
def test_dollars_of_prose_are_not_mathematics(text: str, shown: str) -> None:
    assert lines(text) == [shown]


@pytest.mark.parametrize("opening", ["\\[ ", "\\(", "\\[\n", "$$\n", "So:\n\n\\[ ", "- item \\(", "\\begin{align}\n"])
def test_open_mathematics_of_a_growing_answer_never_turns_into_markdown(opening: str) -> None:
    closing = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "\\be": "\\end{align}"}
    end = next(mark for begin, mark in closing.items() if begin in opening)
    text = f"{opening}x_{{1}} * y * z \\\\ _a_ \\, b"
    for size in range(len(opening), len(text) + 1):
        assert not any(style.italic for _, parts in styled_lines(text[:size], growing=True) for _, style in parts)
    shown = [line for line in lines(text, growing=True) if line]
    splitter = Splitter()
    for character in f"{text}{end}":
        splitter.feed(character)
    assert splitter.blocks == Splitter(f"{text}{end}").blocks
    assert "".join(lines(f"{text}{end}")).startswith("".join(shown))


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("|a|bb|c|\n|:-:|--:|---|\n|xxxxx|1|y|", 40, ["  a    bb  c", "─────  ──  ─", "xxxxx   1  y"]),
        (
            "|k|text|\n|-|-|\n|identifier|several words that wrap into lines|",
            30,
            [
                "k           text",
                "──────────  ──────────────────",
                "identifier  several words that",
                "            wrap into lines",
            ],
        ),
        ("|a|\n|-|\n|x \\| y `p\\|q`|", 40, ["a", "─────────", "x | y p|q"]),
    ],
)
def test_tables_align_and_break_words_last(text: str, width: int, shown: list[str]) -> None:
    assert lines(text, width + 2)[: len(shown)] == shown


def test_html_blocks_keep_their_lines() -> None:
    first, second = "<div>\n  <p>one</p>\n</div>", "<details>\n<summary>x</summary>"
    shown = [*first.split("\n"), "", *second.split("\n"), "", "in", "", "</details>"]
    assert lines(f"{first}\n\n{second}\n\n*in*\n\n</details>") == shown


def test_task_lists_have_boxes() -> None:
    assert lines("- [ ] to do\n- [x] done\n  - [X] inner\n1. [ ] first\n- [x](url)\n- [ ]") == [
        "☐ to do", "☑ done", "  ☑ inner", "1. ☐ first", "• x (url)", "• [ ]",
    ]  # fmt: skip


@pytest.mark.parametrize("language", ["diff", "patch"])
@pytest.mark.parametrize("ending", ["```", ""])
def test_a_diff_has_colours_for_what_comes_and_goes(language: str, ending: str) -> None:
    drawn = styled_lines(f"```{language}\n-old\n+new\n same\n{ending}", growing=not ending)
    colours = {part.strip(): style.color for _, parts in drawn for part, style in parts if style.color}
    assert colours["-old"] == PALETTE.error.color
    assert colours["+new"] == PALETTE.string.color
    assert "same" not in colours


def test_quotations_lists_and_code_nest() -> None:
    assert lines("> one\n>\n> - two\n>\n>   ```sh\n>   ls\n>   ```\n>\n> 3. x", 50) == [
        "▌ one",
        "▌",
        "▌ • two",
        "▌",
        "▌   ┃ sh                           copy: /copy 1",
        "▌   ┃ ls",
        "▌",
        "▌ 3. x",
    ]


def test_the_numbers_on_screen_are_those_of_copy() -> None:
    text = "```\n1\n```\n> ```\n> 2\n> ```\n\n- ```\n  3\n  ```\n"
    heads = [line for line in lines(text, 60) if "/copy" in line]
    assert [line[-1] for line in heads] == ["1", "2", "3"]
    assert [block.text for block in code_blocks(text)] == ["1\n", "2\n", "3\n"]


@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "- {}",
        "> {}",
        "`{}`",
        "```\n{}\n```",
        "|a|\n|-|\n|{}|",
        "# {}",
        "[{}](u)",
        "$${}$$",
        "```{}\n```",
        "![{}](x)",
    ],
)
def test_nothing_that_a_model_writes_reaches_the_terminal_as_a_control(frame: str) -> None:
    hostile = "a\x1b[31mb\x9bc\u202ed\u2066e\x07f\x00g\x7fh\x85i"
    for line in lines(frame.format(hostile), 200):
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in line)
        assert not any("\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069" for character in line)


def test_quotations_deeper_than_the_screen_is_wide_lose_no_text() -> None:
    for depth in (5, 30, 70, 200):
        drawn = lines(f"{'> ' * depth}deep words", 40)
        assert "deep" in " ".join(drawn)
        assert all(cell_len(line) <= 38 for line in drawn)


@given(st.text(st.sampled_from("ab *_`\\()[]$|<>-#\n\t&;1.~"), max_size=80), st.integers(12, 60))
def test_any_text_is_drawn_within_its_width_and_each_character_knows_its_place(text: str, width: int) -> None:
    item = TranscriptItem(1, "assistant", "demo", text)
    renderer = BlockRenderer(width, PALETTE)
    for block in render_blocks(item)[1:]:
        strips, offsets = renderer.draw(block), renderer.source_offsets(block)
        assert len(strips) == len(offsets)
        assert all(strip.cell_length <= width for strip in strips)
        assert all(-1 <= place < len(text) for line in offsets for place in line)
