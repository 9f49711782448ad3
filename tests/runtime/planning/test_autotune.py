"""Whose products a CPU takes: measured once, kept, and followed."""

from pathlib import Path

import pytest
import torch

from dslite.model import kernels
from dslite.model.kernels import ExpertTable, native
from dslite.runtime.planning import autotune
from dslite.runtime.planning.autotune import choose_products, torch_from

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "thresholds", native.KernelThresholds())
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({32: (1.0, 2.0), 128: (1.0, 1.1)}, None),
        ({32: (1.0, 2.0), 128: (2.0, 1.0)}, 128),
        ({32: (2.0, 1.0), 128: (1.0, 2.0)}, None),
        ({128: (2.0, 1.0), 32: (1.0, 2.0), 256: (3.0, 1.0)}, 128),
        ({32: (2.0, 1.0), 128: (2.0, 1.0)}, native.MOST_TOKENS + 1),
        ({32: (1.0, 2.0), 128: (1.04, 1.0)}, None),
    ],
    ids=["never", "from many on", "only for few", "out of order", "always", "by a hair"],
)
def test_torchs_products_are_taken_from_where_they_win_throughout(
    seconds: dict[int, tuple[float, float]], expected: int | None
) -> None:
    assert torch_from(seconds) == expected


def test_products_are_measured_once_for_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(_: native.NativeProducts) -> dict[int, tuple[float, float]]:
        measured.append(1)
        return {32: (1.0, 2.0), 128: (2.0, 1.0)}

    monkeypatch.setattr(autotune, "_measure", measure)
    for turns in (1, 1):
        native.thresholds.torch_from = None
        choose_products()
        assert (len(measured), native.thresholds.torch_from) == (turns, 128)
    choose_products(refresh=True)
    assert len(measured) == 2
    monkeypatch.setattr(autotune, "cpu_name", lambda: "another")
    choose_products()
    assert len(measured) == 3


@pytest.mark.parametrize("kept", [b"", b"[]", b'{"machine": 1}', b'{"torch_from": "x"}'])
def test_what_was_kept_and_cannot_be_read_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bytes
) -> None:
    (tmp_path / "products.json").write_bytes(kept)
    monkeypatch.setattr(autotune, "_measure", lambda _: {32: (2.0, 1.0)})
    choose_products()
    assert native.thresholds.torch_from == native.MOST_TOKENS + 1


def test_the_choice_is_followed_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("our own products were taken")

    weight = torch.ones(64, 64).bfloat16()
    table = ExpertTable([(weight, weight, weight)] * 4)
    native.thresholds.torch_from = 40
    assert "40 rows" in native.describe()
    monkeypatch.setattr(native.NativeProducts, "linear", refuse)
    kernels.linear(torch.ones(40, 64).bfloat16(), weight)
    with pytest.raises(AssertionError):
        kernels.linear(torch.ones(39, 64).bfloat16(), weight)
    ids, shares = torch.zeros(80, 2, dtype=torch.int64), torch.ones(80, 2)
    assert kernels.weighted_experts(torch.ones(80, 64).bfloat16(), ids, shares, table) is None  # 40 rows an expert
    assert kernels.weighted_experts(torch.ones(79, 64).bfloat16(), ids[:79], shares[:79], table) is not None


def test_measuring_tries_both_at_every_number_of_rows() -> None:
    native_products = native.products()
    assert native_products is not None
    seconds = autotune._measure(native_products)
    assert list(seconds) == [32, 128, 256]
    assert all(ours > 0 and theirs > 0 for ours, theirs in seconds.values())
