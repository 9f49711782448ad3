"""The latents of one conversation: what attention needs of every token, 31 KB each in Lite."""

# T new tokens  S all tokens  C latent  R rope

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.runtime.errors import ContextFullError
from dslite.runtime.planning.footprint import latent_bytes


class LatentKVCache:
    """One buffer [capacity, C+R] a layer, allocated once, so that attention reads one plain matrix.

    On the CPU a page that no token has reached costs nothing: the whole context may be allocated at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, capacity, config.latent_width)
        self._rows = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._rows.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the whole context takes."""
        return self._rows.nbytes

    def append(self, layer: int, rows: Tensor) -> Tensor:
        """Put rows (T, C+R) behind a layer's rows; return all of them as a view, (S, C+R)."""
        kept = self.reserve(rows.shape[0])[layer]
        kept[self._length :] = rows
        return kept

    def reserve(self, count: int) -> Tensor:
        """The rows of all layers with `count` more, not yet filled, as a view: (layers, S, C+R)."""
        end = self._length + count
        if end > self.capacity:
            raise ContextFullError(f"{end} tokens do not fit into a context of {self.capacity}")
        return self._rows[:, :end]

    def commit(self, count: int) -> None:
        self._length += count

    def copy_rows(self, other: "LatentKVCache", count: int) -> None:
        """Begin anew with the first `count` tokens of another sequence."""
        self._rows[:, :count] = other._rows[:, :count]
        self._length = count

    def rows(self, start: int, end: int) -> Tensor:
        """The rows of some tokens in all layers, as a view: (layers, end - start, C+R)."""
        return self._rows[:, start:end]

    def put(self, rows: Tensor) -> None:
        """Append tokens whose rows (layers, T, C+R) are known."""
        end = self._length + rows.shape[1]
        self._rows[:, self._length : end] = rows
        self._length = end

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} tokens to {length}")
        self._length = length


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of cache for one token: 31,104 for Lite in BF16."""
    return latent_bytes(config, dtype.itemsize)
