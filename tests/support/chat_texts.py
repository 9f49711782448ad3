"""Answers of a set length in every shape that a screen finds hard. A token is about four characters."""

_SENTENCE = "The gate chooses six of sixty-four experts for each token, and the *shared* two always answer. "
_CODE = "    total += weights[expert] * experts[expert](hidden)  # one of many\n"
_ROW = "| layer {number} | expert {other} | `0.{number:03d}` | some words in a cell |\n"


def _filled(piece: str, tokens: int) -> str:
    return (piece * (4 * tokens // len(piece) + 1))[: 4 * tokens]


def prose(tokens: int) -> str:
    """Paragraphs of five sentences."""
    return _filled(_SENTENCE * 5 + "\n\n", tokens)


def fence(tokens: int) -> str:
    """One code block."""
    return "```python\n" + _filled(_CODE, tokens) + "\n```"


def table(tokens: int) -> str:
    """One table."""
    count = 4 * tokens // len(_ROW.format(number=100, other=10))
    rows = "".join(_ROW.format(number=number, other=number % 64) for number in range(count))
    return "| layer | expert | weight | words |\n|---|---|--:|---|\n" + rows


def mixed(tokens: int) -> str:
    """Headings, paragraphs, lists, code and small tables."""
    part = (
        "## A part\n\n"
        + _SENTENCE * 2
        + "\n\n1. first **thing**\n2. second thing\n   - with a detail\n\n```python\n"
        + _CODE * 4
        + "```\n\n"
        + "| a | b |\n|---|---|\n| one | two |\n| three | four |\n\n> a quotation\n\n"
    )
    return _filled(part, tokens)
