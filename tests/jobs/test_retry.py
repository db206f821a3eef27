"""Whether a failed job runs again, and after which delay."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cplane.jobs.retry import RetryPolicy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retries": -1}, "retries must be 0 to 1000, not -1"),
        ({"retries": 1001}, "retries must be 0 to 1000, not 1001"),
        ({"retries": 2.0}, "retries must be 0 to 1000, not 2.0"),
        ({"retries": True}, "retries must be 0 to 1000, not True"),
        ({"backoff_s": -0.1}, "backoff_s must be 0 or more, not -0.1"),
        ({"backoff_s": math.nan}, "backoff_s must be 0 or more, not nan"),
        ({"factor": 0.9}, "factor must be 1 to 1000, not 0.9"),
        ({"factor": 1000.1}, "factor must be 1 to 1000, not 1000.1"),
        ({"max_backoff_s": -1}, "max_backoff_s must be 0 to 316224000"),
        ({"max_backoff_s": math.inf}, "max_backoff_s must be 0 to 316224000"),
        ({"jitter": -0.1}, "jitter must be 0 to 1, not -0.1"),
        ({"jitter": 1.1}, "jitter must be 0 to 1, not 1.1"),
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**fields)


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    policy = RetryPolicy(backoff_s=2, factor=3, max_backoff_s=50, jitter=0)
    assert [policy.delay_s(failures) for failures in (1, 2, 3, 4, 1000)] == [2, 6, 18, 50, 50]
    assert RetryPolicy(backoff_s=0, jitter=0).delay_s(1) == 0


def test_jitter_takes_off_at_most_its_share_and_spreads_the_delays() -> None:
    policy = RetryPolicy(backoff_s=100, jitter=0.25)
    delays = [policy.delay_s(1) for _ in range(200)]
    assert all(75 <= delay <= 100 for delay in delays)
    assert max(delays) - min(delays) > 5


@settings(database=None, deadline=None)
@given(
    retries=st.integers(0, 1000),
    backoff_s=st.floats(0, allow_nan=False),
    factor=st.floats(1, 1000),
    max_backoff_s=st.floats(0, 10 * 366 * 86_400),
    jitter=st.floats(0, 1),
    failures=st.integers(1, 1001),
)
def test_every_policy_has_a_delay_within_its_bounds(  # noqa: PLR0917
    retries: int, backoff_s: float, factor: float, max_backoff_s: float, jitter: float, failures: int
) -> None:
    policy = RetryPolicy(
        retries=retries, backoff_s=backoff_s, factor=factor, max_backoff_s=max_backoff_s, jitter=jitter
    )
    assert 0 <= policy.delay_s(failures) <= max_backoff_s


def test_a_job_runs_again_up_to_its_number_of_retries() -> None:
    policy = RetryPolicy(retries=2)
    assert [policy.allows(ValueError(), failures) for failures in (1, 2, 3)] == [True, True, False]
    assert not RetryPolicy(retries=0).allows(ValueError(), 1)


def test_only_listed_error_types_are_retried_and_never_overrides_on() -> None:
    policy = RetryPolicy(on=(OSError,), never=(FileNotFoundError,))
    assert policy.allows(ConnectionResetError(), 1)
    assert not policy.allows(ValueError(), 1)
    assert not policy.allows(FileNotFoundError(), 1)
    assert not RetryPolicy().allows(KeyboardInterrupt(), 1)
