"""The layers for few tokens on the CPU: one call of the compiled kernel for adjacent layers with resident experts."""

# T tokens  D hidden  C latent  R rope

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from dslite.model.attention import LATENT_EPS, Form, Span
from dslite.model.decoder_layer import DecoderLayer
from dslite.model.kernels import native
from dslite.model.kernels.layer import LayerRun, LayerTensors, TokenBatch
from dslite.model.moe import MoE, ResidentExperts
from dslite.model.network import Network


class CpuDecode:
    """The layers of a network for at most `native.MOST_TOKENS` tokens."""

    def __init__(self, network: Network) -> None:
        self._config = network.config
        self._layers = network.layers

    @cached_property
    def _runs(self) -> list[LayerRun]:
        tensors = [layer_tensors(layer) for layer in self._layers]
        return LayerRun.of(self._config, tensors, latent_eps=LATENT_EPS)

    def suits(self, hidden: Tensor, form: Form) -> bool:
        """Whether hidden (T, D) can take this way."""
        return (
            form != "expanded"
            and native.products() is not None
            and native.suits_rows(hidden)
            and all(run.suits for run in self._runs)
        )

    def run(self, hidden: Tensor, factors: Tensor, spans: Sequence[Span], on_layer: Callable[[int], None]) -> Tensor:
        """As Transformer.forward, behind the embedding: hidden (T, D)."""
        products = native.products()
        assert products is not None
        rows = TokenBatch([(span.cache.reserve(span.count), span.count) for span in spans])
        for run in self._runs:
            out = run(products, hidden, factors, rows)
            if isinstance(out, Tensor):
                hidden = out
            else:
                mlp = self._layers[run.first].mlp
                assert isinstance(mlp, MoE)
                hidden = out.hidden + mlp.combine(out.normed, out.expert_ids, out.weights)
            on_layer(run.first + run.count)
        return hidden


def layer_tensors(layer: DecoderLayer) -> LayerTensors:
    """What the kernel of a layer reads."""
    attention, mlp = layer.self_attn, layer.mlp
    queries = attention.q_b_proj if attention.q_proj is None else attention.q_proj
    assert queries is not None
    moe = mlp if isinstance(mlp, MoE) else None
    shared = mlp.shared_experts if isinstance(mlp, MoE) else mlp
    return LayerTensors(
        input_layernorm=layer.input_layernorm,
        q_a_proj=attention.q_a_proj,
        q_a_layernorm=attention.q_a_layernorm,
        q_proj=queries,
        kv_a_proj_with_mqa=attention.kv_a_proj_with_mqa,
        kv_a_layernorm=attention.kv_a_layernorm,
        kv_b_proj=attention.kv_b,
        o_proj=attention.o_proj,
        post_attention_layernorm=layer.post_attention_layernorm,
        gate=None if moe is None else moe.gate.weight,
        experts=moe.experts.table if moe is not None and isinstance(moe.experts, ResidentExperts) else None,
        shared=None if shared is None else shared.table,
        expert_counts=None if moe is None else moe.expert_counts,
    )
