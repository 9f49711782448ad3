"""Text to token ids and back, with the checkpoint's own byte-level BPE.

The spelling of an added token in a text is encoded as plain characters, whether the tokenizer calls that token special
or not: what a user writes must not end a turn or open a fill-in-the-middle. Added tokens come from the chat template
(chat_template.py), or from a raw prompt where `parse_special` is asked for.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from dslite.runtime.downloads.layout import read_json
from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.text.token_bounds import TokenBounds

_PIECE_CHARACTERS = 2**16  # encoded at once: 13 MB of the library's memory
_CUT_CHARACTERS = 512  # at the end of a piece, in which a place to cut is sought


def _kind(character: str) -> str:
    """Letter, digit, space or other: what the patterns of pre-tokenizers tell apart."""
    return next((kind for kind in ("isspace", "isdigit", "isalpha") if getattr(character, kind)()), "")


def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level BPE writes bytes: printable ones as they are, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Tokenizer:
    """The tokenizer of a model folder."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        self.added = {token.content: id for id, token in added.items()}
        self._literal = {id: token.content for id, token in added.items() if not token.special}
        # The library always matches added tokens that are not special: declared special as well, none match.
        backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in self._literal.values()])
        backend.encode_special_tokens = True
        names = sorted(self.added, key=len, reverse=True)
        self._added_names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._alphabet = _byte_alphabet()
        self.piece_characters = _PIECE_CHARACTERS
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.chat_template: object = config.get("chat_template")  # text, where it is sound
        self.bos_token = _content(config.get("bos_token"))
        self.eos_token = _content(config.get("eos_token"))

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and tokenizer_config.json. Raises CheckpointError."""
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} has no {name}", "download the model again")
        config = read_json(folder / "tokenizer_config.json")
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'} is not a JSON object", "download the model again"
            )
        template = folder / "chat_template.jinja"  # where newer checkpoints keep it
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more precise
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} cannot be read: {error}", "download the model again"
            ) from None
        if type(backend.decoder).__name__ != "ByteLevel":
            raise CheckpointError(f"{folder / 'tokenizer.json'} is not byte-level BPE", "use a DeepSeek-V2 model")
        return cls(backend, config)

    @cached_property
    def bounds(self) -> TokenBounds:
        """Lower bounds on the tokens of a text; reading the vocabulary takes 0.15 s for 100,000 tokens."""
        names = (name.encode("utf-8") for name in self.added)
        return TokenBounds([*map(self.token_bytes, range(self.vocab_size)), *names])

    def library_json(self) -> str:
        """The tokenizer as tokenizer.json holds it, for libraries that read it themselves."""
        return self._backend.to_str()

    def encode(self, text: str, *, parse_special: bool = False, enough: int | None = None) -> list[int]:
        """Token ids of a text; nothing is added to it. Raises UsageError for a lone surrogate.

        Spellings of added tokens are plain characters, unless `parse_special`: then each becomes its id, such as
        <｜fim▁hole｜> of the coder models. The memory needed beside the ids does not grow with the text. A text of more
        than `enough` tokens may be cut behind them, so that one that is too long is not encoded to its end.
        """
        if parse_special:
            return self._encode_special(text, enough)
        ids: list[int] = []
        start = 0
        while start < len(text) and (enough is None or len(ids) <= enough):
            end = self._piece_end(text, start)
            piece = text[start:end]
            try:
                piece.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"the text has a lone surrogate (U+{ord(piece[error.start]):04X}) at character "
                    f"{start + error.start}, which no encoding can carry",
                    "give the text as valid UTF-8",
                ) from None
            ids += self._backend.encode(piece, add_special_tokens=False).ids
            start = end
        return ids

    def _encode_special(self, text: str, enough: int | None) -> list[int]:
        ids: list[int] = []
        for plain, added in self.split_added(text):
            ids += self.encode(plain, enough=None if enough is None else enough - len(ids))
            ids += [] if added is None else [added]
            if enough is not None and len(ids) > enough:
                break
        return ids

    def split_added(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Stretches of plain text, each with the id of the added token whose spelling follows; None at the end."""
        place = 0
        for found in self._added_names.finditer(text):
            yield text[place : found.start()], self.added[found.group()]
            place = found.end()
        yield text[place:], None

    def _piece_end(self, text: str, start: int) -> int:
        """Where a piece that begins at `start` may end so that its tokens are those that it has in the whole text.

        The library needs 200 bytes of memory for each byte of a text that it encodes at once. Merges never cross what
        the pre-tokenizer splits, so a cut is sought where it splits, between characters of different kinds (inside of a
        run of digits its groups depend on where the run begins), and where both sides alone are split in the same way.
        """
        end = start + self.piece_characters
        while end < len(text):
            window = text[max(start, end - _CUT_CHARACTERS) : end]
            parts = self._splits(window)
            for cut in reversed(parts[len(parts) // 2 : -1]):
                kinds = _kind(window[cut - 1]), _kind(window[cut])
                if kinds[0] != kinds[1] and self._splits(window[:cut]) == [part for part in parts if part <= cut]:
                    return end - len(window) + cut
            end += _CUT_CHARACTERS
        return len(text)

    def _splits(self, text: str) -> list[int]:
        """The ends of what the pre-tokenizer makes of a text."""
        return [end for _, (_, end) in self._backend.pre_tokenizer.pre_tokenize_str(text)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for: none for special tokens and for ids without a token."""
        if token_id in self._literal:
            return self._literal[token_id].encode("utf-8")
        token = self._backend.id_to_token(token_id)
        if token is None or token in self.special_tokens:
            return b""
        return bytes(self._alphabet[character] for character in token)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """A token alone, for lists of candidates: part of a character shows as U+FFFD, special tokens by their name."""
        for name, special_id in self.special_tokens.items():
            if special_id == token_id:
                return name
        return self.decode([token_id])


def _content(token: object) -> str:
    """A special token of tokenizer_config.json: a string, or an object that holds one."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


class StreamDecoder:
    """Turns tokens into text as they come; a character that is not whole yet waits for its other bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became whole with this token."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)


class StopTexts:
    """Finds stop texts in a stream, even where they span tokens; what may be the beginning of one waits."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop text was found: it and what follows are gone."""
        self._held += text
        places = [place for stop in self._texts if (place := self._held.find(stop)) >= 0]
        if places:
            shown, self._held = self._held[: min(places)], ""
            return shown, True
        keep = max((_overlap(self._held, stop) for stop in self._texts), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def flush(self) -> str:
        """What waited for a stop text that never came."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
