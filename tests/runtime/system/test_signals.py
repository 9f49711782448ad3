"""The signals that end a program, on systems that have some of them."""

import signal
from types import SimpleNamespace

import pytest

from dslite.runtime.system.signals import stop_signals


@pytest.mark.parametrize(
    ("has", "stops"),
    [
        ({"SIGINT": 2, "SIGTERM": 15, "SIGHUP": 1, "SIGUSR1": 10}, [2, 15, 1]),
        ({"SIGINT": 2, "SIGTERM": 15, "SIGBREAK": 21, "CTRL_C_EVENT": 0}, [2, 15, 21]),
    ],
    ids=["posix", "windows"],
)
def test_a_program_is_stopped_by_the_signals_that_its_system_has(has: dict[str, int], stops: list[int]) -> None:
    assert stop_signals(SimpleNamespace(**has)) == stops


def test_this_system_has_the_three_of_posix() -> None:
    assert set(stop_signals()) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
