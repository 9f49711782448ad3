"""A byte-level BPE of its own in the form of DeepSeek's tokenizer.json: same sections, same special tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
DROPOUT = 0.1


def train(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """tokenizer.json as a dictionary; the special tokens follow the vocabulary, as in the original."""
    sections = json.loads((HERE / "tokenizer_sections.json").read_text(encoding="utf-8"))
    skeleton: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **sections}
    skeleton["model"] = json.loads(Tokenizer(models.BPE()).to_str())["model"]
    tokenizer = Tokenizer.from_str(json.dumps(skeleton))
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=3,
            special_tokens=[],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    trained = json.loads(tokenizer.to_str())["model"]
    first_special = len(trained["vocab"])
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    added = [{"id": first_special + at, "content": text, **special} for at, text in enumerate((BOS, EOS))]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "vocab": trained["vocab"],
        "merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in trained["merges"]],
    }
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **sections, "model": model}


def save(data: dict[str, Any], folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.copyfile(HERE / "tokenizer_config.json", folder / "tokenizer_config.json")


class Encoder:
    """Turns conversations into token ids, with the answers marked.

    A user's words are sometimes cut at other places than usual (BPE dropout), so that a word never seen still falls
    into pieces that the model knows.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.plain = Tokenizer.from_str(json.dumps(data))
        loose = {**data, "model": {**data["model"], "dropout": DROPOUT}}
        self.loose = Tokenizer.from_str(json.dumps(loose))
        self.bos = self.plain.token_to_id(BOS)
        self.eos = self.plain.token_to_id(EOS)
        self.newlines = self.ids("\n\n")
        self.opening = self.ids("Assistant:")

    def ids(self, text: str, loose: bool = False) -> list[int]:
        tokenizer = self.loose if loose else self.plain
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, messages: Iterable[tuple[str, str]], loose: bool) -> tuple[list[int], list[bool]]:
        """Ids in the form of the chat template, and which of them the model has to predict."""
        ids, marked = [self.bos], [False]
        for role, text in messages:
            if role == "assistant":
                answer = [*self.ids(" " + text), self.eos]
                ids += self.opening + answer
                marked += [False] * len(self.opening) + [True] * len(answer)
            else:
                label = "User: " if role == "user" else ""
                part = self.ids(label + text, loose) + self.newlines
                ids += part
                marked += [False] * len(part)
        return ids, marked
