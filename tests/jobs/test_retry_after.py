"""The header Retry-After: seconds, dates, and invalid values."""

from datetime import UTC, datetime

import pytest

from cplane import TooManyRequests
from cplane.jobs.retry_after import check, parse, respected

NOW = datetime(2026, 10, 21, 7, 28, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("99999999999999999999", 3600),
        ("Wed, 21 Oct 2026 07:29:30 GMT", 90),
        ("Wed, 21 Oct 2026 07:29:30", 90),
        ("Wednesday, 21-Oct-26 07:29:30 GMT", 90),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0),
        ("Wed, 21 Oct 2099 07:00:00 GMT", 3600),
        ("Wed, 99 Oct 2026 07:00:00 GMT", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("١٢", None),
        ("9" * 10_000, 3600),
        ("\0", None),
    ],
)
def test_the_header_is_seconds_or_a_date_and_at_most_an_hour(header: str, wait_s: float | None) -> None:
    assert parse(header, NOW) == wait_s


@pytest.mark.parametrize(("status", "header"), [(200, "5"), (500, "5"), (429, None), (503, "soon")])
def test_other_responses_raise_nothing(status: int, header: str | None) -> None:
    token = respected.set(True)
    try:
        check(status, header, "http://a.test/")
    finally:
        respected.reset(token)


def test_a_response_with_retry_after_is_an_error_only_where_the_header_is_respected() -> None:
    check(429, "5", "http://a.test/")
    token = respected.set(True)
    try:
        with pytest.raises(
            TooManyRequests, match=r"http://a.test/ returned HTTP status 429 and Retry-After: 5 s"
        ) as error:
            check(429, "5", "http://a.test/")
    finally:
        respected.reset(token)
    assert error.value.retry_after_s == 5
