"""Lines a second are rationed, and those that were left out are counted."""

import pytest

from cplane.logs import LogRateLimiter


class Clock:
    """`time.monotonic`, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("cplane.logs.time.monotonic", clock)
    return clock


def test_so_many_lines_are_allowed_at_once_and_the_rest_is_counted(clock: Clock) -> None:
    ration = LogRateLimiter(20)
    assert [ration.allows() for _ in range(100)] == [True] * 20 + [False] * 80
    assert ration.untold() == 80
    assert ration.untold() == 0


def test_lines_come_back_with_time_but_do_not_pile_up(clock: Clock) -> None:
    ration = LogRateLimiter(20)
    for _ in range(20):
        ration.allows()
    clock.now += 0.01
    assert not ration.allows()
    clock.now += 0.05
    assert ration.allows()
    assert not ration.allows()
    assert ration.untold() == 2
    clock.now += 3600
    assert [ration.allows() for _ in range(30)] == [True] * 20 + [False] * 10


def test_a_slow_trickle_is_told_line_by_line(clock: Clock) -> None:
    ration = LogRateLimiter(20)
    for _ in range(200):
        assert ration.allows()
        clock.now += 0.06
    assert ration.untold() == 0
