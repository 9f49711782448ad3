"""Text ↔ token ids, with the checkpoint's own byte-level BPE.

Text is always inert: a special token's spelling in it is encoded as plain characters. Special tokens come from the
chat template alone (chat_template.py).
"""

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from dslite.runtime.downloads.layout import read_json
from dslite.runtime.errors import CheckpointError, UsageError


def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level BPE writes bytes: printable ones as they are, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Tokenizer:
    """The tokenizer of a model folder."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True  # text stays text
        self._alphabet = _byte_alphabet()
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: id for id, token in added.items() if token.special}
        self._literal = {id: token.content for id, token in added.items() if not token.special}
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

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added and nothing in it is special. Raises UsageError."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}, "
                "which no encoding can carry",
                "give the text as valid UTF-8",
            ) from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

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
