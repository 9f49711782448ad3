"""The latent cache of one sequence on the compute device: 31 KB a token in Lite."""

# T new tokens  S all tokens  C latent  R rope

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.runtime.errors import ContextFullError
from dslite.runtime.planning.footprint import latent_bytes


class LatentKVCache:
    """Latent entries (capacity, C+R) of each layer in one allocation, so that attention reads a plain matrix.

    On the CPU a page that has not been written takes no memory: the whole context may be allocated at once.
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
        self._entries = torch.empty(shape, dtype=dtype, device=device)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._entries.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole capacity."""
        return self._entries.nbytes

    def append(self, layer: int, rows: Tensor) -> Tensor:
        """Store entries (T, C+R) behind those of a layer; return a view of all, (S, C+R)."""
        kept = self.reserve(rows.shape[0])[layer]
        kept[self._length :] = rows
        return kept

    def reserve(self, count: int) -> Tensor:
        """A view of the entries of all layers with `count` more, not yet filled: (layers, S, C+R)."""
        end = self._length + count
        if end > self.capacity:
            raise ContextFullError(f"{end} tokens do not fit into a context of {self.capacity}")
        return self._entries[:, :end]

    def commit(self, count: int) -> None:
        self._length += count

    def copy_rows(self, other: "LatentKVCache", count: int) -> None:
        """Replace the contents by the first `count` tokens of another cache."""
        self._entries[:, :count] = other._entries[:, :count]
        self._length = count

    def rows(self, start: int, end: int) -> Tensor:
        """A view of the entries of some tokens in all layers: (layers, end - start, C+R)."""
        return self._entries[:, start:end]

    def put(self, rows: Tensor) -> None:
        """Append tokens with their entries (layers, T, C+R)."""
        end = self._length + rows.shape[1]
        self._entries[:, self._length : end] = rows
        self._length = end

    def truncate(self, length: int) -> None:
        """Drop every token from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} tokens to {length}")
        self._length = length


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of cache for one token: 31,104 for Lite in BF16."""
    return latent_bytes(config, dtype.itemsize)
