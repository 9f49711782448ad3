"""Decode of one token on a GPU: eight launches a layer over fixed buffers, recorded once as a CUDA graph and replayed.

A launch costs as much as reading five megabytes, so that torch's sixty a layer take longer than the weights. A replay
needs nothing from Python. One recording serves every position of every cache: what changes from token to token is four
numbers on the device, among them the address of the cache. Another conversation, a branch or a larger buffer is another
address and never another recording, and no recording keeps a cache alive.

Where routed experts are in slots, their ids must come to the host before it can fetch or compute them. Then a segment
ends behind attention, the host computes the layer's MoE with torch, and the next segment begins with the next layer's
attention: one recording for each such layer. One recording with a table of slots on the device would have to
stop at a miss, which a third of all layers of all tokens have.
"""

# D hidden  E experts  K experts per token  M experts computed  H heads  C latent  R rope  P splits

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.attention import LATENT_EPS, Form, Span, rms_norm
from dslite.model.decoder_layer import DecoderLayer
from dslite.model.kernels import gpu
from dslite.model.moe import MLP, MoE, ResidentExperts
from dslite.model.network import Network
from dslite.model.quantized import QuantizedMatrix
from dslite.model.rope import rotation

Launch = Callable[[], None]
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


@dataclass
class LayerSegment:
    """Neighbouring layers of one recording. Unless `all_resident`, the host computes the MoE of the last one."""

    first: int
    count: int
    all_resident: bool
    replay: Launch | None = None


class CudaDecode:
    """What transformer.Transformer.steps says, for one token of one sequence."""

    def __init__(self, network: Network, recorder: GraphRecorder) -> None:
        self._network, self._recorder = network, recorder
        self._buffers: DecodeBuffers | None = None

    def suits(self, token_ids: Tensor, spans: Sequence[Span], form: Form) -> bool:
        """Whether these tokens can take this way."""
        return token_ids.shape[0] == 1 and form != "expanded" and gpu.usable(self._network.device) and self._computes

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

    def run(self, token_ids: Tensor, span: Span, on_layer: Callable[[int], None]) -> Tensor:
        """Hidden state (1, D) of one token id (1,). The span's cache has the new entry, not committed."""
        buffers = self._buffers = self._buffers or DecodeBuffers(self._network)
        self._begin(buffers, token_ids, span.cache.length, span.cache.addresses(1))
        for segment in buffers.segments:
            if segment.replay is None:
                segment.replay = self._recorder.record(lambda segment=segment: buffers.launch(segment))  # type: ignore[misc]
            else:
                segment.replay()
            if not segment.all_resident:
                self._combine(buffers, segment.first + segment.count - 1)
            on_layer(segment.first + segment.count)
        return buffers.hidden.clone()[None]

    def _begin(self, buffers: "DecodeBuffers", token_ids: Tensor, position: int, layers: Sequence[int]) -> None:
        """Write what changes from token to token; `layers` are the addresses of each layer's entries."""
        known = token_ids.device.type == "cpu"
        embedding = self._network.embed_tokens
        token = 0
        if buffers.row is not None:  # the embedding is in host memory: copy the token's row
            self._recorder.put(buffers.row, F.embedding(token_ids.to(embedding.device), embedding))
        elif known:
            token = int(token_ids)
        numbers = [token, position, *layers]
        self._recorder.put(buffers.state, torch.tensor(numbers, dtype=torch.int64))
        if buffers.row is None and not known:
            buffers.state[:1].copy_(token_ids)

    def _combine(self, buffers: "DecodeBuffers", index: int) -> None:
        """The MoE of a layer whose experts are in slots."""
        layer = self._network.layers[index]
        hidden = buffers.attention_out[None]
        buffers.hidden.copy_((hidden + layer.mlp(rms_norm(hidden, layer.post_attention_layernorm, layer.eps)))[0])


class DecodeBuffers:
    """The buffers of a token, and the launches over them. Vectors have no axis of tokens."""

    def __init__(self, network: Network) -> None:
        from dslite.model.kernels import triton_attention, triton_experts, triton_products

        self._attention, self._experts, self._products = triton_attention, triton_experts, triton_products
        self._network, config = network, network.config
        self.segments = _segments(network.layers)
        heads, latent, splits = config.num_attention_heads, config.kv_lora_rank, triton_attention.SPLITS

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=network.device)

        dtype = network.dtype
        # triton_attention says which numbers.
        self.state = buffer(triton_attention.LAYERS + len(network.layers), dtype=torch.int64)
        elsewhere = network.embed_tokens.device != network.device
        self.row = buffer(1, config.hidden_size, dtype=dtype) if elsewhere else None
        self.hidden = buffer(config.hidden_size, dtype=dtype)  # at the beginning of a layer
        self.attention_out = buffer(config.hidden_size, dtype=dtype)  # attention output plus residual: input of the MLP
        self._factors = buffer(config.qk_rope_head_dim // 2, 2)
        q_width = config.q_lora_rank or heads * config.qk_head_dim
        projected = buffer(q_width + config.latent_width, dtype=dtype)
        self._projected, self._kv = projected, projected[q_width:]
        self._q_latent = projected[:q_width]
        self._q = self._q_latent if config.q_lora_rank is None else buffer(heads * config.qk_head_dim, dtype=dtype)
        self._queries = buffer(heads, config.latent_width, dtype=dtype)
        self._sums, self._logs = buffer(heads, splits, latent), buffer(heads, splits)
        self._values = buffer(heads, config.v_head_dim, dtype=dtype)
        self._scores = buffer(config.n_routed_experts)
        self._tables = {layer.index: _table(layer) for layer in network.layers if _all_resident(layer)}
        entries = config.num_experts_per_tok + config.n_shared_experts
        self._chosen = buffer(entries, config.moe_intermediate_size)
        self._dense = buffer(1, config.intermediate_size)
        self._ids, self._weights = buffer(entries, dtype=torch.int64), buffer(entries)

    def launch(self, segment: LayerSegment) -> None:
        """All launches of a segment, which begins with `hidden`, the first one with the token."""
        if segment.first == 0:
            self._embed()
        for index in range(segment.first, segment.first + segment.count):
            layer = self._network.layers[index]
            self._attend(layer)
            if index in self._tables:
                self._combine(layer)

    def _embed(self) -> None:
        network = self._network
        table = network.embed_tokens if self.row is None else self.row
        torch.index_select(table, 0, self.state[:1], out=self.hidden[None])
        self._factors.copy_(torch.view_as_real(rotation(self.state[1:2], network.frequencies, network.amplitude))[0])

    def _attend(self, layer: DecoderLayer) -> None:
        """hidden to attention_out: five launches, six where queries are compressed."""
        config, own, nope = self._network.config, layer.self_attn, self._network.config.qk_nope_head_dim
        q_first = own.q_proj if own.q_proj is not None else own.q_a_proj
        assert q_first is not None
        product = self._products.launch_norm_product
        product(self.hidden, layer.input_layernorm, q_first, own.kv_a_proj_with_mqa, self._projected, layer.eps)
        if own.q_proj is None:
            assert own.q_a_layernorm is not None
            assert own.q_b_proj is not None
            product(self._q_latent, own.q_a_layernorm, own.q_b_proj, None, self._q, LATENT_EPS)
        kernels, state, index, kv_b = self._attention, self.state, layer.index, own.kv_b_proj
        kernels.launch_absorb(
            state, index, self._q, self._kv, own.kv_a_layernorm, kv_b, self._factors, self._queries, nope, LATENT_EPS
        )
        kernels.launch_attend_splits(state, index, self._queries, self._sums, self._logs, config.softmax_scale)
        kernels.launch_merge_values(self._sums, self._logs, kv_b, self._values, nope)
        self._products.launch_add_product(self._values.view(-1), own.o_proj, self.hidden, self.attention_out)

    def _combine(self, layer: DecoderLayer) -> None:
        """attention_out to hidden: two launches, three with a router."""
        config, kernels, table = self._network.config, self._experts, self._tables[layer.index]
        norm, products, chosen = layer.post_attention_layernorm, self._dense, 0
        if isinstance(layer.mlp, MoE):
            products, chosen = self._chosen, config.num_experts_per_tok
            self._products.launch_norm_product(
                self.attention_out, norm, layer.mlp.gate.weight, None, self._scores, layer.eps
            )
        ids, weights = self._ids[: len(products)], self._weights[: len(products)]
        scaling = config.routed_scaling_factor
        kernels.launch_gate_up(
            self.attention_out, norm, self._scores, table, products, ids, weights, chosen, scaling, layer.eps
        )
        kernels.launch_down_combine(products, table, ids, weights, self.attention_out, self.hidden)


def address(tensor: Tensor) -> int:
    """The address of a tensor on its device."""
    return tensor.data_ptr()


def _table(layer: DecoderLayer) -> Tensor:
    """The experts of a layer as the kernels find them."""
    from dslite.model.kernels.triton_experts import address_table

    mlp = layer.mlp
    if isinstance(mlp, MLP):
        return address_table([], mlp.tensors)
    assert isinstance(mlp.experts, ResidentExperts)
    shared = None if mlp.shared_experts is None else mlp.shared_experts.tensors
    return address_table([expert.tensors for expert in mlp.experts.experts], shared)


def _all_resident(layer: DecoderLayer) -> bool:
    """Whether all weights of a layer are on the device."""
    return isinstance(layer.mlp, MLP) or isinstance(layer.mlp.experts, ResidentExperts)


def _segments(layers: Sequence[DecoderLayer]) -> list[LayerSegment]:
    """All layers, in the longest segments: a layer whose routed experts are in slots ends one."""
    segments: list[LayerSegment] = []
    for layer in layers:
        if segments and segments[-1].all_resident:
            segments[-1].count += 1
            segments[-1].all_resident = _all_resident(layer)
        else:
            segments.append(LayerSegment(layer.index, 1, _all_resident(layer)))
    return segments
