"""Deadlines of requests, all on one timer.

A timer for each request, set and moved, took a tenth of the time of a submit.
`test_sequential_requests_need_one_timer` in `tests/web/test_deadlines.py` holds this. The module can go, replaced by
`asyncio.timeout`, when a submit over HTTP is as fast with it.
"""

import asyncio
import math
import time
from types import TracebackType
from typing import Self

TIMER_RESOLUTION_S = 0.001
"""Event loops count in milliseconds: a timer may fire this much too early."""


class Deadlines:
    """All deadlines of an app. The timer fires at the earliest one known when it was set; most end long before."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self.loop: asyncio.AbstractEventLoop | None = None  # the loop of the last timer
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = math.inf

    def after(self, seconds: float) -> "Deadline":
        """Create a deadline `seconds` from now, for one `with` block."""
        return Deadline(self, time.monotonic() + seconds)

    def add(self, deadline: "Deadline") -> None:
        """Watch a deadline. Call it again after `expires_at` has changed."""
        self._open.add(deadline)
        if deadline.expires_at < self._fires_at or self.loop is None or self.loop.is_closed():
            self._set_timer(deadline.expires_at)

    def discard(self, deadline: "Deadline") -> None:
        """Stop watching a deadline whose block has ended."""
        self._open.discard(deadline)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.loop, self._fires_at = asyncio.get_running_loop(), at
        self._timer = self.loop.call_later(max(0.0, at - time.monotonic()), self._expire)

    def _expire(self) -> None:
        now = time.monotonic() + TIMER_RESOLUTION_S
        for deadline in [deadline for deadline in self._open if deadline.expires_at <= now]:
            self._open.discard(deadline)
            deadline.expire()
        self._timer, self._fires_at = None, math.inf
        if self._open:
            self._set_timer(min(deadline.expires_at for deadline in self._open))


class Deadline:
    """Cancels its `with` block when it expires; the block then raises TimeoutError, as with `asyncio.timeout`."""

    __slots__ = ("_cancelling_before", "_deadlines", "_task", "expired", "expires_at")

    def __init__(self, deadlines: Deadlines, expires_at: float) -> None:
        self.expires_at = expires_at  # by time.monotonic()
        self.expired = False  # True if it expired before its block ended
        self._deadlines = deadlines

    def __enter__(self) -> Self:
        # passing the loop saves a lookup of the running one, which is a system call before Python 3.12
        task = asyncio.current_task(self._deadlines.loop) or asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline can only be entered in a task")
        self._task = task
        self._cancelling_before = task.cancelling()
        self._deadlines.add(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._deadlines.discard(self)
        if self.expired and self._task.uncancel() <= self._cancelling_before and exc_type is asyncio.CancelledError:
            raise TimeoutError from exc

    def reschedule(self, seconds: float) -> None:
        """Move the deadline to `seconds` from now, from inside its block. One that has expired stays expired."""
        if not self.expired:
            self.expires_at = time.monotonic() + seconds
            self._deadlines.add(self)

    def expire(self) -> None:
        """Cancel the block."""
        self.expired = True
        self._task.cancel()
