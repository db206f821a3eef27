"""Log lines are limited per second, and suppressed lines are counted."""

import pytest

from cplane.logs import LogRateLimiter


class Clock:
    """`time.monotonic` that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("cplane.logs.time.monotonic", clock)
    return clock


def test_a_burst_is_allowed_up_to_the_limit_and_the_rest_is_counted(clock: Clock) -> None:
    limiter = LogRateLimiter(20)
    assert [limiter.allows() for _ in range(100)] == [True] * 20 + [False] * 80
    assert limiter.take_suppressed() == 80
    assert limiter.take_suppressed() == 0


def test_allowance_refills_with_time_but_does_not_accumulate(clock: Clock) -> None:
    limiter = LogRateLimiter(20)
    for _ in range(20):
        limiter.allows()
    clock.now += 0.01
    assert not limiter.allows()
    clock.now += 0.05
    assert limiter.allows()
    assert not limiter.allows()
    assert limiter.take_suppressed() == 2
    clock.now += 3600
    assert [limiter.allows() for _ in range(30)] == [True] * 20 + [False] * 10


def test_lines_below_the_limit_are_all_allowed(clock: Clock) -> None:
    limiter = LogRateLimiter(20)
    for _ in range(200):
        assert limiter.allows()
        clock.now += 0.06
    assert limiter.take_suppressed() == 0
