"""Decoding one token of each of a few sequences on a GPU: the launches of a step, recorded once as a CUDA graph.

A launch costs as much as reading five megabytes, so that torch's sixty a layer take longer than the weights. A replay
needs nothing from Python. One recording of a batch size serves every position of every cache: what changes from step to
step is four numbers a token on the device, among them the address of the cache. Another conversation, a branch or a
larger buffer is another address and never another recording, and no recording keeps a cache alive. A batch between two
recorded sizes is filled up with copies of its first token, which write and read what that token does.

Where routed experts are in slots, the device has a table of their addresses, zero for an expert without a slot. A
segment ends behind the router, whose ids go to the host. Another recording computes the experts of the table and the
shared ones; meanwhile the host computes or fetches the others. The next segment begins with the sum of both.

Where experts lie in slots as no kernel reads them, as quantized ones do, torch computes the layer's MoE between two
segments.

Where recording or launching fails, run() returns None and torch's layers compute the step and all further ones.
"""

# T tokens  D hidden  E experts  K experts per token  M experts computed  H heads  C latent  R rope  P splits

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.attention import Form, Span, rms_norm
from dslite.model.decode_buffers import DecodeBuffers, Launch, LayerSegment, Replays
from dslite.model.errors import DsliteError
from dslite.model.expert_slots import SlotBank
from dslite.model.kernels import gpu
from dslite.model.moe import MoE
from dslite.model.network import Network
from dslite.model.quantized import QuantizedMatrix

log = logging.getLogger("dslite.model")
BATCH_SIZES = (1, 2, 4, 8, 16)  # that are recorded
_MOST_LATENT = 1024  # values that a program holds of a cached row
_MOST_EXPERTS = 128  # of which the router's program compares each with each


class GraphRecorder(Protocol):
    """What a device does for recorded launches."""

    def put(self, target: Tensor, values: Tensor) -> None:
        """Copy small values from the host for the next launches, without waiting."""
        ...

    def record(self, launch: Launch) -> Launch:
        """Run `launch`; return a function that segments the same kernels on the same memory again."""
        ...


class LaunchError(RuntimeError):
    """A recorded step could not be recorded or launched."""


class CudaDecode:
    """What transformer.Transformer.forward says, for one token of each of some sequences."""

    def __init__(self, network: Network, recorder: GraphRecorder) -> None:
        self._network, self._recorder = network, recorder
        self._buffers: DecodeBuffers | None = None
        self._sizes = list(BATCH_SIZES)  # that can be recorded: memory may not suffice for the largest

    @property
    def segments(self) -> Sequence[LayerSegment]:
        """What was recorded; nothing before the first step."""
        return () if self._buffers is None else self._buffers.segments

    def suits(self, token_ids: Tensor, spans: Sequence[Span], form: Form) -> bool:
        """Whether these tokens can take this way."""
        one_each = len(spans) == token_ids.shape[0]
        return one_each and form != "expanded" and gpu.usable(self._network.device) and self._computes

    @cached_property
    def _computes(self) -> bool:
        """Whether the kernels can compute the network as it lies."""
        network, config = self._network, self._network.config
        tensors = [
            value for layer in network.layers for value in (*vars(layer).values(), *vars(layer.self_attn).values())
        ]
        return (
            network.dtype in (torch.bfloat16, torch.float32)
            and not any(isinstance(value, QuantizedMatrix) for value in [network.lm_head, *tensors])
            and all(tensor.is_contiguous() for tensor in tensors if isinstance(tensor, Tensor))
            and config.topk_method == "greedy"
            and config.n_routed_experts <= _MOST_EXPERTS
            and config.kv_lora_rank <= _MOST_LATENT
        )

    def run(self, token_ids: Tensor, spans: Sequence[Span], on_layer: Callable[[int], None]) -> Tensor | None:
        """Hidden states (T, D) of token ids (T,), one of each span; None where the launches fail.

        The spans' caches have the new entries, not committed.
        """
        states = []
        at = 0
        while at < len(spans):
            try:
                states.append(self._step(token_ids[at:], spans[at:], on_layer))
            except LaunchError as error:
                if not self._may_go_on(error, len(spans) - at):
                    return None
            else:
                at += len(states[-1])
        return states[0] if len(states) == 1 else torch.cat(states)

    def _may_go_on(self, error: LaunchError, count: int) -> bool:
        """Note that a step of `count` tokens failed; return whether to try a smaller batch. Raises OutOfMemoryError."""
        cause, size = error.__cause__, self._size(count)
        if not isinstance(cause, torch.OutOfMemoryError):
            self.disable(f"{error}: {cause}")
            return False
        if size == self._sizes[0]:
            raise cause  # the caller frees memory and runs the pass again
        self._sizes = [smaller for smaller in self._sizes if smaller < size]
        log.warning("memory is short: at most %d sequences are decoded in one recorded step", self._sizes[-1])
        return True

    def disable(self, reason: str) -> None:
        """Leave all further steps to torch's layers."""
        self._computes, self._buffers = False, None
        log.warning("recorded steps are switched off, so decoding is slower: %s", reason)

    def _size(self, count: int) -> int:
        """The batch size in which the first of `count` tokens are computed."""
        return next((size for size in self._sizes if size >= count), self._sizes[-1])

    def _step(self, token_ids: Tensor, spans: Sequence[Span], on_layer: Callable[[int], None]) -> Tensor:
        """Hidden states (T, D) of as many tokens as one recorded step takes. Raises LaunchError."""
        size = self._size(len(spans))
        count = min(size, len(spans))
        addresses = [(span.cache.length, *span.cache.addresses(1)) for span in spans[:count]]
        with _launching("preparing a recorded step"):
            buffers = self._buffers = self._buffers or DecodeBuffers(self._network, BATCH_SIZES[-1])
            self._begin(buffers, size, token_ids[:count], addresses)
        for segment in buffers.segments:
            self._launch(segment.replays, size, partial(buffers.launch, segment, size))
            if segment.experts == "slots":
                self._use_slots(buffers, segment, size, count)
            elif segment.experts == "host":
                self._combine(buffers, segment.last, count)
            if segment.count:
                on_layer(segment.first + segment.count)
        return buffers.hidden[:count].clone()

    def _launch(self, replays: Replays, size: int, launch: Launch) -> None:
        """Launch again what was recorded for a batch size; the first time, record it."""
        replay = replays.get(size)
        with _launching("recording a step" if replay is None else "launching a recorded step"):
            if replay is None:
                replays[size] = self._recorder.record(launch)
            else:
                replay()

    def _use_slots(self, buffers: DecodeBuffers, segment: LayerSegment, size: int, count: int) -> None:
        """The experts of a segment's last layer: on the device those of its table, by the host the others.

        The launch of the former is over before the host waits for the ids: it delays neither them nor the host.
        """
        mlp = self._network.layers[segment.last].mlp
        assert isinstance(mlp, MoE)
        assert isinstance(mlp.experts, SlotBank)

        def compute(replays: Replays, *, fetched: bool) -> None:
            launch = partial(buffers.launch_slots, segment.last, size, fetched=fetched)
            self._launch(replays, size, launch)

        tokens = buffers.routed_tokens(segment.last, size, count, lambda: compute(segment.fetched, fetched=True))
        with _launching("a step with experts in slots"):
            mlp.experts.begin_step(tokens)
            compute(segment.hits, fetched=False)
            mlp.experts.finish_step(tokens)

    def _begin(self, buffers: DecodeBuffers, size: int, token_ids: Tensor, places: Sequence[tuple[int, ...]]) -> None:
        """Write what changes from step to step; `places` are each token's position and its cache's addresses."""
        known = token_ids.device.type == "cpu"
        embedding, count = self._network.embed_tokens, len(token_ids)
        padded = torch.tensor([*range(count), *[0] * (size - count)])
        if buffers.rows is not None:  # the embedding is in host memory: copy the tokens' rows
            token_ids, known = token_ids.to(embedding.device), True
            self._recorder.put(buffers.rows[:size], F.embedding(token_ids[padded], embedding))
        numbers = torch.tensor([(0, *place) for place in places], dtype=torch.int64)
        if known:
            numbers[:, 0] = token_ids
        self._recorder.put(buffers.state[:size], numbers[padded])
        if not known:
            buffers.state[:count, 0].copy_(token_ids)
            if size > count:
                buffers.state[count:size, 0].copy_(token_ids[:1].expand(size - count))

    def _combine(self, buffers: DecodeBuffers, index: int, count: int) -> None:
        """The MoE of a layer whose experts no kernel reads."""
        layer = self._network.layers[index]
        hidden = buffers.attention_out[:count]
        buffers.hidden[:count].copy_(hidden + layer.mlp(rms_norm(hidden, layer.post_attention_layernorm, layer.eps)))


def address(tensor: Tensor) -> int:
    """The address of a tensor on its device."""
    return tensor.data_ptr()


@contextmanager
def _launching(what: str) -> Iterator[None]:
    """Any failure inside is a LaunchError: Triton, its compilers, the driver and torch raise errors of their own.

    Not that of a checkpoint, which torch's layers would meet too.
    """
    try:
        yield
    except (LaunchError, DsliteError):
        raise
    except Exception as error:
        raise LaunchError(f"{what} failed") from error
