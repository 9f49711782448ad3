"""Sizes and times as people read them."""

import pytest

from dslite.runtime.units import size_text, time_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (31_104, "31.1 KB"), (419_430_400, "419.4 MB"), (31_412_968_448, "31.4 GB")],
)
def test_sizes_are_decimal(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_times_have_two_units_at_most(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
