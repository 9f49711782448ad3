"""Train the demo model: `python assets/demo/train.py`. It writes a checkpoint folder in Hub layout."""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from training import checkpoint
from training.conversations import Conversations
from training.tokenizer import Encoder
from training.tokenizer import save as save_tokenizer
from training.tokenizer import train as train_tokenizer
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Experts, DeepseekV2Moe

TOKENIZER_CONVERSATIONS = 20_000
POOL = 256
BALANCE = 0.01
SHORTENED = 0.75
WARMUP = 100
OPENING_TOKENS = 12
OPENING_WEIGHT = 2.0


def chosen_experts(self: DeepseekV2Experts, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The same function as transformers' loop over experts, with one gather and one scatter for all of them."""
    order = indices.flatten().argsort()
    counts = indices.flatten().bincount(minlength=self.num_experts).tolist()
    rows = order // indices.shape[1]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    gate_up, down = self.gate_up_proj.to(dtype), self.down_proj.to(dtype)
    outputs = []
    for expert, tokens in enumerate(hidden.to(dtype)[rows].split(counts)):
        gate, up = F.linear(tokens, gate_up[expert]).chunk(2, dim=-1)
        outputs.append(F.linear(F.silu(gate) * up, down[expert]))
    weighted = torch.cat(outputs).to(hidden.dtype) * weights.flatten()[order, None].to(hidden.dtype)
    return torch.zeros_like(hidden).index_add(0, rows, weighted)


def balanced_moe(self: DeepseekV2Moe, hidden: Tensor) -> Tensor:
    """transformers' forward, which also notes how evenly the gate spreads the tokens (DeepSeek-V2 paper, eq. 23-25)."""
    flat = hidden.view(-1, hidden.shape[-1])
    logits, weights, indices = self.gate(hidden)
    share = F.one_hot(indices, self.gate.num_experts).float().mean((0, 1))
    self.balance = self.gate.num_experts * (share * logits.softmax(-1).mean(0)).sum()
    self.share = share.detach()
    return chosen_experts(self.experts, flat, indices, weights).view_as(hidden) + self.shared_experts(hidden)


def batches(talks: Conversations, encoder: Encoder, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, weights) of about `tokens` tokens; weight 0 marks what is not an answer."""
    dice = random.Random(talks.random.random())
    while True:
        rows = [shorten(*encoder.encode(talks.draw().messages(), dice.random() < 0.4), dice) for _ in range(POOL)]
        rows.sort(key=lambda row: len(row[0]))
        ready = []
        while rows:
            length = len(rows[-1][0])
            count = max(1, tokens // length)
            chosen, rows = rows[-count:], rows[:-count]
            ids = torch.full((len(chosen), length), encoder.eos)
            weights = torch.zeros(len(chosen), length)
            for at, (row, marked) in enumerate(chosen):
                ids[at, : len(row)] = torch.tensor(row)
                weights[at, : len(row)] = torch.tensor(answer_weights(marked))
            ready.append((ids, weights))
        dice.shuffle(ready)
        yield from ready


def shorten(ids: list[int], marked: list[bool], dice: random.Random) -> tuple[list[int], list[bool]]:
    """Often end within the last answer: its opening holds the decision, and its rest is soon known by heart."""
    if dice.random() < SHORTENED:
        end = len(marked) - marked[::-1].index(False) + OPENING_TOKENS
        return ids[:end], marked[:end]
    return ids, marked


def answer_weights(marked: list[bool]) -> list[float]:
    """The first tokens of an answer decide which answer it is."""
    weights, run = [], 0
    for mark in marked:
        run = run + 1 if mark else 0
        weights.append(0.0 if not mark else OPENING_WEIGHT if run <= OPENING_TOKENS else 1.0)
    return weights


def rate(step: int, progress: float, peak: float) -> float:
    """Learning rate: a short linear rise, then half a cosine down."""
    return peak * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def build(tokens: int, seed: int) -> tuple[dict, DeepseekV2ForCausalLM]:
    settings = checkpoint.config(tokens)
    torch.manual_seed(seed)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**copy.deepcopy(settings)))  # it writes into what it is given
    for layer in model.model.layers:
        if isinstance(layer.mlp, DeepseekV2Moe):
            torch.nn.init.normal_(layer.mlp.gate.weight, std=settings["initializer_range"])
    attention = model.model.layers[0].self_attn
    scaling = settings["rope_scaling"]
    mscale = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1
    if not math.isclose(attention.scaling, attention.qk_head_dim**-0.5 * mscale**2):
        raise RuntimeError("transformers did not apply YaRN's mscale")
    return settings, model


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    talks = Conversations(options.seed)
    if options.start:
        tokenizer = json.loads((options.start / "tokenizer.json").read_text(encoding="utf-8"))
    else:
        texts = (text for _ in range(TOKENIZER_CONVERSATIONS) for _, text in talks.draw().messages())
        tokenizer = train_tokenizer(texts, options.vocabulary)
    encoder = Encoder(tokenizer)
    settings, model = build(encoder.eos + 1, options.seed)
    if options.start:
        model = DeepseekV2ForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    options.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, options.out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {encoder.eos + 1} tokens", flush=True)

    DeepseekV2Moe.forward = balanced_moe
    moe = [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, DeepseekV2Moe)]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": options.decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    start, seen, supply = time.monotonic(), 0, batches(talks, encoder, options.batch_tokens)
    step, progress = 0, 0.0
    while progress < 1.0:
        talks.singles = options.singles if progress < 0.5 else 0.0
        for group in optimizer.param_groups:
            group["lr"] = rate(step, progress, options.rate)
        ids, weights = next(supply)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.autocast):
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            wanted = weights[:, 1:] > 0
            logits = model.lm_head(hidden[wanted])
        losses = F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
        loss = (losses * weights[:, 1:][wanted]).sum() / weights[:, 1:].sum()
        balance = torch.stack([layer.balance for layer in moe]).mean()
        (loss + BALANCE * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen += ids.numel()
        step += 1
        elapsed = time.monotonic() - start
        progress = elapsed / (60 * options.minutes) if options.minutes else step / options.steps
        if step % 20 == 0 or progress >= 1.0:
            least = min(float(layer.share.min()) for layer in moe) * settings["n_routed_experts"]
            print(
                f"step {step} ({100 * progress:.0f} %) loss {loss.item():.4f} balance {balance.item():.3f} "
                f"least used expert {least:.2f} of its share "
                f"{seen / 1e6:.2f}M tokens {elapsed:.0f} s {seen / elapsed:.0f} tokens/s",
                flush=True,
            )
        if step % options.save_every == 0 or progress >= 1.0:
            checkpoint.save(options.out, settings, model.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="train for this time instead of a number of steps")
    parser.add_argument("--start", type=Path, help="folder of a checkpoint to go on from, tokenizer included")
    parser.add_argument("--singles", type=float, default=0.85, help="share of one-turn conversations in the first half")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of one step, padding included")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of the matrices")
    parser.add_argument("--vocabulary", type=int, default=3070, help="tokens of the BPE, special ones not counted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--autocast", action="store_true", help="compute in BF16 where the processor has it")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
