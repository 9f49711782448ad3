"""The GPU's kernels against their torch references, in Triton's interpreter: no GPU is needed, and none is used.

The interpreter multiplies BF16 wrongly (triton issue 11584), so values are float32 here; that the kernels compile for
BF16 is what test_triton_compiled.py shows.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not here")
from support.checkpoints import tiny_config

from dslite.model.attention import LATENT_EPS, MultiHeadLatentAttention, Span, rms_norm
from dslite.model.config import ModelConfig
from dslite.model.kernels import triton_attention, triton_experts, triton_products
from dslite.model.moe import MLP, Gate, MoE, ResidentExperts
from dslite.model.parameters import parameter_shapes
from dslite.model.rope import rotation
from dslite.runtime.cache.latent_cache import LatentKVCache

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here")

EPS = 0.3  # so large that its absence shows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output: whatever a kernel forgets to write shows as NaN, or as a number that no address has."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else -(10**15), dtype=dtype)


def close(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# Products.


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the three shapes at a size that an interpreter gets through: rows, of a program, values at once."""
    monkeypatch.setattr(triton_products, "TILES", ((7, 1, 64), (20, 4, 32), (10**6, 16, 16)))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [1, 5, 7, 8, 20, 21, 47])
@pytest.mark.parametrize("width", [1, 16, 37, 64, 65, 150])
@pytest.mark.parametrize("more", [0, 3])
def test_a_normed_product_equals_its_reference(width: int, rows: int, more: int) -> None:
    x, norm = normal(width) * 3, 1 + normal(width, seed=1)
    first, second = normal(rows, width, seed=2), normal(more, width, seed=3)
    guarded = poisoned(rows + more + 1)
    triton_products.launch_norm_product(x, norm, first, second if more else None, guarded[:-1], EPS)
    expected = F.linear(rms_norm(x, norm, EPS), torch.cat([first, second]))
    torch.testing.assert_close(guarded[:-1], expected, rtol=1e-5, atol=3e-5)
    assert guarded[-1].isnan()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [1, 7, 9, 33])
@pytest.mark.parametrize("width", [1, 37, 150])
def test_a_product_with_its_residual_equals_its_reference(width: int, rows: int) -> None:
    x, weight, residual = normal(width), normal(rows, width, seed=1), normal(rows, seed=2)
    guarded = poisoned(rows + 1)
    triton_products.launch_add_product(x, weight, residual, guarded[:-1])
    torch.testing.assert_close(guarded[:-1], residual + weight @ x, rtol=1e-5, atol=3e-5)
    assert guarded[-1].isnan()


# Attention.


class Attending:
    """One token behind `position` others in a layer of a random network, by the kernels and by the network's code."""

    def __init__(self, position: int, splits: int, **sizes: int) -> None:
        self.config = ModelConfig.from_dict(tiny_config(num_hidden_layers=2, **sizes))
        shapes = parameter_shapes(self.config)

        def take(name: str) -> Tensor:
            shape = shapes[f"model.layers.0.self_attn.{name}.weight"]
            return normal(*shape, seed=sum(name.encode())) * (1 if len(shape) == 1 else shape[-1] ** -0.5)

        self.own = MultiHeadLatentAttention.build(self.config, take)
        self.position, self.splits = position, splits
        self.hidden = normal(1, self.config.hidden_size, seed=5) * 2
        frequencies = torch.rand(self.config.qk_rope_head_dim // 2, generator=torch.Generator().manual_seed(4))
        self.factors = rotation(torch.tensor([position]), frequencies, 1.25)
        self.layer = 1
        self.buffer = poisoned(2, position + 3, self.config.latent_width)
        self.buffer[self.layer, :position] = normal(position, self.config.latent_width, seed=6)

    def expected(self) -> Tensor:
        """The attention's output (D,)."""
        cache = LatentKVCache(self.config, self.position + 1, dtype=torch.float32)
        cache.put(self.buffer[:, : self.position])
        return self.own(self.layer, self.hidden, self.factors, [Span(cache, 1)])[0]

    def values(self) -> Tensor:
        """By the kernels: the heads' values (H, V), the token's row in the buffer."""
        config, own = self.config, self.own
        heads, latent, nope = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
        state = torch.tensor([0, self.position, *(layer.data_ptr() for layer in self.buffer)])
        assert own.q_proj is not None
        q, kv = F.linear(self.hidden, own.q_proj)[0], F.linear(self.hidden, own.kv_a_proj_with_mqa)[0]
        queries, values = poisoned(heads, config.latent_width), poisoned(heads, config.v_head_dim)
        sums, logs = poisoned(heads, self.splits, latent), poisoned(heads, self.splits)
        factors = torch.view_as_real(self.factors)[0]
        triton_attention.launch_absorb(
            state, self.layer, q, kv, own.kv_a_layernorm, own.kv_b_proj, factors, queries, nope, LATENT_EPS
        )
        triton_attention.launch_attend_splits(state, self.layer, queries, sums, logs, config.softmax_scale)
        triton_attention.launch_merge_values(sums, logs, own.kv_b_proj, values, nope)
        return values


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("position", [0, 1, 14, 15, 16, 17, 31, 62, 63, 64, 65, 100])
def test_attention_equals_the_networks_at_every_length(position: int, splits: int) -> None:
    attending = Attending(position, splits)
    close(F.linear(attending.values().view(-1), attending.own.o_proj), attending.expected())


@pytest.mark.parametrize(
    ("heads", "latent", "rope", "nope", "value"),
    [(16, 512, 64, 128, 128), (1, 16, 16, 16, 16), (3, 30, 6, 5, 19), (17, 40, 10, 24, 8), (20, 66, 2, 1, 33)],
)
def test_attention_equals_the_networks_at_every_size(heads: int, latent: int, rope: int, nope: int, value: int) -> None:
    sizes = {"kv_lora_rank": latent, "qk_rope_head_dim": rope, "qk_nope_head_dim": nope, "v_head_dim": value}
    attending = Attending(36, 3, num_attention_heads=heads, **sizes)
    close(F.linear(attending.values().view(-1), attending.own.o_proj), attending.expected())


def test_the_cache_gets_the_row_that_the_network_would_write_and_no_other() -> None:
    attending = Attending(20, 2)
    before = attending.buffer.clone()
    attending.values()
    row = attending.own._entries(attending.hidden, attending.factors)
    close(attending.buffer[1, 20:21], row)
    attending.buffer[1, 20] = before[1, 20]
    assert torch.equal(attending.buffer.nan_to_num(7.0), before.nan_to_num(7.0))


def test_attention_survives_scores_that_overflow_exponentials() -> None:
    attending = Attending(39, 4)
    attending.buffer[1, :39] *= 1000
    torch.testing.assert_close(
        F.linear(attending.values().view(-1), attending.own.o_proj), attending.expected(), rtol=1e-4, atol=1e-3
    )


# Experts.


def mlp(width: int, hidden: int, seed: int) -> MLP:
    return MLP(
        normal(width, hidden, seed=seed) * 0.2,
        normal(width, hidden, seed=seed + 100) * 0.2,
        normal(hidden, width, seed=seed + 200) * 0.2,
    )


def moe(hidden: int, width: int, n_experts: int, chosen: int, n_shared: int, scaling: float = 1.7) -> MoE:
    """A random layer, drawn so that its weights differ much."""
    sizes = {"hidden_size": hidden, "n_routed_experts": n_experts, "num_experts_per_tok": chosen}
    config = ModelConfig.from_dict(tiny_config(routed_scaling_factor=scaling, **sizes))
    return MoE(
        Gate(normal(n_experts, hidden, seed=9), config),
        ResidentExperts([mlp(width, hidden, seed) for seed in range(n_experts)]),
        mlp(width * n_shared, hidden, 50) if n_shared else None,
    )


def table_of(layer: MoE) -> Tensor:
    assert isinstance(layer.experts, ResidentExperts)
    shared = None if layer.shared_experts is None else layer.shared_experts.matrices
    return triton_experts.address_table([expert.matrices for expert in layer.experts.experts], shared)


def run_experts(
    x: Tensor, norm: Tensor, scores: Tensor, table: Tensor, width: int, chosen: int, entries: int, scaling: float = 1.7
) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernels: x + the experts of rms_norm(x), ids and weights of what was computed."""
    products, out = poisoned(entries, width), poisoned(x.shape[0])
    ids, weights = poisoned(entries, dtype=torch.int64), poisoned(entries)
    triton_experts.launch_gate_up(x, norm, scores, table, products, ids, weights, chosen, scaling, EPS)
    triton_experts.launch_down_combine(products, table, ids, weights, x, out)
    return out, ids, weights


@pytest.mark.parametrize(
    ("hidden", "width", "n_experts", "chosen", "n_shared"),
    [(64, 32, 8, 3, 2), (300, 24, 4, 1, 0), (37, 19, 5, 5, 1), (16, 264, 2, 1, 1), (24, 8, 64, 6, 2)],
)
def test_router_and_experts_equal_the_networks(
    hidden: int, width: int, n_experts: int, chosen: int, n_shared: int
) -> None:
    layer = moe(hidden, width, n_experts, chosen, n_shared)
    x, norm = normal(hidden, seed=7), 1 + normal(hidden, seed=8)
    normed = rms_norm(x, norm, EPS)[None]
    scores = poisoned(n_experts)
    triton_products.launch_norm_product(x, norm, layer.gate.weight, None, scores, EPS)
    expert_ids, expected_weights = layer.gate(normed)
    out, ids, weights = run_experts(x, norm, scores, table_of(layer), width, chosen, chosen + n_shared)
    assert ids.tolist() == [*expert_ids[0].tolist(), *range(n_experts, n_experts + n_shared)]
    close(weights, torch.cat([expected_weights[0], torch.ones(n_shared)]))
    close(out, x + layer(normed)[0])


@pytest.mark.parametrize(("hidden", "width"), [(64, 160), (37, 19), (2050, 3)])
def test_a_dense_layer_equals_the_networks(hidden: int, width: int) -> None:
    dense, x, norm = mlp(width, hidden, 3), normal(hidden, seed=7), 1 + normal(hidden, seed=8)
    table = triton_experts.address_table([], dense.matrices)
    assert table.shape == (1, 4)
    out, _, weights = run_experts(x, norm, poisoned(1), table, width, 0, 1)
    expected = x + dense.reference(rms_norm(x, norm, EPS))
    assert (out - expected).norm() <= 1e-6 * expected.norm()
    assert weights.tolist() == [1.0]


def choices(scores: Tensor, chosen: int) -> list[int]:
    """What the kernel chooses by these scores."""
    layer = moe(16, 8, len(scores), chosen, 0)
    _, ids, _ = run_experts(normal(16), torch.ones(16), scores, table_of(layer), 8, chosen, chosen)
    return ids.tolist()


def test_of_equal_scores_the_expert_of_the_lower_number_is_chosen() -> None:
    assert choices(torch.tensor([0.5, 2.0, 0.5, 2.0, 0.5]), 4) == [1, 3, 0, 2]
    assert choices(torch.zeros(5), 3) == [0, 1, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_scores_that_are_no_numbers_choose_experts_that_exist_once_each(bad: float) -> None:
    assert choices(torch.tensor([bad, 1.0, bad, 3.0, bad]), 4) == [3, 1, 0, 2]
    assert choices(torch.full((5,), bad), 5) == [0, 1, 2, 3, 4]


def test_experts_that_nobody_chose_are_not_read() -> None:
    layer, x, norm = moe(32, 16, 4, 2, 0), normal(32), torch.ones(32)
    table, scores = table_of(layer), torch.tensor([1.0, 0.0, 2.0, 0.0])
    expected, _, _ = run_experts(x, norm, scores, table, 16, 2, 2)
    table[1] = table[3] = 0  # addresses that no program may read
    out, ids, _ = run_experts(x, norm, scores, table, 16, 2, 2)
    assert ids.tolist() == [2, 0]
    assert torch.equal(out, expected)
