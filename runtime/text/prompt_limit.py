"""What cannot fit into the context is refused before it is tokenized whole.

Tokenizing 9 MB of prose takes 12 s and 1.8 GB. A text has at least as many tokens as its bytes divided by those of the
longest token, so a text that is far too long is refused by its size alone, while it is still being read and before a
model is loaded. With the vocabulary known the bounds are closer (token_bounds.py). Nearer to the context a text is
tokenized up to where the context is full. Free of torch and tokenizers.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dslite.runtime.errors import ContextFullError

if TYPE_CHECKING:
    from dslite.runtime.text.tokenizer import Tokenizer

_USUAL_BYTES = 8  # bytes a token; prose has 3 to 5. Texts below this density are tokenized once, by their request.


class ByteLimit:
    """The most bytes that a context of tokens can take, where no more than the longest token is known."""

    def __init__(self, context: int, longest_token: Callable[[], int]) -> None:
        """`longest_token` gives the bytes of the vocabulary's longest token; it is asked for long texts only."""
        self.context = context
        self._find_longest_token = longest_token

    @cached_property
    def longest_token(self) -> int:
        return max(1, self._find_longest_token())

    def most_bytes(self) -> int:
        """Bytes that no prompt of the context exceeds."""
        return self.context * self.longest_token

    def check(self, size: int) -> None:
        """Raise ContextFullError for a text of so many bytes that it cannot fit."""
        if size > self.context and size > self.most_bytes():
            raise _too_long(self.context, -(-size // self.longest_token), f" ({size:,} bytes were read)")


class PromptLimit:
    """The texts that a context of tokens can take, by a tokenizer."""

    def __init__(self, context: int, tokenizer: "Tokenizer") -> None:
        self.context = context
        self._tokenizer = tokenizer

    def check(self, texts: Sequence[str], *, parse_special: bool = False) -> None:
        """Raise ContextFullError for the texts of one prompt where they cannot fit."""
        if (least := self.least_tokens(texts, parse_special=parse_special)) > self.context:
            raise _too_long(self.context, least)

    def least_tokens(self, texts: Sequence[str], *, parse_special: bool = False) -> int:
        """A number of tokens that the texts of one prompt have at least; above the context, they cannot fit.

        The work is bounded by the context, but for 10 ms a megabyte.
        """
        if sum(map(len, texts)) <= self.context:
            return 0
        least = 0
        for text in texts:
            least += self._tokenizer.bounds.least(text)
            if least > self.context:
                return least
        if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) <= _USUAL_BYTES * self.context:
            return least
        count = 0
        for text in texts:
            count += len(self._tokenizer.encode(text, parse_special=parse_special, enough=self.context - count))
            if count > self.context:
                break
        return count


def _too_long(context: int, least: int, read: str = "") -> ContextFullError:
    return ContextFullError(
        f"the prompt has at least {least:,} tokens{read}, and the context holds {context:,}, the answer included",
        "shorten the prompt, or raise --ctx-size",
    )


def longest_token_of(folder: Path) -> int:
    """Bytes of the longest token, added ones included, from a model folder's tokenizer.json.

    Byte-level BPE writes each byte as one character. Raises OSError, ValueError, KeyError, TypeError.
    """
    raw = json.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = max(map(len, raw["model"]["vocab"]))
    added = (len(token["content"].encode()) for token in raw.get("added_tokens", []))
    return max(vocabulary, *added, 1)
