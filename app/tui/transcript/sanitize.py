"""Text that a terminal cannot obey: what models and files say is shown, never executed."""

from dslite.app.terminal.console import visible

_SEPARATORS = {0x2028: "\n", 0x2029: "\n"}  # of lines and paragraphs
TAB = "    "


def inert(text: str) -> str:
    """Printable text: control characters show as symbols (ESC as ␛), line ends are one kind, tabs are spaces."""
    if text.isprintable():  # most text; the replacements below take longer
        return text
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return visible(text).translate(_SEPARATORS).replace("\t", TAB)


def one_line(text: str, most: int = 200) -> str:
    """The beginning of a text as one inert line."""
    return " ".join(inert(text[: most * 4]).split())[:most]
