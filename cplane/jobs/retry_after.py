"""`Retry-After`: how long a server that has had enough asks to be left alone."""

from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cplane.errors import MAX_COOL_DOWN_S, TooManyRequests

STATUSES = frozenset({429, 503})
LONGEST_HEADER = 100

respected: ContextVar[bool] = ContextVar("Retry-After is respected", default=False)
"""Whether the job that runs here has a host that can be left alone (`per_host`), and the settings want it."""


def parse(header: str, now: datetime | None = None) -> float | None:
    """Seconds to wait, at least 0 and at most an hour; None: it is neither a number of seconds nor an HTTP date.

    Args:
        header: what the server sent: "120", or "Wed, 21 Oct 2026 07:28:00 GMT".
        now: the time a date is compared with, by default this machine's.
    """
    text = header.strip()[:LONGEST_HEADER]
    if text.isascii() and text.isdigit():
        return float(min(int(text), MAX_COOL_DOWN_S))
    try:
        at = parsedate_to_datetime(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        wait_s = (at - (now or datetime.now(UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, wait_s), float(MAX_COOL_DOWN_S))


def check(status: int, header: str | None, url: str) -> None:
    """Raise TooManyRequests for an answer that asks to come back later; nothing for jobs without a host, or where it is not respected."""
    if status not in STATUSES or header is None or not respected.get():
        return
    wait_s = parse(header)
    if wait_s is not None:
        raise TooManyRequests(
            f"{url} answered with HTTP status {status} and Retry-After: {wait_s:g} s", retry_after_s=wait_s
        )
