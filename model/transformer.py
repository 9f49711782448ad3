"""The forward pass over a network, by the path that suits the number of tokens and the device.

    a token a sequence on a GPU  decode_cuda   recorded launches
    few tokens on a CPU          decode_cpu    the compiled layer kernel
    everything else              decoder_layer torch's products, or compiled ones one by one (kernels/)

A forward pass calls back between its layers: the caller reports progress there, and stops the pass by an exception.
"""

# T tokens  D hidden

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.attention import Form, Span, last_of_each
from dslite.model.config import ModelConfig
from dslite.model.decode_cpu import CpuDecode
from dslite.model.decode_cuda import CudaDecode, GraphRecorder
from dslite.model.decoder_layer import DecoderLayer, MakeBank, TakeTensor
from dslite.model.network import Network, output_logits
from dslite.model.quantized_layout import Weights
from dslite.model.rope import rotation

OnLayer = Callable[[int], None]  # called with the number of layers that are done


def _report_nothing(_: int) -> None:
    pass


def _always_valid() -> None:
    """The check of weights in memory of this process: nothing else writes them."""


@dataclass(frozen=True)
class Transformer:
    """DeepSeek-V2 for a batch of sequences whose new tokens lie one behind the other.

    `check` raises where mapped weights are no longer what they were. `recorder` records the launches of a step for
    the next; None: every step launches anew. `weights` says how products are kept: as published, or quantized.
    """

    network: Network
    check: Callable[[], None] = _always_valid
    recorder: GraphRecorder | None = None
    weights: Weights = "bfloat16"

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        take: TakeTensor,
        make_bank: MakeBank | None = None,
        recorder: GraphRecorder | None = None,
        check: Callable[[], None] = _always_valid,
        weights: Weights = "bfloat16",
    ) -> "Transformer":
        """See Network.build."""
        return cls(Network.build(config, take, make_bank), check, recorder, weights)

    @property
    def config(self) -> ModelConfig:
        return self.network.config

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        return self.network.layers

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    def forward(
        self,
        token_ids: Tensor,
        spans: Sequence[Span],
        form: Form = "auto",
        *,
        last_only: bool = False,
        on_layer: OnLayer = _report_nothing,
    ) -> Tensor:
        """Hidden states (T, D) of token ids (T,), or with `last_only` (spans, D) of the last token of each span.

        Of a prompt only the last token's state is wanted: then nothing but latent entries is computed for the others in
        the last layer. `on_layer` is called after each layer, or each group of layers that one kernel computes.
        The caches hold the new tokens once this returns; an exception (of `on_layer`, too) leaves them as they were.
        """
        self.check()
        hidden = self._recorded_step(token_ids, spans, form, on_layer)
        if hidden is None:
            hidden = self._layers(token_ids, spans, form, last_only, on_layer)
        self.check()
        for span in spans:
            span.cache.commit(span.count)
        return hidden

    def _recorded_step(self, token_ids: Tensor, spans: Sequence[Span], form: Form, on_layer: OnLayer) -> Tensor | None:
        step = self.step_recorder
        return step.run(token_ids, spans, on_layer) if step is not None and step.suits(token_ids, spans, form) else None

    def _layers(
        self, token_ids: Tensor, spans: Sequence[Span], form: Form, last_only: bool, on_layer: OnLayer
    ) -> Tensor:
        """forward() without a recording, before the new entries are committed."""
        network = self.network
        positions = torch.cat(
            [torch.arange(span.cache.length, span.cache.length + span.count, device=self.device) for span in spans]
        )
        factors = rotation(positions, network.frequencies, network.amplitude)
        # The embedding may lie in host memory: a token needs one row of it.
        hidden = F.embedding(token_ids.to(network.embed_tokens.device), network.embed_tokens).to(self.device)
        if self._few_tokens.suits(hidden, form):
            hidden = self._few_tokens.run(hidden, factors, spans, on_layer)
            hidden = last_of_each(hidden, spans) if last_only else hidden
        else:
            for layer in network.layers:
                hidden = layer(hidden, factors, spans, form, last_only=last_only and layer is network.layers[-1])
                on_layer(layer.index + 1)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (T, vocabulary) of the token behind each hidden state (T, D), float32."""
        network = self.network
        logits = output_logits(hidden, network.norm, network.lm_head, network.config.rms_norm_eps)
        self.check()
        return logits

    @cached_property
    def _few_tokens(self) -> CpuDecode:
        return CpuDecode(self.network)

    @cached_property
    def step_recorder(self) -> CudaDecode | None:
        """Decodes one token of each of a few sequences by recorded launches; None where the device records none."""
        return None if self.recorder is None else CudaDecode(self.network, self.recorder)
