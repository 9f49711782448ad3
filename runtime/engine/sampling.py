"""Choosing the next token from its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import NumericsError

_COLDEST = 1e-6  # a temperature below it would divide logits to infinity; its draw is greedy already
_FEW = 512  # candidates that top-p looks at before it sorts the whole vocabulary


class Sampler:
    """Draws the tokens of one answer, reproducibly for a given seed."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], n_tokens: int) -> None:
        """`n_tokens` ids have a token; the padding rows of the vocabulary behind them are never drawn."""
        self._params = params
        self._n_tokens = n_tokens
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def sample(self, logits: Tensor) -> int:
        """Draw from float32 logits (vocabulary,)."""
        logits = self._penalise(logits[: self._n_tokens])
        token = int(logits.argmax()) if self._params.temperature == 0 else self._draw(logits)
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token)
        return token

    def _penalise(self, logits: Tensor) -> Tensor:
        """Seen tokens: positive logits divided, negative ones multiplied (CTRL, arXiv 1909.05858, section 4.1)."""
        if not self._seen:
            return logits
        seen = torch.tensor(sorted(self._seen), device=logits.device)
        values = logits[seen]
        penalty = self._params.repetition_penalty
        return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))

    def _draw(self, logits: Tensor) -> int:
        probabilities = (logits / max(self._params.temperature, _COLDEST)).softmax(-1)
        kept, ids = self._candidates(probabilities)
        if self._params.min_p > 0:
            kept = kept * (kept >= self._params.min_p * kept[0])
        return int(ids[torch.multinomial(kept.cpu(), 1, generator=self._generator)])

    def _candidates(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that top-k and top-p leave, best first, with their probabilities; at least one."""
        params = self._params
        size = len(probabilities)
        if params.top_k:
            best, ids = _on_host(probabilities.topk(min(params.top_k, size)))
            best = best / best.sum()
        elif params.top_p < 1:
            best, ids = _on_host(probabilities.topk(min(_FEW, size)))
            if best.sum() < params.top_p:
                best, ids = _on_host(probabilities.sort(descending=True))
        else:
            return probabilities.sort(descending=True) if params.min_p else (probabilities, torch.arange(size))
        if params.top_p < 1:
            before = best.cumsum(-1) - best
            best = best * (before < params.top_p)
        return best, ids


def _on_host(best: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A few candidates from where the logits are: what comes behind would make a GPU wait for each small step."""
    values, ids = best
    return values.cpu(), ids.cpu()


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of one place: of the token that stands there, and the best ones."""

    logprob: float
    top: tuple[tuple[int, float], ...]


def score(logits: Tensor, token_ids: Sequence[int], k: int) -> list[Scores]:
    """Log-softmax of raw logits (T, vocabulary) at the given token of each row, with the k best."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if not k:
        return [Scores(value, ()) for value in own]
    values, ids = logprobs.topk(min(k, logits.shape[-1]), dim=-1)
    tops = zip(ids.tolist(), values.tolist(), strict=True)
    return [Scores(value, tuple(zip(*top, strict=True))) for value, top in zip(own, tops, strict=True)]


def check_finite(logits: Tensor) -> None:
    """Raise NumericsError where logits hold NaN or infinity."""
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError(
            "the model computed numbers that are not finite, so its answer would be garbage",
            "the weights are damaged: check them with dslite model verify, or download them again",
        )
