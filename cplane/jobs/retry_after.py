"""The header `Retry-After`: for how long a server asks its clients to back off."""

from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from cplane.errors import MAX_COOL_DOWN_S, TooManyRequests

STATUSES = frozenset({429, 503})
MAX_HEADER_CHARS = 100

respected: ContextVar[bool] = ContextVar("Retry-After is respected", default=False)
"""Whether the running job has a host that can cool down (`per_host`), and the settings enable it."""


def parse(header: str, now: datetime | None = None) -> float | None:
    """Return the seconds to wait.

    Args:
        header: value of the header: "120", or "Wed, 21 Oct 2026 07:28:00 GMT".
        now: time that a date is compared with; by default the current time of this machine.

    Returns:
        Seconds, 0 to 3600; None if the header is neither a number of seconds nor an HTTP date.
    """
    text = header.strip()[:MAX_HEADER_CHARS]
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
    """Raise an error for a response that asks the client to retry later.

    Jobs without a host, and jobs for which the settings ignore the header, are not affected.

    Args:
        status: HTTP status of the response.
        header: value of `Retry-After`; None if it is absent.
        url: URL of the response, for the message.

    Raises:
        TooManyRequests: the status is 429 or 503, and the header is valid.
    """
    if status not in STATUSES or header is None or not respected.get():
        return
    wait_s = parse(header)
    if wait_s is not None:
        raise TooManyRequests(
            f"{url} returned HTTP status {status} and Retry-After: {wait_s:g} s", retry_after_s=wait_s
        )
