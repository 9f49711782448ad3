"""The whole network.

A forward pass is a generator over layers, so that whoever drives it can report and stop between them.
"""

# T tokens  D hidden

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model import kernels
from dslite.model.attention import Form, MultiHeadLatentAttention, Span, last_of_each, rms_norm
from dslite.model.config import ModelConfig
from dslite.model.decode_cpu import CpuDecode
from dslite.model.decode_cuda import CudaDecode, GraphRecorder
from dslite.model.moe import MLP, ExpertBank, Gate, MoE, ResidentExperts
from dslite.model.rope import amplitude, inverse_frequencies, rotation

TakeTensor = Callable[[str], Tensor]
MakeBank = Callable[[int], ExpertBank]


@dataclass(frozen=True)
class DecoderLayer:
    """Attention and MLP, each behind a norm and beside a residual."""

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


def _nothing_changes() -> None:
    """Weights in memory of the process stay what they are."""


@dataclass(frozen=True)
class Transformer:
    """DeepSeek-V2 for a batch of sequences whose new tokens lie one behind the other."""

    config: ModelConfig
    embed_tokens: Tensor
    layers: Sequence[DecoderLayer]
    norm: Tensor
    lm_head: Tensor
    frequencies: Tensor
    amplitude: float
    check: Callable[[], None] = _nothing_changes  # raises where the weights are no longer what they were
    recorder: GraphRecorder | None = None  # what keeps one token's launches for the next; None: launch each time

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        take: TakeTensor,
        make_bank: MakeBank | None = None,
        recorder: GraphRecorder | None = None,
        check: Callable[[], None] = _nothing_changes,
    ) -> "Transformer":
        """`take` gives the tensor of a Hub name; `make_bank` the experts of a layer (default: taken too)."""
        make_bank = make_bank or (lambda layer: resident_experts(config, layer, take))
        embed_tokens = take("model.embed_tokens.weight")
        layers = [_build_layer(config, index, take, make_bank) for index in range(config.num_hidden_layers)]
        lm_head = take("lm_head.weight")
        return cls(
            config=config,
            embed_tokens=embed_tokens,
            layers=layers,
            norm=take("model.norm.weight"),
            lm_head=lm_head,
            frequencies=inverse_frequencies(config).to(lm_head.device),
            amplitude=amplitude(config),
            recorder=recorder,
            check=check,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.dtype

    @property
    def device(self) -> torch.device:
        return self.lm_head.device

    def steps(
        self, token_ids: Tensor, spans: Sequence[Span], form: Form = "auto", *, last_only: bool = False
    ) -> Generator[int, None, Tensor]:
        """Run token ids (T,) through the layers, yielding after each the number done; returns hidden (T, D).

        With `last_only` hidden (spans, D), of the last token of each span: a prompt's others are needed for their rows
        alone, and of the last layer nothing else is computed for them.
        The caches hold the new tokens once the generator has returned; dropped before, it leaves them as they were.
        """
        self.check()
        if self._one_token is not None and self._one_token.suits(token_ids, spans, form):
            hidden = yield from self._one_token.steps(token_ids, spans[0])
            self.check()
            spans[0].cache.commit(1)
            return hidden
        positions = torch.cat(
            [torch.arange(span.cache.length, span.cache.length + span.count, device=self.device) for span in spans]
        )
        factors = rotation(positions, self.frequencies, self.amplitude)
        # The embedding may lie in host memory: a token needs one row of it.
        hidden = F.embedding(token_ids.to(self.embed_tokens.device), self.embed_tokens).to(self.device)
        if self._few_tokens.suits(hidden, form):
            hidden = yield from self._few_tokens.steps(hidden, factors, spans)
            hidden = last_of_each(hidden, spans) if last_only else hidden
        else:
            for layer in self.layers:
                hidden = layer(hidden, factors, spans, form, last_only=last_only and layer is self.layers[-1])
                yield layer.index + 1
        self.check()
        for span in spans:
            span.cache.commit(span.count)
        return hidden

    def forward(
        self, token_ids: Tensor, spans: Sequence[Span], form: Form = "auto", *, last_only: bool = False
    ) -> Tensor:
        """All steps at once: hidden states (T, D) of token ids (T,), or with `last_only` (spans, D)."""
        steps = self.steps(token_ids, spans, form, last_only=last_only)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                hidden: Tensor = end.value
                return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (T, vocabulary) of the token behind each hidden state (T, D), float32."""
        eps = self.config.rms_norm_eps
        logits = kernels.head(hidden, self.norm, self.lm_head, eps)
        if logits is None:
            logits = F.linear(rms_norm(hidden, self.norm, eps), self.lm_head).float()
        self.check()
        return logits

    @cached_property
    def _few_tokens(self) -> CpuDecode:
        return CpuDecode(self.config, self.layers)

    @cached_property
    def _one_token(self) -> CudaDecode | None:
        # Given a copy: in a circle of references the weights would stay in memory when nobody wants them any more.
        return None if self.recorder is None else CudaDecode(replace(self, recorder=None), self.recorder)


def _build_layer(config: ModelConfig, index: int, take: TakeTensor, make_bank: MakeBank) -> DecoderLayer:
    def take_from(prefix: str) -> TakeTensor:
        return lambda name: take(f"model.layers.{index}.{prefix}{name}.weight")

    here = take_from("")
    return DecoderLayer(
        index=index,
        input_layernorm=here("input_layernorm"),
        self_attn=MultiHeadLatentAttention.build(config, take_from("self_attn.")),
        post_attention_layernorm=here("post_attention_layernorm"),
        mlp=_build_moe(config, index, take_from, make_bank) if config.is_moe(index) else MLP.build(take_from("mlp.")),
        eps=config.rms_norm_eps,
    )


def _build_moe(config: ModelConfig, index: int, take_from: Callable[[str], TakeTensor], make_bank: MakeBank) -> MoE:
    return MoE(
        gate=Gate(take_from("mlp.")("gate"), config),
        experts=make_bank(index),
        shared_experts=MLP.build(take_from("mlp.shared_experts.")) if config.n_shared_experts else None,
    )


def resident_experts(config: ModelConfig, layer: int, take: TakeTensor) -> ResidentExperts:
    """All experts of a layer, taken by their Hub names."""

    def take_expert(expert: int) -> MLP:
        return MLP.build(lambda name: take(f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"))

    return ResidentExperts([take_expert(expert) for expert in range(config.n_routed_experts)])
