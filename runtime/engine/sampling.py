"""Choosing the next token from its logits.

A seed gives the same text alone, in a batch and behind a cached prefix. Kernels differ in the last bits between those
cases, and with them the order of nearly equal candidates, so the noise of a draw belongs to the token id and never to a
rank: an exponential variate hashed from (seed, position, token id), and the token with the least variate / probability
is drawn (an exponential race, the Gumbel-max trick without its second logarithm). Only the candidates that the filters
leave are hashed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import randbits

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslite.runtime.engine.device_sampling import LEAST_TEMPERATURE, Race
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import NumericsError

_FIRST_CANDIDATES = 512  # that top-p looks at before it sorts the whole vocabulary


class Sampler:
    """Draws the tokens of one answer, reproducibly for a given seed."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], n_tokens: int) -> None:
        """`n_tokens` ids have a token; the padding entries of the vocabulary behind them are never drawn."""
        self._params = params
        self._n_tokens = n_tokens
        self._seen = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._seed = randbits(63) if params.seed is None else params.seed
        self._position = len(prompt_ids)  # in the whole text: an answer that is continued draws as if it never stopped

    @property
    def race(self) -> Race:
        """What a device needs to draw the next token from penalised logits."""
        params = self._params
        return Race(params.temperature, params.top_k, params.top_p, params.min_p, _key(self._seed, self._position))

    def sample(self, logits: Tensor) -> int:
        """Draw from float32 logits (vocabulary,)."""
        token = self._draw(logits[: self._n_tokens])
        self.note(token)
        return token

    def note(self, token: int) -> None:
        """A token was drawn, here or on a device."""
        self._position += 1
        if self._params.repetition_penalty != 1.0:
            self._seen.add(token)

    def _draw(self, logits: Tensor) -> int:
        if self._params.temperature == 0:
            return int(self.penalise(logits).argmax())
        chances, ids = self.candidates(logits)
        return int(ids[(_exponential(self._seed, self._position, ids) / chances).argmin()])

    def candidates(self, logits: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The tokens that the filters leave of logits (vocabulary,), likeliest first where they are sorted.

        Returns their probabilities, which need not add up to one, and their ids; at least one token.
        """
        logits = self.penalise(logits[: self._n_tokens])
        params = self._params
        chances, ids = self._likeliest((logits / max(params.temperature, LEAST_TEMPERATURE)).softmax(-1))
        keep = chances > 0
        if params.top_p < 1:
            before = chances.cumsum() - chances
            keep &= before < params.top_p * (chances.sum() if params.top_k else 1.0)
        if params.min_p > 0:
            keep &= chances >= params.min_p * chances.max()
        return chances[keep], ids[keep]

    def penalise(self, logits: Tensor) -> Tensor:
        """Seen tokens: positive logits divided, negative ones multiplied (CTRL, arXiv 1909.05858, section 4.1)."""
        if not self._seen:
            return logits
        seen = torch.tensor(sorted(self._seen), device=logits.device)
        values = logits[seen]
        penalty = self._params.repetition_penalty
        return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))

    def _likeliest(self, probabilities: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Probabilities and ids on the host: the top k, or as many as top-p may want, likeliest first; else all."""
        params, size = self._params, len(probabilities)
        if params.top_k:
            return _sorted(*_on_host(*probabilities.topk(min(params.top_k, size))))
        if params.top_p == 1:
            return _on_host(probabilities, torch.arange(size))
        chances, ids = _on_host(*probabilities.topk(min(_FIRST_CANDIDATES, size)))
        if chances.sum() < params.top_p:
            chances, ids = _on_host(*probabilities.sort(descending=True))
        return _sorted(chances, ids)


def _on_host(chances: Tensor, ids: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Candidates from the device of the logits: on a GPU each of the small operations that follow would wait."""
    return chances.cpu().double().numpy(), ids.cpu().numpy()


def _sorted(chances: NDArray[np.float64], ids: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Likeliest first, equal ones by id: topk and sort promise no order of those."""
    order = np.lexsort((ids, -chances))
    return chances[order], ids[order]


def _exponential(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Exponential variates of rate one, each a function of seed, position and token id alone."""
    key = np.array([_key(seed, position)], np.uint64)
    bits = _hash(_hash(ids.astype(np.uint64) + key) ^ key)
    return -np.log(((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)


def _key(seed: int, position: int) -> int:
    return int(_hash(_hash(np.array([seed], np.uint64)) + np.uint64(position))[0])


def _hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood 2014), a bijection of 64 bits; sums wrap around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Scores:
    """Log-probabilities at one position: of the token there, and of the best ones."""

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
        raise not_finite()


def not_finite() -> NumericsError:
    return NumericsError(
        "the model computed numbers that are not finite, so its answer would be garbage",
        "the weights are damaged: check them with dslite model verify, or download them again",
    )
