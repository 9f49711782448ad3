"""A byte-level BPE small enough to read, with DeepSeek's special tokens, pre-tokenizer kind and chat template.

Ids 0 to 255 are the bytes, in the order of their values; then come the merges, then BOS and EOS, then padding rows that
have no token, as in the real vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from dslite.runtime.text.tokenizer import Tokenizer

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"

# Every merge joins two tokens that exist by then. é and 你 need one and two merges of bytes; 好 stays three bytes.
_MERGES = [
    *("t h", "th e", "Ġ the", "i n", "e r", "Ġ a", "U s", "Us er", "A s", "s i", "As si", "s t", "Assi st"),
    *("a n", "an t", "Assist ant", "Ġ Ġ", "Ċ Ċ", "Ã ©", "ä ½", "ä½ ł"),
]
BOS_ID = 256 + len(_MERGES)
EOS_ID = BOS_ID + 1
N_TOKENS = EOS_ID + 1  # ids from here on have no token
VOCAB_SIZE = 288

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _byte_characters() -> list[str]:
    """How byte-level BPE writes the bytes 0 to 255 (GPT-2's encoder.py, bytes_to_unicode)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    characters, shifted = [], 0
    for byte in range(256):
        characters.append(chr(byte) if byte in plain else chr(256 + shifted))
        shifted += byte not in plain
    return characters


def write_tokenizer(folder: Path, *, chat_template: str = CHAT_TEMPLATE, added: Sequence[str] = ()) -> None:
    """tokenizer.json and tokenizer_config.json. `added` tokens with `special: false` take the ids behind EOS."""
    tokens = _byte_characters() + [merge.replace(" ", "") for merge in _MERGES]
    vocab = {token: place for place, token in enumerate(tokens)}
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in _MERGES)]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=True, special=True) for name in (BOS, EOS)])
    backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in added])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": {"__type": "AddedToken", "content": BOS},
        "eos_token": EOS,
        "add_bos_token": True,
        "chat_template": chat_template,
        "tokenizer_class": "LlamaTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_tokenizer(folder: Path) -> Tokenizer:
    """Write the tokenizer into a folder and open it."""
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)
