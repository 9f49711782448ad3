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
from dslite.model.kernels import triton_attention, triton_embedding, triton_experts, triton_grouped, triton_products
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
    return torch.full(shape, float("nan") if dtype.is_floating_point else -(10**9), dtype=dtype)


def close(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# Products.


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of the shapes at a size that an interpreter gets through: rows, of a program, values (bytes) at once."""
    monkeypatch.setattr(triton_products, "TILES", ((7, 1, 64), (20, 4, 32), (10**6, 16, 16)))
    monkeypatch.setattr(triton_products, "TOKEN_TILES", ((20, 16, 128), (10**6, 32, 64)))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("rows", [1, 5, 7, 8, 20, 21, 47])
@pytest.mark.parametrize("width", [1, 16, 37, 64, 65, 150])
@pytest.mark.parametrize("more", [0, 3])
def test_a_normed_product_equals_its_reference(width: int, rows: int, more: int) -> None:
    check_normed_product(1, width, rows, more)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("tokens", [2, 5, 16])
@pytest.mark.parametrize("rows", [1, 20, 47])
@pytest.mark.parametrize("width", [1, 37, 150])
@pytest.mark.parametrize(("more", "exact"), [(0, True), (3, False), (0, False)])
def test_a_normed_product_of_several_tokens_equals_its_reference(
    tokens: int, width: int, rows: int, more: int, exact: bool
) -> None:
    check_normed_product(tokens, width, rows, more, exact)


def check_normed_product(tokens: int, width: int, rows: int, more: int, exact: bool = False) -> None:
    # The rows of x lie apart, as parts of a product with another one do.
    x, norm = (normal(tokens, width + 3) * 3)[:, :width], 1 + normal(width, seed=1)
    first, second = normal(rows, width, seed=2), normal(more, width, seed=3)
    guarded = poisoned(tokens + 1, rows + more)
    triton_products.launch_norm_product(x, norm, first, second if more else None, guarded[:-1], EPS, exact)
    expected = F.linear(rms_norm(x, norm, EPS), torch.cat([first, second]))
    torch.testing.assert_close(guarded[:-1], expected, rtol=1e-5, atol=3e-5)
    assert guarded[-1].isnan().all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("rows", [1, 7, 9, 33])
@pytest.mark.parametrize("width", [1, 37, 150])
def test_a_product_with_its_residual_equals_its_reference(tokens: int, width: int, rows: int) -> None:
    x, weight, residual = normal(tokens, width), normal(rows, width, seed=1), normal(tokens, rows, seed=2)
    guarded = poisoned(tokens + 1, rows)
    triton_products.launch_add_product(x, weight, residual, guarded[:-1])
    torch.testing.assert_close(guarded[:-1], residual + x @ weight.T, rtol=1e-5, atol=3e-5)
    assert guarded[-1].isnan().all()


@pytest.mark.parametrize("by_token", [True, False], ids=["a table on the device", "rows that came from the host"])
def test_embeddings_and_rotations_are_the_networks(by_token: bool) -> None:
    tokens, positions, table = [3, 0, 6], [0, 17, 40_000], normal(7, 1500)
    state = torch.tensor([[token, position, 1] for token, position in zip(tokens, positions, strict=True)])
    frequencies = torch.rand(5, generator=torch.Generator().manual_seed(4))
    hidden, factors = poisoned(3, 1500), poisoned(3, 5, 2)
    rows = table[tokens]
    triton_embedding.launch_embed(state, table if by_token else rows, frequencies, hidden, factors, 1.25, by_token)
    assert torch.equal(hidden, rows)
    # At 40,000 a float32 angle has an error of 2e-3: the same one on both sides.
    expected = torch.view_as_real(rotation(torch.tensor(positions), frequencies, 1.25))
    torch.testing.assert_close(factors, expected, rtol=0, atol=2e-6)


# Attention.


class Attending:
    """A token behind each of `positions` others in a layer of a random network: by the kernels and by the network.

    Each token has a sequence of its own.
    """

    def __init__(self, positions: list[int], splits: int, **sizes: int) -> None:
        self.config = ModelConfig.from_dict(tiny_config(num_hidden_layers=2, **sizes))
        shapes = parameter_shapes(self.config)

        def take(name: str) -> Tensor:
            shape = shapes[f"model.layers.0.self_attn.{name}.weight"]
            return normal(*shape, seed=sum(name.encode())) * (1 if len(shape) == 1 else shape[-1] ** -0.5)

        self.own = MultiHeadLatentAttention.build(self.config, take)
        self.positions, self.splits, self.layer = positions, splits, 1
        self.hidden = normal(len(positions), self.config.hidden_size, seed=5) * 2
        frequencies = torch.rand(self.config.qk_rope_head_dim // 2, generator=torch.Generator().manual_seed(4))
        self.factors = rotation(torch.tensor(positions), frequencies, 1.25)
        self.buffers = [poisoned(2, position + 3, self.config.latent_width) for position in positions]
        for number, (position, buffer) in enumerate(zip(positions, self.buffers, strict=True)):
            buffer[self.layer, :position] = normal(position, self.config.latent_width, seed=6 + number)

    def expected(self) -> Tensor:
        """The attention's output (T, D)."""
        rows = []
        for place, (position, buffer) in enumerate(zip(self.positions, self.buffers, strict=True)):
            cache = LatentKVCache(self.config, position + 1, dtype=torch.float32)
            cache.put(buffer[:, :position])
            own = slice(place, place + 1)
            rows.append(self.own(self.layer, self.hidden[own], self.factors[own], [Span(cache, 1)]))
        return torch.cat(rows)

    def output(self) -> Tensor:
        """By the kernels (T, D); the tokens' entries are in the buffers."""
        config, own, tokens = self.config, self.own, len(self.positions)
        heads, latent, nope = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
        places = [
            [0, position, *(layer.data_ptr() for layer in buffer)]
            for position, buffer in zip(self.positions, self.buffers, strict=True)
        ]
        state = torch.tensor(places)
        assert isinstance(own.q_proj, Tensor)
        assert isinstance(own.kv_a_proj_with_mqa, Tensor)
        assert isinstance(own.kv_b_proj, Tensor)
        assert isinstance(own.o_proj, Tensor)
        projected = F.linear(self.hidden, torch.cat([own.q_proj, own.kv_a_proj_with_mqa]))
        q, kv = projected.split([len(own.q_proj), config.latent_width], dim=-1)
        queries, values = poisoned(tokens, heads, config.latent_width), poisoned(tokens, heads, config.v_head_dim)
        sums, logs = poisoned(tokens, heads, self.splits, latent), poisoned(tokens, heads, self.splits)
        factors = torch.view_as_real(self.factors)
        triton_attention.launch_absorb(
            state, self.layer, q, kv, own.kv_a_layernorm, own.kv_b_proj, factors, queries, nope, LATENT_EPS
        )
        triton_attention.launch_attend_splits(state, self.layer, queries, sums, logs, config.softmax_scale)
        triton_attention.launch_merge_values(sums, logs, own.kv_b_proj, values, nope)
        return F.linear(values.flatten(1), own.o_proj)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("position", [0, 1, 14, 15, 16, 17, 31, 62, 63, 64, 65, 100])
def test_attention_equals_the_networks_at_every_length(position: int, splits: int) -> None:
    attending = Attending([position], splits)
    close(attending.output(), attending.expected())


@pytest.mark.parametrize("positions", [[3, 70], [0, 33, 100, 1, 16], list(range(0, 160, 10))], ids=len)
def test_attention_of_several_sequences_equals_the_networks(positions: list[int]) -> None:
    attending = Attending(positions, 3, num_attention_heads=3)
    close(attending.output(), attending.expected())


@pytest.mark.parametrize(
    ("heads", "latent", "rope", "nope", "value"),
    [(16, 512, 64, 128, 128), (1, 16, 16, 16, 16), (3, 30, 6, 5, 19), (17, 40, 10, 24, 8), (20, 66, 2, 1, 33)],
)
def test_attention_equals_the_networks_at_every_size(heads: int, latent: int, rope: int, nope: int, value: int) -> None:
    sizes = {"kv_lora_rank": latent, "qk_rope_head_dim": rope, "qk_nope_head_dim": nope, "v_head_dim": value}
    attending = Attending([36], 3, num_attention_heads=heads, **sizes)
    close(attending.output(), attending.expected())


def test_the_cache_gets_the_row_that_the_network_would_write_and_no_other() -> None:
    attending = Attending([20, 7], 2)
    before = [buffer.clone() for buffer in attending.buffers]
    attending.output()
    rows = attending.own._entries(attending.hidden, attending.factors)
    for position, buffer, old, row in zip(attending.positions, attending.buffers, before, rows, strict=True):
        close(buffer[1, position], row)
        buffer[1, position] = old[1, position]
        assert torch.equal(buffer.nan_to_num(7.0), old.nan_to_num(7.0))


def test_attention_survives_scores_that_overflow_exponentials() -> None:
    attending = Attending([39], 4)
    attending.buffers[0][1, :39] *= 1000
    torch.testing.assert_close(attending.output(), attending.expected(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("multiprocessors", [16, 82, 108, 132, 188])
@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 16])
def test_splits_occupy_a_gpu_and_no_more(tokens: int, multiprocessors: int) -> None:
    count = triton_attention.splits(16, tokens, multiprocessors)
    assert 1 <= count <= triton_attention.MOST_SPLITS
    assert (
        count == triton_attention.MOST_SPLITS or multiprocessors <= count * tokens <= 2 * multiprocessors or count == 1
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
    shared = None if layer.shared_experts is None else layer.shared_experts.tensors
    return triton_experts.address_table([expert.tensors for expert in layer.experts.experts], shared)


def run_experts(
    x: Tensor, norm: Tensor, scores: Tensor, table: Tensor, width: int, chosen: int, entries: int, scaling: float = 1.7
) -> tuple[Tensor, Tensor, Tensor]:
    """By the kernels: x (T, D) + the experts of rms_norm(x), ids and weights (T, M) of what was computed."""
    tokens = len(x)
    products, out = poisoned(tokens, entries, width), poisoned(*x.shape)
    ids, weights = poisoned(tokens, entries, dtype=torch.int64), poisoned(tokens, entries)
    triton_experts.launch_gate_up(x, norm, scores, table, products, ids, weights, chosen, scaling, EPS)
    triton_experts.launch_down_combine(products, table, ids, weights, x, out)
    parts, other = poisoned(tokens, entries, x.shape[1]), poisoned(*x.shape)
    triton_experts.launch_down_tokens(products, table, ids, parts, x.element_size())
    triton_experts.launch_combine_entries(parts, weights, x, other)
    assert (out - other).norm() <= 1e-6 * out.norm()
    return out, ids, weights


@pytest.mark.parametrize("tokens", [1, 2, 5, 16])
@pytest.mark.parametrize(
    ("hidden", "width", "n_experts", "chosen", "n_shared"),
    [(64, 32, 8, 3, 2), (300, 24, 4, 1, 0), (37, 19, 5, 5, 1), (16, 264, 2, 1, 1), (24, 8, 64, 6, 2)],
)
def test_router_and_experts_equal_the_networks(
    tokens: int, hidden: int, width: int, n_experts: int, chosen: int, n_shared: int
) -> None:
    layer = moe(hidden, width, n_experts, chosen, n_shared)
    x, norm = normal(tokens, hidden, seed=7), 1 + normal(hidden, seed=8)
    normed = rms_norm(x, norm, EPS)
    scores = poisoned(tokens, n_experts)
    triton_products.launch_norm_product(x, norm, layer.gate.weight, None, scores, EPS, exact=True)
    expert_ids, expected_weights = layer.gate(normed)
    out, ids, weights = run_experts(x, norm, scores, table_of(layer), width, chosen, chosen + n_shared)
    shared = range(n_experts, n_experts + n_shared)
    assert ids.tolist() == [[*row, *shared] for row in expert_ids.tolist()]
    close(weights, torch.cat([expected_weights, torch.ones(tokens, n_shared)], 1))
    expected = x + layer(normed)
    assert (out - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize(("hidden", "width"), [(64, 160), (37, 19), (2050, 3)])
def test_a_dense_layer_equals_the_networks(tokens: int, hidden: int, width: int) -> None:
    dense, x, norm = mlp(width, hidden, 3), normal(tokens, hidden, seed=7), 1 + normal(hidden, seed=8)
    table = triton_experts.address_table([], dense.tensors)
    assert table.shape == (1, 4)
    out, _, weights = run_experts(x, norm, poisoned(tokens, 1), table, width, 0, 1)
    expected = x + dense.reference(rms_norm(x, norm, EPS))
    assert (out - expected).norm() <= 1e-6 * expected.norm()
    assert weights.tolist() == [[1.0]] * tokens


def choices(scores: list[Tensor], chosen: int) -> list[list[int]]:
    """What the kernel chooses by the scores of some tokens."""
    layer = moe(16, 8, len(scores[0]), chosen, 0)
    tokens = normal(len(scores), 16)
    _, ids, _ = run_experts(tokens, torch.ones(16), torch.stack(scores), table_of(layer), 8, chosen, chosen)
    return ids.tolist()


@pytest.mark.parametrize("tokens", [1, 3])
def test_of_equal_scores_the_expert_of_the_lower_number_is_chosen(tokens: int) -> None:
    assert choices([torch.tensor([0.5, 2.0, 0.5, 2.0, 0.5])] * tokens, 4) == [[1, 3, 0, 2]] * tokens
    assert choices([torch.zeros(5)] * tokens, 3) == [[0, 1, 2]] * tokens


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
@pytest.mark.parametrize("tokens", [1, 3])
def test_scores_that_are_no_numbers_choose_experts_that_exist_once_each(bad: float, tokens: int) -> None:
    assert choices([torch.tensor([bad, 1.0, bad, 3.0, bad])] * tokens, 4) == [[3, 1, 0, 2]] * tokens
    assert choices([torch.full((5,), bad)] * tokens, 5) == [[0, 1, 2, 3, 4]] * tokens


@pytest.mark.parametrize("tokens", [1, 3])
def test_experts_that_nobody_chose_are_not_read(tokens: int) -> None:
    layer, x, norm = moe(32, 16, 4, 2, 0), normal(tokens, 32), torch.ones(32)
    table, scores = table_of(layer), torch.tensor([[1.0, 0.0, 2.0, 0.0]] * tokens)
    expected, _, _ = run_experts(x, norm, scores, table, 16, 2, 2)
    table[1] = table[3] = 0  # addresses that no program may read
    out, ids, _ = run_experts(x, norm, scores, table, 16, 2, 2)
    assert ids.tolist() == [[2, 0]] * tokens
    assert torch.equal(out, expected)


# Experts of a prompt.


@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "routed", "chosen", "most"),
    [
        (2, 48, 16, 24, 4, 24),  # some experts get nothing
        (17, 90, 34, 40, 6, 7),  # widths that no tile divides
        (90, 64, 176, 8, 3, 3),  # long tiles, several an expert
        (150, 33, 7, 12, 5, 12),
        (3, 40, 24, 7, 7, 7),  # every expert is chosen by every token
        (65, 32, 16, 1, 1, 1),
        (5, 32, 16, 128, 8, 128),
    ],
)
@pytest.mark.parametrize("rows", [16, 64])
def test_grouped_experts_are_those_one_by_one(
    tokens: int,
    hidden: int,
    width: int,
    routed: int,
    chosen: int,
    most: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_grouped, "tile_rows", lambda *_: rows)
    monkeypatch.setattr(triton_grouped, "SORT_STEP", 64)
    x, scale = normal(tokens, hidden, seed=1), hidden**-0.5
    bank = ResidentExperts(
        [
            MLP(*(normal(*shape, seed=9 * e + part) * scale for part, shape in enumerate(shapes)))
            for e, shapes in enumerate([((width, hidden), (width, hidden), (hidden, width))] * routed)
        ]
    )
    weights, ids = torch.rand(tokens, most, generator=torch.Generator().manual_seed(2)).topk(chosen)
    out = triton_grouped.experts(x, ids, weights, bank.addresses, width)
    close(out, bank.reference(x, ids, weights))


def test_choices_are_sorted_by_expert_and_keep_their_order() -> None:
    ids = torch.randint(0, 9, (70, 3), generator=torch.Generator().manual_seed(3))
    order, starts = poisoned(210, dtype=torch.int32), poisoned(10, dtype=torch.int32)
    triton_grouped.launch_sort_choices(ids, order, starts)
    assert order.tolist() == ids.flatten().argsort(stable=True).tolist()
    assert starts.tolist() == [0, *torch.bincount(ids.flatten(), minlength=9).cumsum(0).tolist()]
