"""How many tokens a text has at least, without encoding it.

Encoding takes about 1 µs a character, so a text that cannot fit the context should be refused before it is encoded.
The bounds come from the vocabulary: no token holds more than so many bytes of one class of characters, and none spans
more than so many words. They hold for tokenizers that do not normalise text, which DeepSeek's do not.
"""

import string
from collections.abc import Collection

_SPACE = b" \t\n\r\v\f"
_CLASSES = (
    string.ascii_letters.encode(),
    string.digits.encode(),
    _SPACE,
    bytes(range(0x80, 0x100)),  # of characters that are not ASCII
    bytes(byte for byte in range(0x80) if not chr(byte).isalnum() and byte not in _SPACE),
)
_PIECE_BYTES = 2**18  # split into words at once: other threads run between two pieces


class TokenBounds:
    """Lower bounds for one vocabulary, given as the bytes of all its tokens."""

    def __init__(self, tokens: Collection[bytes]) -> None:
        self.longest = max(1, *map(len, tokens))
        self._most = [max(1, *(_count(token, some) for token in tokens)) for some in _CLASSES]
        self._words = max(1, *(len(token.split()) for token in tokens))

    def least(self, text: str) -> int:
        """A number of tokens that the encoded text has at least (about 10 ms a megabyte)."""
        data = text.encode("utf-8", "surrogatepass")
        by_class = (_count(data, some) / most for some, most in zip(_CLASSES, self._most, strict=True))
        return -int(-max(len(data) / self.longest, _words(data) / self._words, *by_class) // 1)


def _count(data: bytes, some: bytes) -> int:
    """How many bytes of `data` are among `some`."""
    return len(data) - len(data.translate(None, some))


def _words(data: bytes) -> int:
    """How many words a text has, but for those that lie across two pieces."""
    starts = range(0, len(data), _PIECE_BYTES)
    return sum(len(data[start : start + _PIECE_BYTES].split()) for start in starts) - max(len(starts) - 1, 0)
