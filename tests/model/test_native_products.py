"""The compiled products against torch in float64, at every level of instructions that this processor has."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dslite.model import kernels
from dslite.model.attention import rms_norm
from dslite.model.kernels import ExpertTable, native, structs
from dslite.model.kernels.library import find_library
from dslite.model.moe import MLP, ResidentExperts

# Sums are kept in float32, so what is left is one rounding to BF16: at most 2^-8 of a value, about 2^-9 of a vector's
# norm; and float32's own noise, which shows where a sum all but vanishes.
ROUNDED = 2**-8
ROUNDED_NORM = 2**-9
NOISE = 1e-5

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")


@pytest.fixture(params=native.LEVELS)
def products(request: pytest.FixtureRequest) -> native.NativeProducts:
    if request.param not in native.levels():
        pytest.skip(f"this processor has no {request.param}")
    made = native.products(request.param)
    assert made is not None
    return made


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda *shape, scale=1.0: (torch.randn(*shape, generator=generator) * scale).bfloat16()


def relative_error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


def experts_in_float64(hidden: Tensor, ids: Tensor, weights: Tensor, experts: list[MLP]) -> Tensor:
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    for row, (chosen, shares) in enumerate(zip(ids.tolist(), weights.tolist(), strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            gate, up, down = (matrix.double() for matrix in experts[expert].matrices)
            x = hidden[row].double()
            total[row] += share * (down @ (torch.nn.functional.silu(gate @ x) * (up @ x)))
    return total


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 15, 16, 17, 18, 19, 23, 64, 301])
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (3, 96), (17, 160), (33, 32), (64, 2048), (1100, 224)])
def test_linear_equals_float64_but_for_one_rounding(
    products: native.NativeProducts, random: Callable[..., Tensor], tokens: int, rows: int, width: int
) -> None:
    x, weight = random(tokens, width), random(rows, width)
    exact = x.double() @ weight.double().T
    out = products.linear(x, weight)
    assert ((out.double() - exact).abs() <= exact.abs() * ROUNDED + NOISE * width**0.5).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tokens", [3, 600])
def test_linear_does_not_depend_on_threads(
    products: native.NativeProducts, random: Callable[..., Tensor], threads: int, tokens: int
) -> None:
    x, weight = random(tokens, 256), random(333, 256)
    expected = products.linear(x, weight)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(products.linear(x, weight), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("tokens", [2, 20])
def test_linear_reads_weights_at_odd_addresses(
    products: native.NativeProducts, random: Callable[..., Tensor], tokens: int
) -> None:
    x, weight = random(tokens, 64), random(9, 64)
    shifted = torch.empty(9 * 64 + 1, dtype=torch.bfloat16)[1:].view(9, 64).copy_(weight)
    assert torch.equal(products.linear(x, shifted), products.linear(x, weight))


@pytest.mark.parametrize("tokens", [2, 20])
def test_linear_reads_rows_that_lie_apart(
    products: native.NativeProducts, random: Callable[..., Tensor], tokens: int
) -> None:
    x, weight = random(tokens, 96), random(9, 64)
    assert torch.equal(products.linear(x[:, :64], weight), products.linear(x[:, :64].contiguous(), weight))


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 17, 50, 131])
@pytest.mark.parametrize(
    ("hidden_size", "width", "n_experts", "chosen"),
    [(64, 32, 5, 2), (160, 96, 9, 6), (96, 480, 1, 1), (32, 4128, 3, 2)],
)
def test_experts_equal_float64(
    products: native.NativeProducts,
    random: Callable[..., Tensor],
    tokens: int,
    hidden_size: int,
    width: int,
    n_experts: int,
    chosen: int,
) -> None:
    experts = [
        MLP(
            random(width, hidden_size, scale=0.1),
            random(width, hidden_size, scale=0.1),
            random(hidden_size, width, scale=0.1),
        )
        for _ in range(n_experts)
    ]
    hidden = random(tokens, hidden_size)
    ids = torch.stack(
        [torch.randperm(n_experts, generator=torch.Generator().manual_seed(t))[:chosen] for t in range(tokens)]
    )
    weights = torch.rand(tokens, chosen, generator=torch.Generator().manual_seed(9))
    exact = experts_in_float64(hidden, ids, weights, experts)
    out = products.experts(hidden, ids, weights, ExpertTable([expert.matrices for expert in experts]))
    reference = ResidentExperts(experts).reference(hidden, ids, weights)
    assert out.dtype is torch.float32
    assert relative_error(out, exact) <= ROUNDED_NORM
    assert relative_error(out, exact) <= relative_error(reference, exact)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_experts_of_many_tokens_do_not_depend_on_threads(
    products: native.NativeProducts, random: Callable[..., Tensor], threads: int
) -> None:
    table = ExpertTable([(random(96, 160), random(96, 160), random(160, 96)) for _ in range(8)])
    hidden = random(90, 160)
    ids = torch.rand(90, 8, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :3].contiguous()
    weights = torch.rand(90, 3, generator=torch.Generator().manual_seed(3))
    expected = products.experts(hidden, ids, weights, table)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(products.experts(hidden, ids, weights, table), expected)
    finally:
        torch.set_num_threads(before)


def test_experts_that_nobody_chose_are_not_read(products: native.NativeProducts, random: Callable[..., Tensor]) -> None:
    poison = torch.full((64, 64), float("nan"), dtype=torch.bfloat16)
    used = random(64, 64), random(64, 64), random(64, 64)
    table = ExpertTable([(poison, poison, poison), used, (poison, poison, poison)])
    out = products.experts(random(40, 64), torch.ones(40, 1, dtype=torch.int64), torch.ones(40, 1), table)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_norms_equal_float64_but_for_two_roundings(
    products: native.NativeProducts, random: Callable[..., Tensor], tokens: int
) -> None:
    x, weight = random(tokens, 160, scale=30.0)[:, :96], random(96)
    exact = x.double() * (x.double().square().mean(1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    out = products.norms(x, weight, 1e-6)
    assert ((out.double() - exact).abs() <= exact.abs() * 2 * ROUNDED).all()
    assert relative_error(products.norms(x * 0, weight, 1e-6), exact) == 1  # zeros, and no division by zero


def test_head_norms_multiplies_and_rounds_as_the_reference(
    products: native.NativeProducts, random: Callable[..., Tensor]
) -> None:
    hidden, norm, weight = random(3, 512), random(512), random(700, 512)
    reference = torch.nn.functional.linear(rms_norm(hidden, norm, 1e-6), weight).float()
    exact = rms_norm(hidden, norm, 1e-6).double() @ weight.double().T
    out = products.head(hidden, norm, weight, 1e-6)
    assert out.dtype is torch.float32
    assert relative_error(out, exact) <= relative_error(reference, exact) * 1.01


def expanded_in_float64(queries: Tensor, rows: Tensor, kv_b: Tensor, scale: float) -> Tensor:
    """Keys and values are rounded to BF16, as they are wherever they are kept."""
    (tokens, heads, width), latent = queries.shape, kv_b.shape[1]
    made = (rows[:, :latent].double() @ kv_b.double().T).bfloat16().double().unflatten(1, (heads, -1))
    nope = width - (rows.shape[1] - latent)
    keys = torch.cat([made[..., :nope], rows[:, None, latent:].double().expand(-1, heads, -1)], dim=-1)
    scores = torch.einsum("thk,shk->hts", queries.double(), keys) * scale
    seen = torch.ones(tokens, len(keys), dtype=torch.bool).tril(len(keys) - tokens)
    return torch.einsum("hts,shv->thv", scores.masked_fill(~seen, float("-inf")).softmax(-1), made[..., nope:])


@pytest.mark.parametrize(
    ("tokens", "length"), [(1, 1), (2, 2), (5, 69), (64, 64), (65, 65), (7, 128), (97, 300), (193, 260), (400, 400)]
)
@pytest.mark.parametrize(
    ("heads", "nope", "rope", "value", "latent"), [(2, 128, 64, 128, 512), (3, 10, 6, 32, 32), (9, 32, 32, 96, 64)]
)
def test_attention_of_a_prompt_equals_float64(
    products: native.NativeProducts,
    random: Callable[..., Tensor],
    tokens: int,
    length: int,
    heads: int,
    nope: int,
    rope: int,
    value: int,
    latent: int,
) -> None:
    if products.level == "portable" and tokens > 100:
        pytest.skip("slow there, and the same code")
    queries, kept = random(tokens, heads, nope + rope), random(2, length, latent + rope)
    kept[0] = float("nan")  # another layer's
    kv_b = random(heads * (nope + value), latent, scale=latent**-0.5)
    exact = expanded_in_float64(queries, kept[1], kv_b, 0.2)
    out = products.prefill(queries, kept[1], kv_b, 0.2)
    # Exponentials are rounded to BF16 before they weigh the values, as torch's fused kernel does.
    assert relative_error(out, exact) <= 1.5 * ROUNDED_NORM


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_attention_does_not_depend_on_threads(
    products: native.NativeProducts, random: Callable[..., Tensor], threads: int
) -> None:
    queries, rows, kv_b = random(150, 5, 48), random(330, 80), random(5 * 64, 64, scale=0.1)
    expected = products.prefill(queries, rows, kv_b, 0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(products.prefill(queries, rows, kv_b, 0.2), expected)
    finally:
        torch.set_num_threads(before)


def absorbed_in_float64(queries: Tensor, rows: Tensor, latent: int, scale: float) -> Tensor:
    tokens, past = queries.shape[0], len(rows) - queries.shape[0]
    scores = torch.einsum("thc,sc->hts", queries.double(), rows.double()) * scale
    seen = torch.ones(tokens, len(rows), dtype=torch.bool).tril(past)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hts,sc->thc", weights, rows[:, :latent].double())


@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (2, 2), (5, 69), (17, 64), (16, 65), (33, 700), (90, 150)])
@pytest.mark.parametrize(("heads", "latent", "rope"), [(16, 512, 64), (3, 32, 6), (1, 96, 32), (7, 64, 2)])
def test_absorbed_attention_of_many_tokens_equals_float64(
    products: native.NativeProducts,
    random: Callable[..., Tensor],
    tokens: int,
    length: int,
    heads: int,
    latent: int,
    rope: int,
) -> None:
    if products.level == "portable" and tokens * length * latent > 100_000:
        pytest.skip("slow there, and the same code")
    queries, kept = random(tokens, heads, latent + rope), random(2, length, latent + rope)
    kept[0] = float("nan")  # another layer's
    exact = absorbed_in_float64(queries, kept[1], latent, 0.2)
    out = products.absorbed(queries, kept[1], latent, 0.2)
    assert relative_error(out, exact) <= 1.5 * ROUNDED_NORM


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 64), torch.ones(4, 64)),
        (torch.ones(2, 48).bfloat16(), torch.ones(4, 48).bfloat16()),
        (torch.ones(17, 64).bfloat16(), torch.ones(4, 64).bfloat16()),
        (torch.ones(64, 2).bfloat16().T, torch.ones(4, 64).bfloat16()),
        (torch.ones(2, 64).bfloat16(), torch.ones(64, 4).bfloat16().T),
        (torch.ones(2, 64).bfloat16(), torch.ones(4, 64).bfloat16().requires_grad_()),
    ],
    ids=["float32", "width", "many rows", "strided rows", "strided weight", "training"],
)
def test_what_the_kernels_cannot_read_goes_to_torch(x: Tensor, weight: Tensor) -> None:
    expert = MLP(weight, weight, weight.T if weight.T.is_contiguous() else weight.T.contiguous())
    assert kernels.head(x, weight[0], weight, 1e-6) is None
    if x.shape[1] == weight.shape[1]:
        assert torch.equal(expert(x), expert.reference(x))


def test_without_the_library_torch_answers(random: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random(1, 64), random(64, 64)
    expert = MLP(weight, weight, weight)
    monkeypatch.setattr(native, "products", lambda: None)
    assert torch.equal(expert(x), expert.reference(x))
    assert kernels.head(x, weight[0], weight, 1e-6) is None


@pytest.mark.parametrize("tokens", [1, 17])
def test_nan_in_the_weights_is_not_hidden(
    products: native.NativeProducts, random: Callable[..., Tensor], tokens: int
) -> None:
    x, weight = random(tokens, 64), random(8, 64)
    weight[3, 7] = float("nan")
    out = products.linear(x, weight)
    assert out.isnan().nonzero().tolist() == [[row, 3] for row in range(tokens)]


class OtherLibrary:
    """A library whose structs have other sizes."""

    def __init__(self, differing: int) -> None:
        self.dslite_sizeof = Sizes(differing)


class Sizes:
    def __init__(self, differing: int) -> None:
        self._differing = differing
        self.argtypes: object = None
        self.restype: object = None

    def __call__(self, kind: int) -> int:
        return ctypes.sizeof(structs.STRUCTS[kind]) + 8 * (kind == self._differing)


@pytest.mark.parametrize("kind", range(4))
def test_a_library_with_a_struct_of_another_size_is_not_used(kind: int) -> None:
    assert structs.same_sizes(OtherLibrary(-1))  # type: ignore[arg-type]
    assert not structs.same_sizes(OtherLibrary(kind))  # type: ignore[arg-type]


def test_the_compiled_library_has_the_structs_that_python_fills() -> None:
    library = find_library()
    assert library is not None
    assert structs.same_sizes(library)
    assert library.dslite_sizeof(len(structs.STRUCTS)) == 0


@pytest.mark.parametrize("level", native.levels())
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_products_by_head_equal_the_reference(level: str, tokens: int) -> None:
    """Parts of wider rows, and matrices that lie apart, as attention's do."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 3, 64 + 32, generator=random).bfloat16()[..., :64]
    weights = torch.randn(3, 50, 64, generator=random).bfloat16()[:, 10:43]
    native_products = native.products(level)
    assert native_products is not None
    assert native.suits_by_head(x, weights)
    out = native_products.by_head(x, weights)
    expected = torch.einsum("thk,hnk->thn", x.float(), weights.float())
    assert (out.float() - expected).norm() <= 4e-3 * expected.norm()
