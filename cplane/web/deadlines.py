"""Deadlines over answers, all on one timer: to set one for each request and to move it took a tenth of the time of a submit."""

import asyncio
import math
import time
from types import TracebackType
from typing import Self

EARLY_S = 0.001
"""Loops count in milliseconds: a timer may ring so much too early."""


class Deadlines:
    """Those of all requests of an app. The timer stands at the first that was due when it was set; most are closed long before."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self.loop: asyncio.AbstractEventLoop | None = None  # that of the last timer
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def after(self, seconds: float) -> "Deadline":
        """A deadline so many seconds from now: for one `with` block."""
        return Deadline(self, time.monotonic() + seconds)

    def open(self, deadline: "Deadline") -> None:
        """Watch over it from now on, or again after its time was changed."""
        self._open.add(deadline)
        if deadline.due < self._due or self.loop is None or self.loop.is_closed():
            self._set(deadline.due)

    def close(self, deadline: "Deadline") -> None:
        """Its block has ended."""
        self._open.discard(deadline)

    def _set(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.loop, self._due = asyncio.get_running_loop(), due
        self._timer = self.loop.call_later(max(0.0, due - time.monotonic()), self._expire)

    def _expire(self) -> None:
        now = time.monotonic() + EARLY_S
        for deadline in [deadline for deadline in self._open if deadline.due <= now]:
            self._open.discard(deadline)
            deadline.expire()
        self._timer, self._due = None, math.inf
        if self._open:
            self._set(min(deadline.due for deadline in self._open))


class Deadline:
    """What its `with` block still does when its time has come is cancelled, and the block raises TimeoutError; as `asyncio.timeout`."""

    __slots__ = ("_among", "_before", "_task", "due", "expired")

    def __init__(self, among: Deadlines, due: float) -> None:
        self.due = due
        self.expired = False  # whether its time came before its block ended
        self._among = among

    def __enter__(self) -> Self:
        # with the loop of the last timer it need not be asked which loop this is: before Python 3.12 that is a call of the system
        task = asyncio.current_task(self._among.loop) or asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is one of a task")
        self._task = task
        self._before = task.cancelling()
        self._among.open(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._among.close(self)
        if self.expired and self._task.uncancel() <= self._before and exc_type is asyncio.CancelledError:
            raise TimeoutError from exc

    def allow(self, seconds: float) -> None:
        """Let it end so many seconds from now, inside of its block; one that has expired stays so."""
        if not self.expired:
            self.due = time.monotonic() + seconds
            self._among.open(self)

    def expire(self) -> None:
        """Cancel the block."""
        self.expired = True
        self._task.cancel()
