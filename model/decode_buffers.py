"""The buffers of a step on a GPU, and the launches over them: eight a layer, nine for several tokens.

Nine where routed experts are in slots, and two more for experts that are fetched.
No launch depends on a value, allocates or waits, so that a recording of them (decode_cuda) holds for every step.
"""

# T tokens  D hidden  E experts  K experts per token  M experts computed of a token  H heads  C latent  R rope  P splits

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from dslite.model.attention import LATENT_EPS
from dslite.model.decoder_layer import DecoderLayer
from dslite.model.expert_slots import RoutedTokens, SlotBank
from dslite.model.kernels import gpu_limits
from dslite.model.moe import MLP, MoE, ResidentExperts
from dslite.model.network import Network

Launch = Callable[[], None]


Replays = dict[int, Launch]  # by batch size


@dataclass
class LayerSegment:
    """Neighbouring layers of one recording, which ends behind attention where `experts` of the last are not resident.

    With experts in "slots", the router is recorded too, the experts of the table in `hits`, and those that were fetched
    in `fetched`; the next segment, which may have no layer, begins with their sum. With "host", torch computes the MoE.
    """

    first: int
    count: int
    experts: Literal["resident", "slots", "host"]
    sums_before: bool = False  # begins with the sum of the experts of the layer before
    replays: Replays = field(default_factory=dict)
    hits: Replays = field(default_factory=dict)
    fetched: Replays = field(default_factory=dict)

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class DecodeBuffers:
    """Buffers for one token of each of `most` sequences. A batch of fewer uses the first rows of each."""

    def __init__(self, network: Network, most: int) -> None:
        from dslite.model.kernels import (
            triton_attention,
            triton_embedding,
            triton_experts,
            triton_products,
            triton_slots,
        )

        self._attention, self._embedding = triton_attention, triton_embedding
        self._experts, self._products, self._slots = triton_experts, triton_products, triton_slots
        self._network, config = network, network.config
        self.segments = _segments(network.layers)
        heads, latent, layers = config.num_attention_heads, config.kv_lora_rank, len(network.layers)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=network.device)

        dtype, hidden = network.dtype, config.hidden_size
        self.state = buffer(most, triton_attention.LAYERS + layers, dtype=torch.int64)  # triton_attention says what
        elsewhere = network.embed_tokens.device != network.device
        self.rows = buffer(most, hidden, dtype=dtype) if elsewhere else None
        self.hidden = buffer(most, hidden, dtype=dtype)  # at the beginning of a layer
        self.attention_out = buffer(most, hidden, dtype=dtype)  # attention output plus residual: input of the MLP
        self._factors = buffer(most, config.qk_rope_head_dim // 2, 2)
        self._q_width = config.q_lora_rank or heads * config.qk_head_dim
        self._projected = buffer(most, self._q_width + config.latent_width, dtype=dtype)
        self._q = None if config.q_lora_rank is None else buffer(most, heads * config.qk_head_dim, dtype=dtype)
        self._queries = buffer(most, heads, config.latent_width, dtype=dtype)
        self._values = buffer(most, heads, config.v_head_dim, dtype=dtype)
        processors = gpu_limits.multiprocessors(network.device)
        self._splits = [triton_attention.splits(heads, tokens, processors) for tokens in range(1, most + 1)]
        parts = max(tokens * splits for tokens, splits in enumerate(self._splits, 1)) * heads
        self._sums, self._logs = buffer(parts * latent), buffer(parts)
        self._scores = buffer(most, config.n_routed_experts)
        self._tables = {layer.index: _table(layer) for layer in network.layers if _experts(layer) == "resident"}
        entries = config.num_experts_per_tok + config.n_shared_experts
        self._inner = buffer(most, entries, config.moe_intermediate_size)
        self._dense_inner = buffer(most, 1, config.intermediate_size)
        self._parts = buffer(most, entries, hidden)
        self._ids, self._weights = buffer(most * max(entries, 1), dtype=torch.int64), buffer(most * max(entries, 1))
        in_slots = [layer for layer in network.layers if _experts(layer) == "slots"]
        if in_slots:
            experts, width = config.n_routed_experts, config.moe_intermediate_size
            self._slot_tables = {
                layer.index: triton_slots.slot_table(experts, _shared(layer), width, network.device)
                for layer in in_slots
            }
            self._slot_lines = {index: table[:experts] for index, table in self._slot_tables.items()}
            # No shared expert is in this one: those are computed with the hits.
            self._fetched = torch.zeros_like(self._slot_tables[in_slots[0].index])
            self._normed, self._missing = buffer(most, hidden, dtype=dtype), buffer(most * entries, dtype=torch.int64)
            self._arrived = buffer(most * config.num_experts_per_tok, hidden)

    def launch(self, segment: LayerSegment, tokens: int) -> None:
        """All launches of a segment, which begins with `hidden`, the first one with the tokens."""
        if segment.first == 0:
            self._embed(tokens)
        if segment.sums_before:
            self._sum_experts(tokens)
        for index in range(segment.first, segment.first + segment.count):
            layer = self._network.layers[index]
            self._attend(layer, tokens)
            if index in self._tables:
                self._combine(layer, tokens)
        if segment.experts == "slots":
            self._route(self._network.layers[segment.last], tokens)

    def _embed(self, tokens: int) -> None:
        network = self._network
        table = network.embed_tokens if self.rows is None else self.rows
        state, hidden, factors = self.state[:tokens], self.hidden[:tokens], self._factors[:tokens]
        by_token = self.rows is None
        amplitude = float(network.amplitude)
        self._embedding.launch_embed(state, table, network.frequencies, hidden, factors, amplitude, by_token)

    def _attend(self, layer: DecoderLayer, tokens: int) -> None:
        """hidden to attention_out: five launches, six where queries are compressed."""
        config, own, nope = self._network.config, layer.self_attn, self._network.config.qk_nope_head_dim
        heads, splits = config.num_attention_heads, self._splits[tokens - 1]
        state, hidden, projected = self.state[:tokens], self.hidden[:tokens], self._projected[:tokens]
        q_first = own.q_proj if own.q_proj is not None else own.q_a_proj
        assert isinstance(q_first, Tensor)
        assert isinstance(own.kv_a_proj_with_mqa, Tensor)
        product = self._products.launch_norm_product
        product(hidden, layer.input_layernorm, q_first, own.kv_a_proj_with_mqa, projected, layer.eps)
        q, kv = projected[:, : self._q_width], projected[:, self._q_width :]
        if self._q is not None:
            assert own.q_a_layernorm is not None
            assert isinstance(own.q_b_proj, Tensor)
            product(q, own.q_a_layernorm, own.q_b_proj, None, self._q[:tokens], LATENT_EPS)
            q = self._q[:tokens]
        kernels, index, kv_b = self._attention, layer.index, own.kv_b_proj
        assert isinstance(kv_b, Tensor)
        assert isinstance(own.o_proj, Tensor)
        queries, values = self._queries[:tokens], self._values[:tokens]
        parts = tokens * heads * splits
        sums = self._sums[: parts * config.kv_lora_rank].view(tokens, heads, splits, config.kv_lora_rank)
        logs = self._logs[:parts].view(tokens, heads, splits)
        factors = self._factors[:tokens]
        kernels.launch_absorb(state, index, q, kv, own.kv_a_layernorm, kv_b, factors, queries, nope, LATENT_EPS)
        kernels.launch_attend_splits(state, index, queries, sums, logs, config.softmax_scale)
        kernels.launch_merge_values(sums, logs, kv_b, values, nope)
        self._products.launch_add_product(values.flatten(1), own.o_proj, hidden, self.attention_out[:tokens])

    def _combine(self, layer: DecoderLayer, tokens: int) -> None:
        """attention_out to hidden: two launches, three with a router, and one more for several tokens."""
        config, kernels, table = self._network.config, self._experts, self._tables[layer.index]
        norm, out = layer.post_attention_layernorm, self.attention_out[:tokens]
        scores, products, chosen = self._scores[:tokens], self._dense_inner[:tokens], 0
        if isinstance(layer.mlp, MoE):
            products, chosen = self._inner[:tokens], config.num_experts_per_tok
            gate = layer.mlp.gate.weight
            self._products.launch_norm_product(out, norm, gate, None, scores, layer.eps, exact=True)
        entries = products.shape[1]
        ids = self._ids[: tokens * entries].view(tokens, entries)
        weights = self._weights[: tokens * entries].view(tokens, entries)
        scaling = config.routed_scaling_factor
        kernels.launch_gate_up(out, norm, scores, table, products, ids, weights, chosen, scaling, layer.eps)
        if chosen and tokens > 1:
            parts = self._parts[:tokens]
            kernels.launch_down_tokens(products, table, ids, parts, out.element_size())
            kernels.launch_combine_entries(parts, weights, out, self.hidden[:tokens])
        else:
            kernels.launch_down_combine(products, table, ids, weights, out, self.hidden[:tokens])

    def _chosen(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids, weights and numbers of misses (T, M) of the experts of some tokens."""
        shape = tokens, self._inner.shape[1]
        count = tokens * shape[1]
        return self._ids[:count].view(shape), self._weights[:count].view(shape), self._missing[:count].view(shape)

    def _route(self, layer: DecoderLayer, tokens: int) -> None:
        """attention_out to the chosen experts: two launches."""
        config, out, norm = self._network.config, self.attention_out[:tokens], layer.post_attention_layernorm
        assert isinstance(layer.mlp, MoE)
        scores, (ids, weights, _) = self._scores[:tokens], self._chosen(tokens)
        self._products.launch_norm_product(out, norm, layer.mlp.gate.weight, None, scores, layer.eps, exact=True)
        chosen, scaling = config.num_experts_per_tok, config.routed_scaling_factor
        normed = self._normed[:tokens]
        self._slots.launch_route(out, norm, scores, ids, weights, normed, chosen, scaling, layer.eps)

    def launch_slots(self, index: int, tokens: int, *, fetched: bool) -> None:
        """The chosen experts that are in slots, with the shared ones, or those that were fetched: two launches."""
        layer, (ids, _, missing) = self._network.layers[index], self._chosen(tokens)
        table = self._fetched if fetched else self._slot_tables[index]
        out, products, norm = self.attention_out[:tokens], self._inner[:tokens], layer.post_attention_layernorm
        self._slots.launch_gate_up(out, norm, table, ids, products, layer.eps)
        self._slots.launch_down(products, table, ids, self._parts[:tokens], missing, out.element_size(), not fetched)

    def _sum_experts(self, tokens: int) -> None:
        """The outputs of a layer's experts to hidden: one launch."""
        _, weights, missing = self._chosen(tokens)
        parts, out = self._parts[:tokens], self.attention_out[:tokens]
        self._slots.launch_combine(parts, self._arrived, missing, weights, out, self.hidden[:tokens])

    def routed_tokens(self, index: int, tokens: int, count: int, compute_fetched: Launch) -> RoutedTokens:
        """What the bank of a layer with experts in slots sees of a step of `count` tokens, filled up to `tokens`."""
        routed = self._network.config.n_routed_experts
        return RoutedTokens(
            ids=self._chosen(tokens)[0],
            normed=self._normed[:tokens],
            count=count,
            chosen=self._network.config.num_experts_per_tok,
            table=self._slot_lines[index],
            fetched=self._fetched[:routed],
            arrived=self._arrived,
            compute_fetched=compute_fetched,
        )


def _table(layer: DecoderLayer) -> Tensor:
    """The experts of a layer as the kernels find them."""
    from dslite.model.kernels.triton_experts import address_table

    mlp = layer.mlp
    if isinstance(mlp, MLP):
        return address_table([], mlp.tensors)
    assert isinstance(mlp.experts, ResidentExperts)
    shared = None if mlp.shared_experts is None else mlp.shared_experts.tensors
    return address_table([expert.tensors for expert in mlp.experts.experts], shared)


def _shared(layer: DecoderLayer) -> tuple[Tensor, Tensor, Tensor] | None:
    assert isinstance(layer.mlp, MoE)
    return None if layer.mlp.shared_experts is None else layer.mlp.shared_experts.tensors


def _experts(layer: DecoderLayer) -> Literal["resident", "slots", "host"]:
    """Where the routed experts of a layer are computed."""
    if isinstance(layer.mlp, MLP) or isinstance(layer.mlp.experts, ResidentExperts):
        return "resident"
    bank = layer.mlp.experts
    return "slots" if isinstance(bank, SlotBank) and bank.addressable else "host"


def _segments(layers: Sequence[DecoderLayer]) -> list[LayerSegment]:
    """All layers, in the longest segments: a layer whose routed experts are not resident ends one."""
    segments: list[LayerSegment] = []
    for layer in layers:
        if segments and segments[-1].experts == "resident":
            segments[-1].count += 1
            segments[-1].experts = _experts(layer)
        else:
            sums_before = bool(segments) and segments[-1].experts == "slots"
            segments.append(LayerSegment(layer.index, 1, _experts(layer), sums_before))
    if segments[-1].experts == "slots":
        segments.append(LayerSegment(len(layers), 0, "resident", sums_before=True))
    return segments
