"""One decoder layer: attention and MLP, each behind a norm and added to the residual (DeepSeek-V2 paper, section 2)."""

# T tokens  D hidden

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dslite.model.attention import Form, MultiHeadLatentAttention, Span, last_of_each, rms_norm
from dslite.model.config import ModelConfig
from dslite.model.moe import MLP, ExpertBank, Gate, MoE, ResidentExperts
from dslite.model.quantized import Weight, plain

TakeTensor = Callable[[str], Weight]  # Hub name → tensor, or where the model is quantized a quantized matrix
MakeBank = Callable[[int], ExpertBank]  # layer → its routed experts


@dataclass(frozen=True)
class DecoderLayer:
    """Attention and MLP, each behind a norm and added to the residual."""

    index: int
    input_layernorm: Tensor
    self_attn: MultiHeadLatentAttention
    post_attention_layernorm: Tensor
    mlp: MLP | MoE
    eps: float

    def __call__(
        self, hidden: Tensor, factors: Tensor, spans: Sequence[Span], form: Form = "auto", *, last_only: bool = False
    ) -> Tensor:
        """hidden (T, D): (T, D), or with `last_only` (spans, D)."""
        normed = rms_norm(hidden, self.input_layernorm, self.eps)
        attended = self.self_attn(self.index, normed, factors, spans, form, last_only=last_only)
        hidden = (last_of_each(hidden, spans) if last_only else hidden) + attended
        return hidden + self.mlp(rms_norm(hidden, self.post_attention_layernorm, self.eps))


def build_layer(config: ModelConfig, index: int, take: TakeTensor, make_bank: MakeBank) -> DecoderLayer:
    """Layer `index` of a network, its tensors taken by their Hub names."""

    def take_from(prefix: str) -> TakeTensor:
        return lambda name: take(f"model.layers.{index}.{prefix}{name}.weight")

    here = take_from("")
    return DecoderLayer(
        index=index,
        input_layernorm=plain(here("input_layernorm")),
        self_attn=MultiHeadLatentAttention.build(config, take_from("self_attn.")),
        post_attention_layernorm=plain(here("post_attention_layernorm")),
        mlp=_build_moe(config, index, take_from, make_bank) if config.is_moe(index) else MLP.build(take_from("mlp.")),
        eps=config.rms_norm_eps,
    )


def _build_moe(config: ModelConfig, index: int, take_from: Callable[[str], TakeTensor], make_bank: MakeBank) -> MoE:
    return MoE(
        gate=Gate(plain(take_from("mlp.")("gate")), config),
        experts=make_bank(index),
        shared_experts=MLP.build(take_from("mlp.shared_experts.")) if config.n_shared_experts else None,
    )


def resident_experts(config: ModelConfig, layer: int, take: TakeTensor) -> ResidentExperts:
    """All experts of a layer, taken by their Hub names."""

    def take_expert(expert: int) -> MLP:
        return MLP.build(lambda name: take(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"))

    return ResidentExperts([take_expert(expert) for expert in range(config.n_routed_experts)])
