"""What cannot fit into the context is refused before it is tokenized whole.

Tokenizing 9 MB of prose takes 12 s and 1.8 GB. A text has at least as many tokens as its bytes divided by those of the
longest token, so a text that is far too long is refused by its size alone, while it is still being read and before a
model is loaded. Nearer to the context it is tokenized up to where the context is full. Free of torch and tokenizers.
"""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dslite.runtime.errors import ContextFullError

if TYPE_CHECKING:
    from dslite.runtime.text.tokenizer import Tokenizer

_USUAL_BYTES = 8  # bytes a token; prose has 3 to 5. A text below this density is tokenized once, by its request.
_REMEDY = "shorten the prompt, or raise --ctx-size"


class PromptLimit:
    """The most that a context of tokens can take."""

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

    def check_bytes(self, size: int) -> None:
        """Raise ContextFullError for a text of so many bytes that it cannot fit."""
        if size > self.context and size > self.most_bytes():
            least = -(-size // self.longest_token)
            raise ContextFullError(
                f"the prompt has at least {least:,} tokens ({size:,} bytes were read), and the context holds "
                f"{self.context:,}, the answer included",
                _REMEDY,
            )

    def check(self, text: str, tokenizer: "Tokenizer") -> None:
        """Raise ContextFullError for a text that cannot fit, after work that the context bounds, not the text."""
        if len(text) <= self.context:
            return
        size = len(text.encode("utf-8", "surrogatepass"))
        self.check_bytes(size)
        if size > _USUAL_BYTES * self.context and len(tokenizer.encode(text, enough=self.context)) > self.context:
            raise ContextFullError(
                f"the prompt has {size:,} bytes, more than {self.context:,} tokens, and the context holds "
                f"{self.context:,}, the answer included",
                _REMEDY,
            )


def longest_token_of(folder: Path) -> int:
    """Bytes of the longest token, added ones included, from a model folder's tokenizer.json.

    Byte-level BPE writes each byte as one character. Raises OSError, ValueError, KeyError, TypeError.
    """
    raw = json.loads((folder / "tokenizer.json").read_bytes())
    vocabulary = max(map(len, raw["model"]["vocab"]))
    added = (len(token["content"].encode()) for token in raw.get("added_tokens", []))
    return max(vocabulary, *added, 1)
