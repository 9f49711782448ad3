"""transformers' DeepseekV2ForCausalLM as the judge of our numbers. The only module that imports it: it is slow to."""

# T tokens  D hidden  V vocabulary

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Oracle:
    """The same folder, computed by transformers in float32, eagerly and in one batch of one."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = _model_class().from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )
        self.model.eval()

    def save(self, folder: Path) -> Path:
        """Write the model as transformers does today; the folder."""
        self.model.save_pretrained(folder)
        return folder

    @property
    def softmax_scales(self) -> list[float]:
        """What each layer's attention scores are multiplied by."""
        return [layer.self_attn.scaling for layer in self.model.model.layers]

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Scores (T, V) of the token behind each of T tokens."""
        logits: Tensor = self.model(torch.tensor([token_ids]), use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def hidden_and_logits(self, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the last layer gives, before the last norm (T, D), and the logits (T, V)."""
        seen: list[Tensor] = []
        handle = self.model.model.layers[-1].register_forward_hook(lambda _module, _given, out: seen.append(out))
        logits = self.logits(token_ids)
        handle.remove()
        hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        return hidden.reshape(len(token_ids), -1), logits

    def logprobs(self, token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities (T, V) of the token behind each of T tokens."""
        return self.logits(token_ids).log_softmax(-1)

    @torch.inference_mode()
    def routing_gap(self, token_ids: Sequence[int]) -> float:
        """The nearest tie of the gates: least score of an expert that was chosen over one that was not; inf if none."""
        gaps: list[float] = []

        def watch(router: Any, _: object, out: tuple[Tensor, Tensor, Tensor]) -> None:
            scores = out[0].softmax(-1)  # (T, experts)
            if router.topk_method == "group_limited_greedy":
                groups = scores.unflatten(-1, (router.num_group, -1)).amax(-1).sort(descending=True).values
                gaps.append(float((groups[:, router.topk_group - 1] - groups[:, router.topk_group]).min()))
            chosen = scores.gather(1, out[2])
            left_out = scores.scatter(1, out[2], 0).amax(-1)
            if router.topk_method == "greedy":
                gaps.append(float((chosen.amin(-1) - left_out).min()))

        gates = [layer.mlp.gate for layer in self.model.model.layers if hasattr(layer.mlp, "gate")]
        handles = [gate.register_forward_hook(watch) for gate in gates]
        self.logits(token_ids)
        for handle in handles:
            handle.remove()
        return min(gaps, default=math.inf)

    @torch.inference_mode()
    def greedy(self, token_ids: Sequence[int], count: int, *, n_tokens: int | None = None) -> list[int]:
        """The `count` most probable tokens behind a prompt, one after the other, with transformers' own cache.

        Only the first `n_tokens` rows of the vocabulary are looked at.
        """
        cache, given, answer = None, list(token_ids), []
        for _ in range(count):
            out = self.model(torch.tensor([given]), past_key_values=cache, use_cache=True)
            cache, given = out.past_key_values, [int(out.logits[0, -1, :n_tokens].argmax())]
            answer += given
        return answer


@functools.cache
def _model_class() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers' own imports
        from transformers import DeepseekV2ForCausalLM
        from transformers.utils import logging

        speech: Any = logging
        speech.set_verbosity_error()
        speech.disable_progress_bar()
    return DeepseekV2ForCausalLM
