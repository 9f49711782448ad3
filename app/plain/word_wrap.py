"""Writes text as it is generated, so that the terminal breaks no word at its margin."""

import shutil
import sys

from dslite.app.terminal.tables import cell_width

_FENCE = ("```", "~~~")


class WordWrap:
    """Writes to standard output. On a terminal a word appears once it is complete, on the next line if it does not fit.

    Code blocks and tables are not wrapped: a line end would change their meaning.
    """

    def __init__(self, *, wraps: bool | None = None, width: int | None = None) -> None:
        """`width` None: that of the terminal at each line."""
        self._wraps = sys.stdout.isatty() if wraps is None else wraps
        self._fixed_width = width
        self._line = ""  # the source line so far
        self._word = ""
        self._spaces = ""  # in front of the word
        self._column = 0
        self._in_fence = False

    @property
    def at_line_start(self) -> bool:
        return not self._line

    def write(self, text: str) -> None:
        """Write the next text of the answer."""
        out: list[str] = []
        for char in text:
            self._take(char, out)
        sys.stdout.write("".join(out))
        sys.stdout.flush()

    def end_line(self) -> None:
        """Write the pending word, and a line end where the line has text."""
        if self._line:
            self.write("\n")

    def _take(self, char: str, out: list[str]) -> None:
        if char == "\n":
            self._flush(out)
            out.append(self._spaces + "\n")
            if self._line.lstrip().startswith(_FENCE):
                self._in_fence = not self._in_fence
            self._line = self._spaces = ""
            self._column = 0
            return
        self._line += char
        if not self._wraps or self._in_fence or self._line.lstrip().startswith((*_FENCE, "|")):
            self._flush(out)
            out.append(self._spaces + char)
            self._spaces = ""
        elif char == " ":
            self._flush(out)
            self._spaces += char
        else:
            self._word += char
            if cell_width(char) > 1:  # Chinese and Japanese break anywhere
                self._flush(out)

    def _flush(self, out: list[str]) -> None:
        if not self._word:
            return
        width = self._fixed_width or shutil.get_terminal_size().columns
        needed = cell_width(self._spaces + self._word)
        if self._column and self._column + needed > width:
            out.append("\n" + self._word)
            self._column = cell_width(self._word)
        else:
            out.append(self._spaces + self._word)
            self._column += needed
        self._word = self._spaces = ""
