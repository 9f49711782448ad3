"""Code blocks as `/copy N` and `complete -x` take them from an answer."""

import pytest

from dslite.app.chat.markdown_blocks import CodeBlock, code_blocks


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("1. Run:\n\n   ```bash\n   ls -l\n   ```\n", CodeBlock("bash", "ls -l\n", True)),
        ("- a\n  - b:\n    ```\n    x\n      y\n    ```\n", CodeBlock("", "x\n  y\n", True)),
        ("> As said:\n>\n> ```sh\n> ls\n>   -l\n> ```\n", CodeBlock("sh", "ls\n  -l\n", True)),
        ("> 1. a\n>    ~~~ {.py}\n>    x\n>    ~~~\n", CodeBlock("py", "x\n", True)),
        ("Run:\r\n```bash\r\nls\r\n\r\npwd\r\n```\r\nDone.\r\n", CodeBlock("bash", "ls\n\npwd\n", True)),
        ("Run:\r```bash\rls\r```\r", CodeBlock("bash", "ls\n", True)),
        ("```\na\n`````\nprose", CodeBlock("", "a\n", True)),
        ("````md\n```\nx\n```\n````\n", CodeBlock("md", "```\nx\n```\n", True)),
        ("~~~\n```\n~~~", CodeBlock("", "```\n", True)),
        ("```\na\n```b\n```\n", CodeBlock("", "a\n```b\n", True)),
        ("```c++ title=x\n```", CodeBlock("c++", "", True)),
        ("> ```\n> a\n\nprose goes on", CodeBlock("", "a\n", True)),
        ("\\[\n```\n\\]\n\n```\nx\n```\n", CodeBlock("", "x\n", True)),
    ],
)
def test_a_fenced_block_is_its_code_alone(text: str, block: CodeBlock) -> None:
    assert code_blocks(text) == [block]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nprint(1)\nprint(", "print(1)\nprint(\n"),
        ("```python\nprint(1)\n", "print(1)\n"),
        ("```python\nprint(1)\n``", "print(1)\n``\n"),
        ("```python", ""),
        ("```\n\n", "\n"),
        ("1. x\n\n   ```sh\n   ls", "ls\n"),
        ("> ```sh\n> ls\n", "ls\n"),
        ("a\x0cb\n\n```sh\nls\n", "ls\n"),
        ("````\na\n```\n", "a\n```\n"),
    ],
)
def test_a_block_that_the_end_of_the_text_cuts_is_not_closed(text: str, code: str) -> None:
    [block] = code_blocks(text)
    assert (block.text, block.closed) == (code, False)


@pytest.mark.parametrize("text", ["", "prose", "`code`", "``` not a fence ```", "    indented"])
def test_text_without_fences_has_no_blocks(text: str) -> None:
    assert code_blocks(text) == []


def test_blocks_come_in_the_order_of_the_text() -> None:
    text = "```\n1\n```\n- a\n  ```\n  2\n  ```\n> ```\n> 3\n> ```\n"
    assert [block.text for block in code_blocks(text)] == ["1\n", "2\n", "3\n"]
