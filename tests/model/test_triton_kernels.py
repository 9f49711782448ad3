"""The GPU's kernels against their torch references, in Triton's interpreter: no GPU is needed, and none is used.

The interpreter multiplies BF16 wrongly (triton issue 11584), so values are float32 here; that the kernels compile for
BF16 is what test_triton_compiled.py shows.
"""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model.kernels import triton_attention, triton_experts
from dslite.model.moe import MLP, ResidentExperts

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here")


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel forgets to write shows as NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 63, 64, 65, 100])
@pytest.mark.parametrize("splits", [1, 4])
def test_attention_equals_its_reference_at_every_length(length: int, splits: int) -> None:
    queries, rows = normal(1, 16, 48), normal(128, 48, seed=1)
    rows[length:] = float("nan")  # rows that no token has reached
    lengths = torch.tensor([length], dtype=torch.int32)
    out = triton_attention.absorbed_attention(queries, rows, lengths, 32, 0.3, splits)
    expected = triton_attention.reference(queries, rows, lengths, 32, 0.3)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "latent", "rope"), [(16, 512, 64), (1, 16, 16), (3, 30, 6), (17, 40, 10), (20, 64, 2)]
)
def test_attention_equals_its_reference_at_every_size(heads: int, latent: int, rope: int) -> None:
    queries, rows = normal(2, heads, latent + rope), normal(70, latent + rope, seed=1)
    lengths = torch.tensor([37, 70], dtype=torch.int32)
    out = triton_attention.absorbed_attention(queries, rows, lengths, latent, 0.1, 3)
    expected = triton_attention.reference(queries, rows, lengths, latent, 0.1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_attention_lets_each_token_see_what_came_before_it() -> None:
    queries, rows = normal(5, 4, 40), normal(25, 40, seed=1)
    lengths = torch.arange(21, 26, dtype=torch.int32)
    out = triton_attention.absorbed_attention(queries, rows, lengths, 24, 0.3, 2)
    for token in range(5):
        alone = triton_attention.absorbed_attention(
            queries[token : token + 1], rows[: 21 + token], lengths[token : token + 1], 24, 0.3, 2
        )
        torch.testing.assert_close(out[token : token + 1], alone)


def test_attention_survives_scores_that_overflow_exponentials() -> None:
    queries, rows = normal(1, 2, 32) * 100, normal(40, 32, seed=1) * 10
    lengths = torch.tensor([40], dtype=torch.int32)
    out = triton_attention.absorbed_attention(queries, rows, lengths, 16, 1.0, 4)
    torch.testing.assert_close(out, triton_attention.reference(queries, rows, lengths, 16, 1.0), rtol=1e-4, atol=1e-4)


def test_attention_reads_rows_of_a_wider_buffer() -> None:
    buffer = normal(30, 64, seed=1)
    queries, rows = normal(1, 4, 40), buffer[:, :40]
    lengths = torch.tensor([30], dtype=torch.int32)
    out = triton_attention.absorbed_attention(queries, rows, lengths, 32, 0.3, 2)
    torch.testing.assert_close(out, triton_attention.reference(queries, rows, lengths, 32, 0.3), rtol=1e-5, atol=1e-5)


def mlp(width: int, hidden: int, seed: int) -> MLP:
    return MLP(
        normal(width, hidden, seed=seed) * 0.2,
        normal(width, hidden, seed=seed + 100) * 0.2,
        normal(hidden, width, seed=seed + 200) * 0.2,
    )


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(
    ("hidden_size", "width", "n_experts", "chosen", "n_shared"),
    [(64, 32, 8, 3, 2), (300, 24, 4, 1, 0), (37, 19, 5, 5, 1), (16, 264, 2, 1, 1)],
)
def test_experts_equal_their_reference(
    tokens: int, hidden_size: int, width: int, n_experts: int, chosen: int, n_shared: int
) -> None:
    routed = [mlp(width, hidden_size, seed) for seed in range(n_experts)]
    shared = mlp(width * n_shared, hidden_size, 50) if n_shared else None
    hidden = normal(tokens, hidden_size, seed=7)
    scores = torch.rand(tokens, n_experts, generator=torch.Generator().manual_seed(3)).softmax(-1)
    weights, ids = scores.topk(chosen)
    expected = ResidentExperts(routed).reference(hidden, ids, weights)
    if shared is not None:
        expected = expected + shared.reference(hidden)
    table = triton_experts.address_table(
        [expert.matrices for expert in routed], None if shared is None else shared.matrices
    )
    assert table.shape == (n_experts + n_shared, 4)
    out = triton_experts.mixed_experts(hidden, ids, weights, table, n_experts, width)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_experts_that_nobody_chose_are_not_read() -> None:
    routed = [mlp(16, 32, seed) for seed in range(4)]
    hidden, ids = normal(1, 32), torch.tensor([[2, 0]])
    table = triton_experts.address_table([expert.matrices for expert in routed], None)
    table[1] = table[3] = 0  # addresses that no program may read
    out = triton_experts.mixed_experts(hidden, ids, torch.tensor([[0.6, 0.3]]), table, 4, 16)
    expected = ResidentExperts(routed).reference(hidden, ids, torch.tensor([[0.6, 0.3]]))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_operators_have_shapes_without_a_device() -> None:
    """What a graph is planned with: on fake tensors of a GPU nothing is launched."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        queries = torch.empty(2, 16, 576, dtype=torch.bfloat16, device="cuda")
        rows = torch.empty(100, 576, dtype=torch.bfloat16, device="cuda")
        lengths = torch.empty(2, dtype=torch.int32, device="cuda")
        out = triton_attention.absorbed_attention(queries, rows, lengths, 512, 0.1, 8)
        assert (out.shape, out.dtype, out.device.type) == ((2, 16, 512), torch.bfloat16, "cuda")
        hidden = torch.empty(2, 2048, dtype=torch.bfloat16, device="cuda")
        ids = torch.empty(2, 6, dtype=torch.int64, device="cuda")
        weights = torch.empty(2, 6, device="cuda")
        table = torch.empty(66, 4, dtype=torch.int64, device="cuda")
        mixed = triton_experts.mixed_experts(hidden, ids, weights, table, 64, 1408)
        assert (mixed.shape, mixed.dtype, mixed.device.type) == ((2, 2048), torch.bfloat16, "cuda")
