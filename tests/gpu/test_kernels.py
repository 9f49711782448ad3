"""The kernels at the sizes of Lite on a real GPU, against torch. `make gpu-check` runs this; nothing else does."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.attention import LATENT_EPS, rms_norm
from dslite.model.kernels import gpu, gpu_limits
from dslite.model.moe import MLP
from dslite.model.rope import rotate, rotation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is interpreted: run make gpu-check"),
]

DEVICE = "cuda"
HIDDEN, HEADS, NOPE, ROPE, LATENT, VALUE, WIDTH, EXPERTS, CHOSEN, SHARED = 2048, 16, 128, 64, 512, 128, 1408, 64, 6, 2
EPS = 1e-6
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
# Euclidean norms, against float32 arithmetic on the same values. BF16 has eight bits.
TOLERANCES = {torch.bfloat16: 8e-3, torch.float32: 1e-5}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, std: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std).to(DEVICE, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)


def close(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (out.float() - expected.float()).norm() / expected.float().norm()
    assert error <= TOLERANCES[dtype], f"relative error {float(error):.2e}"


def test_triton_compiles_and_runs_here() -> None:
    assert gpu.usable(torch.device(DEVICE, torch.cuda.current_device()))


TOKENS = pytest.mark.parametrize("tokens", [1, 2, 16])


@DTYPES
@TOKENS
@pytest.mark.parametrize(("rows", "more"), [(3072, 576), (64, 0), (102_400, 0), (2047, 5)])
def test_a_normed_product_equals_torchs(rows: int, more: int, tokens: int, dtype: torch.dtype) -> None:
    from dslite.model.kernels.triton_products import launch_norm_product

    x, norm = normal(tokens, HIDDEN, dtype=dtype), 1 + normal(HIDDEN, dtype=dtype, seed=1, std=0.1)
    first, second = normal(rows, HIDDEN, dtype=dtype, seed=2), normal(more, HIDDEN, dtype=dtype, seed=3)
    out = poisoned(tokens, rows + more, dtype=dtype)
    launch_norm_product(x, norm, first, second if more else None, out, EPS, exact=rows == EXPERTS)
    close(out, F.linear(rms_norm(x.float(), norm.float(), EPS), torch.cat([first, second]).float()), dtype)


@DTYPES
@TOKENS
def test_a_product_with_its_residual_equals_torchs(tokens: int, dtype: torch.dtype) -> None:
    from dslite.model.kernels.triton_products import launch_add_product

    x, weight = normal(tokens, HEADS * VALUE, dtype=dtype), normal(HIDDEN, HEADS * VALUE, dtype=dtype, seed=1, std=0.02)
    residual, out = normal(tokens, HIDDEN, dtype=dtype, seed=2), poisoned(tokens, HIDDEN, dtype=dtype)
    launch_add_product(x, weight, residual, out)
    close(out, residual.float() + x.float() @ weight.float().T, dtype)


@DTYPES
@pytest.mark.parametrize(
    "positions",
    [[0], [1], [15], [16], [511], [1023], [1024], [5000], [32_767], [3, 9000], [700 * place for place in range(16)]],
    ids=str,
)
def test_attention_equals_torchs_at_every_length(positions: list[int], dtype: torch.dtype) -> None:
    from dslite.model.kernels import triton_attention

    tokens = len(positions)
    rows = [poisoned(2, position + 2, LATENT + ROPE, dtype=dtype) for position in positions]
    for number, (position, own) in enumerate(zip(positions, rows, strict=True)):
        own[1, :position] = normal(position, LATENT + ROPE, dtype=dtype, seed=10 + number, std=0.5)
    q, kv = (
        normal(tokens, HEADS * (NOPE + ROPE), dtype=dtype, seed=2),
        normal(tokens, LATENT + ROPE, dtype=dtype, seed=3),
    )
    kv_norm, kv_b = 1 + normal(LATENT, dtype=dtype, seed=4, std=0.1), normal(HEADS * (NOPE + VALUE), LATENT, seed=5)
    kv_b = (kv_b * LATENT**-0.5).to(dtype)
    places = [[0, at, *(layer.data_ptr() for layer in own)] for at, own in zip(positions, rows, strict=True)]
    state = torch.tensor(places, device=DEVICE)
    factors = rotation(state[:, 1], torch.rand(ROPE // 2, device=DEVICE), 1.0)
    queries, values = poisoned(tokens, HEADS, LATENT + ROPE, dtype=dtype), poisoned(tokens, HEADS, VALUE, dtype=dtype)
    splits = triton_attention.splits(HEADS, tokens, gpu_limits.multiprocessors(torch.device(DEVICE)))
    sums = poisoned(tokens, HEADS, splits, LATENT, dtype=torch.float32)
    logs = poisoned(tokens, HEADS, splits, dtype=torch.float32)
    pairs = torch.view_as_real(factors)
    triton_attention.launch_absorb(state, 1, q, kv, kv_norm, kv_b, pairs, queries, NOPE, LATENT_EPS)
    triton_attention.launch_attend_splits(state, 1, queries, sums, logs, 0.1147)
    triton_attention.launch_merge_values(sums, logs, kv_b, values, NOPE)

    entries = torch.cat([rms_norm(kv[:, :LATENT], kv_norm, LATENT_EPS), rotate(kv[:, LATENT:], factors)], dim=-1)
    by_head = kv_b.float().view(HEADS, NOPE + VALUE, LATENT)
    for token, (position, own) in enumerate(zip(positions, rows, strict=True)):
        close(own[1, position], entries[token], dtype)
        assert own[1, position + 1].isnan().all()
        assert own[0].isnan().all()
        nope, rope = q[token].view(HEADS, NOPE + ROPE).float().split([NOPE, ROPE], dim=-1)
        absorbed = torch.einsum("hn,hnc->hc", nope, by_head[:, :NOPE])
        asked = torch.cat([absorbed, rotate(rope[None], factors[token : token + 1])[0]], dim=-1)
        known = own[1, : position + 1].float()
        latents = (asked @ known.T * 0.1147).softmax(-1) @ known[:, :LATENT]
        # Scores are made of queries rounded to the network's dtype: in BF16 that is some hundredths of a score.
        error = 4 * TOLERANCES[dtype] if dtype is torch.bfloat16 else 5e-5
        expected = torch.einsum("hc,hvc->hv", latents, by_head[:, NOPE:])
        assert (values[token].float() - expected).norm() / expected.norm() <= error


@DTYPES
@TOKENS
@pytest.mark.parametrize("dense", [False, True], ids=["experts", "dense"])
def test_router_and_experts_equal_torchs(dense: bool, tokens: int, dtype: torch.dtype) -> None:
    from dslite.model.kernels import triton_experts

    def mlp(width: int, seed: int) -> MLP:
        generator = torch.Generator(DEVICE).manual_seed(seed)

        def matrix(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator, device=DEVICE) * HIDDEN**-0.5).to(dtype)

        return MLP(matrix(width, HIDDEN), matrix(width, HIDDEN), matrix(HIDDEN, width))

    width, chosen, entries = (10_944, 0, 1) if dense else (WIDTH, CHOSEN, CHOSEN + SHARED)
    routed = [] if dense else [mlp(WIDTH, 10 * seed) for seed in range(EXPERTS)]
    always = mlp(10_944 if dense else SHARED * WIDTH, 5)
    table = triton_experts.address_table([expert.tensors for expert in routed], always.tensors)
    x, norm = normal(tokens, HIDDEN, dtype=dtype, seed=7), 1 + normal(HIDDEN, dtype=dtype, seed=8, std=0.1)
    scores = normal(tokens, EXPERTS, seed=9)
    products, out = poisoned(tokens, entries, width, dtype=torch.float32), poisoned(tokens, HIDDEN, dtype=dtype)
    ids, weights = torch.full((tokens, entries), -1, device=DEVICE), poisoned(tokens, entries, dtype=torch.float32)
    triton_experts.launch_gate_up(x, norm, scores, table, products, ids, weights, chosen, 1.0, EPS)
    triton_experts.launch_down_combine(products, table, ids, weights, x, out)
    parts, other = poisoned(tokens, entries, HIDDEN, dtype=torch.float32), poisoned(tokens, HIDDEN, dtype=dtype)
    triton_experts.launch_down_tokens(products, table, ids, parts, x.element_size())
    triton_experts.launch_combine_entries(parts, weights, x, other)

    normed = rms_norm(x.float(), norm.float(), EPS)
    best = scores.softmax(-1).topk(chosen)
    assert ids[:, :chosen].tolist() == best.indices.tolist()
    expected = x.float()
    for token in range(tokens):
        chosen_ones = zip(best.indices[token].tolist(), best.values[token].tolist(), strict=True)
        for part, weight in [*((routed[i], w) for i, w in chosen_ones), (always, 1.0)]:
            gate, up, down = (matrix.float() for matrix in part.tensors)
            own = normed[token]
            expected[token] += weight * F.linear(F.silu(F.linear(own, gate)) * F.linear(own, up), down)
    close(out, expected, dtype)
    close(other, expected, dtype)
