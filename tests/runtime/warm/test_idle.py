"""The time without work."""

from support.warm import FakeClock

from dslite.runtime.warm.idle import IdleTimer


def test_idle_time_counts_from_the_end_of_the_last_work() -> None:
    clock = FakeClock()
    timer = IdleTimer(60.0, clock)
    clock.now = 50.0
    assert (timer.idle_s, timer.left_s) == (50.0, 10.0)
    with timer.working(), timer.working():
        clock.now = 500.0
        assert (timer.idle_s, timer.left_s) == (0.0, 60.0)
    clock.now = 559.0
    assert (timer.idle_s, timer.left_s) == (59.0, 1.0)
    clock.now = 600.0
    assert timer.left_s == 0.0


def test_without_a_limit_it_never_ends() -> None:
    clock = FakeClock()
    timer = IdleTimer(None, clock)
    clock.now = 1e9
    assert timer.left_s is None
