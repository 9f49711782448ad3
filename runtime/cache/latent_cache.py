"""The latents of one conversation: what attention needs of every token, 31 KB each in Lite."""

# T new tokens  S all tokens  C latent  R rope

import math

import torch
from torch import Tensor

from dslite.model import decode_cuda
from dslite.model.config import ModelConfig
from dslite.runtime.errors import ContextFullError
from dslite.runtime.planning.footprint import growth_bytes, latent_bytes
from dslite.runtime.system.memory import anonymous_map

_STEP = 256  # tokens by which a buffer grows, at least
_FACTOR = 3, 2  # and at least to so many times its size, so that copying stays a constant share of appending


class LatentKVCache:
    """One buffer (capacity, C+R) a layer, so that attention reads one plain matrix.

    In host memory the buffers of a whole context are reserved at once: a page that no token has reached costs nothing.
    They are mapped, not allocated: an allocator reuses what earlier caches have touched, each at other places, and the
    demo's server grew from 310 to 390 MB over 3,000 requests, though it held no more than at their beginning.
    On a device they grow with the sequence, layer by layer, so that never more than one layer exists twice; a recorded
    step reads their addresses from memory (`addresses`), so that they may move.

    Measured on a CPU at Lite's size, 32,768 tokens in pieces of 64, one thread beside other programs: reserved 0.65 s
    of its time and 1,021 MB at most, grown 1.64 s and 1,047 MB. Growing costs 30 µs a token and one layer of memory.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_tokens: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        grows: bool | None = None,
    ) -> None:
        """`grows`: by need, and not reserved at once; None: as suits the device."""
        self.max_tokens = max_tokens
        self._length = 0
        self._grows = grows_on(device) if grows is None else grows
        shape = (config.num_hidden_layers, 0 if self._grows else max_tokens, config.latent_width)
        with torch.inference_mode(mode=False):
            if self._grows or torch.device(device).type != "cpu":
                self._block = torch.empty(shape, dtype=dtype, device=device)  # without a token where the cache grows
            else:
                self._block = _mapped(shape, dtype)
        self._layers = list(self._block.unbind())

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        """Tokens that every layer has room for before it grows."""
        return min(len(layer) for layer in self._layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers; in host memory pages that no token has reached are not taken."""
        return sum(layer.nbytes for layer in self._layers)

    def append(self, layer: int, entries: Tensor) -> Tensor:
        """Put entries (T, C+R) behind those of a layer; returns all of them as a view, (S, C+R)."""
        end = self._ensure(entries.shape[0])
        self._layers[layer][self._length : end] = entries
        return self._layers[layer][:end]

    def reserve(self, count: int) -> Tensor:
        """The entries of all layers with `count` more, not yet filled, as a view: (layers, S, C+R).

        Not of a cache that grows: it is no one block.
        """
        return self._block[:, : self._ensure(count)]

    def addresses(self, count: int) -> list[int]:
        """Where each layer's entries begin, with room for `count` more."""
        self._ensure(count)
        return [decode_cuda.address(layer) for layer in self._layers]

    def commit(self, count: int) -> None:
        self._length += count

    def copy_prefix(self, other: "LatentKVCache", count: int) -> None:
        """Begin anew with the first `count` tokens of another sequence."""
        self._length = 0
        self._ensure(count)
        for own, theirs in zip(self._layers, other._layers, strict=True):
            own[:count] = theirs[:count]
        self._length = count

    def entries(self, start: int, end: int) -> Tensor:
        """Entries of some tokens in host memory, (layers, end - start, C+R); a view where they lie there."""
        if not self._grows and self._block.device.type == "cpu":
            return self._block[:, start:end]
        shape = (len(self._layers), end - start, self._block.shape[2])
        found = torch.empty(shape, dtype=self._block.dtype)
        for own, layer in zip(found, self._layers, strict=True):
            own.copy_(layer[start:end])
        return found

    def put(self, entries: Tensor) -> None:
        """Append tokens whose entries (layers, T, C+R) are known."""
        end = self._ensure(entries.shape[1])
        if self._grows:
            for own, known in zip(self._layers, entries, strict=True):
                own[self._length : end] = known
        else:
            self._block[:, self._length : end] = entries
        self._length = end

    def truncate(self, length: int) -> None:
        """Forget every token from `length` on."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate {self._length} tokens to {length}")
        self._length = length

    def _ensure(self, count: int) -> int:
        """Make room for `count` more tokens; returns how many there are with them. Raises ContextFullError."""
        end = self._length + count
        if end > self.max_tokens:
            raise ContextFullError(f"{end} tokens do not fit into a context of {self.max_tokens}")
        if end > self.capacity:
            grown = max(end, self.capacity * _FACTOR[0] // _FACTOR[1])
            capacity = min(self.max_tokens, -(-grown // _STEP) * _STEP)
            for index, layer in enumerate(self._layers):  # where memory runs out here, those behind have yet to grow
                if len(layer) < capacity:
                    # A tensor that is made in inference mode, in which passes run, can be written in no other.
                    with torch.inference_mode(mode=False):
                        larger = layer.new_empty(capacity, layer.shape[1])
                    larger[: self._length] = layer[: self._length]
                    self._layers[index] = larger
                    del layer
        return end


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in memory of its own, which goes back to the system with it. Raises OSError."""
    count = math.prod(shape)
    memory = anonymous_map(count * dtype.itemsize, huge=False)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(shape) if count else torch.empty(shape, dtype=dtype)


def grows_on(device: torch.device | str) -> bool:
    """Whether caches on a device grow; in host memory they are reserved."""
    return torch.device(device).type != "cpu"


def tokens_that_fit(nbytes: int, config: ModelConfig, max_tokens: int, dtype: torch.dtype, *, grows: bool) -> int:
    """Tokens of several caches of at most `max_tokens` for which a memory has room.

    Of caches that grow the room ahead of their tokens counts, and what one takes more while it moves.
    """
    per_token = kv_bytes_per_token(config, dtype)
    if not grows:
        return nbytes // per_token
    left = nbytes - growth_bytes(config, max_tokens, dtype.itemsize)
    return max(0, left) * _FACTOR[1] // (_FACTOR[0] * per_token)


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of cache for one token: 31,104 for Lite in BF16."""
    return latent_bytes(config, dtype.itemsize)
