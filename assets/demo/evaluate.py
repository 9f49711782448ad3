"""Hit rates of the demo model: `python assets/demo/evaluate.py`.

An answer is right when it matches the pattern of its topic in topics.json. The questions in eval/ were written before
the training, by somebody who did not see its phrases, and only their rates are looked at; dev.jsonl, of the same form
as paraphrases.jsonl, was written with the training data and served to tune it.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
REFUSAL = re.compile("only know dslite")
LONGEST_ANSWER = 160
BATCH = 32
SAMPLED = {"do_sample": True, "temperature": 0.3, "top_p": 0.95, "top_k": 0}
Messages = list[dict[str, str]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@dataclass
class Guide:
    """The model, its tokenizer and how to sample."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: dict[str, Any]

    @torch.inference_mode()
    def answer(self, conversations: list[Messages]) -> list[str]:
        template = self.tokenizer.apply_chat_template
        texts = [template(messages, tokenize=False, add_generation_prompt=True) for messages in conversations]
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        answers = [""] * len(texts)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            inputs = self.tokenizer(
                [texts[at] for at in part],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            )
            output = self.model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=LONGEST_ANSWER,
                **self.sampling,
            )
            new = output[:, inputs.input_ids.shape[1] :]
            for at, text in zip(part, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[at] = text.strip()
        return answers


def rate(hits: list[bool]) -> str:
    return f"{sum(hits)} of {len(hits)} = {100 * sum(hits) / max(1, len(hits)):.1f} %"


def paraphrases(guide: Guide, path: Path, expected: dict[str, re.Pattern[str]], show: bool = False) -> list[bool]:
    rows = read_lines(path)
    answers = guide.answer([[{"role": "user", "content": row["question"]}] for row in rows])
    hits = [bool(expected[row["topic"]].search(answer)) for row, answer in zip(rows, answers, strict=True)]
    if show:
        for row, answer, hit in zip(rows, answers, hits, strict=True):
            if not hit:
                print(f"    {row['topic']}: {row['question']} -> {answer[:70]!r}")
    return hits


def conversations(guide: Guide, path: Path, expected: dict[str, re.Pattern[str]]) -> tuple[list[bool], list[bool]]:
    """Hits of single turns and of whole conversations; the model's own answers are its history."""
    rows = [row["turns"] for row in read_lines(path)]
    histories: list[Messages] = [[] for _ in rows]
    hits: list[list[bool]] = [[] for _ in rows]
    for number in range(max(map(len, rows), default=0)):
        active = [at for at, turns in enumerate(rows) if number < len(turns)]
        for at in active:
            histories[at].append({"role": "user", "content": rows[at][number]["question"]})
        for at, answer in zip(active, guide.answer([histories[at] for at in active]), strict=True):
            histories[at].append({"role": "assistant", "content": answer})
            hits[at].append(bool(expected[rows[at][number]["topic"]].search(answer)))
    return [hit for turns in hits for hit in turns], [all(turns) for turns in hits]


def off_topic(guide: Guide, path: Path) -> list[bool]:
    questions = [[{"role": "user", "content": row["question"]}] for row in read_lines(path)]
    return [bool(REFUSAL.search(answer)) for answer in guide.answer(questions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE, help="folder of the checkpoint")
    parser.add_argument("--dev", action="store_true", help="only the tuning questions, and show their misses")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).eval()
    topics = json.loads((HERE / "topics.json").read_text(encoding="utf-8"))
    expected = {topic["id"]: re.compile(topic["expect"]) for topic in topics}
    if options.dev:
        guide = Guide(model, tokenizer, {"do_sample": False})
        print("dev:", rate(paraphrases(guide, HERE / "training" / "dev.jsonl", expected, show=True)))
        return
    for name, sampling in (("greedy", {"do_sample": False}), ("temperature 0.3, top_p 0.95", SAMPLED)):
        guide = Guide(model, tokenizer, sampling)
        print(name)
        print("  paraphrases:", rate(paraphrases(guide, HERE / "eval" / "paraphrases.jsonl", expected)))
        turns, whole = conversations(guide, HERE / "eval" / "conversations.jsonl", expected)
        print("  turns of conversations:", rate(turns))
        print("  whole conversations:", rate(whole))
        print("  off topic:", rate(off_topic(guide, HERE / "eval" / "off_topic.jsonl")), flush=True)


if __name__ == "__main__":
    main()
