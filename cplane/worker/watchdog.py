"""The watchdog: reports a job that never yields. While the event loop is blocked nothing else runs and no lease is renewed; a thread notices."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

BLOCKED_S = 1.0
"""A loop that does not turn for this long is blocked: far longer than any step of cplane's, far shorter than a lease."""

CHECK_INTERVAL_S = 0.5

LATE_S = 0.25
"""A beat that is late by less is not counted: a busy loop is not a blocked one."""

FRAMES = 5
"""Innermost lines of the blocking code that are shown."""

log = structlog.get_logger("cplane")


class Watchdog:
    """Watches the running loop of the thread that enters it, counts for how long it was blocked, and logs by what, and where.

    Args:
        on_check: is called in the watchdog's thread at each check: while it is, nobody holds the interpreter.
    """

    def __init__(self, on_check: Callable[[], None] | None = None) -> None:
        self._on_check = on_check
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._beat_at = 0.0
        self._blocked_s = 0.0
        self._beating: asyncio.TimerHandle | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch the event loop", daemon=True)

    def __enter__(self) -> Self:
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._done.set()
        if self._beating is not None:
            self._beating.cancel()

    @property
    def blocked_s(self) -> float:
        """For how long the loop has been blocked until now, in seconds. To be read in the loop."""
        return self._blocked_s + self._late_s()

    def _late_s(self) -> float:
        late_s = time.monotonic() - self._beat_at - CHECK_INTERVAL_S if self._beat_at else 0.0
        return late_s if late_s > LATE_S else 0.0

    def _beat(self) -> None:
        self._blocked_s += self._late_s()
        self._beat_at = time.monotonic()
        if self._loop is not None:
            self._beating = self._loop.call_later(CHECK_INTERVAL_S, self._beat)

    def _watch(self) -> None:
        """In the thread: log once that the loop is blocked, and once for how long it was."""
        blocked_at = 0.0
        while not self._done.wait(CHECK_INTERVAL_S):
            if self._on_check is not None:
                self._on_check()
            late_s = time.monotonic() - self._beat_at - CHECK_INTERVAL_S
            if blocked_at and self._beat_at > blocked_at:
                log.warning("event_loop_unblocked", blocked_s=round(self._beat_at - blocked_at, 1))
                blocked_at = 0.0
            elif not blocked_at and late_s > BLOCKED_S:
                blocked_at = self._beat_at
                self._report(late_s)

    def _report(self, late_s: float) -> None:
        task = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  the one way to look into another thread
        lines = [] if frame is None else traceback.format_list(traceback.extract_stack(frame)[-FRAMES:])
        log.error(
            "event_loop_blocked",
            job="(no task)" if task is None else task.get_name(),
            blocked_s=round(late_s, 1),
            hint="nothing else runs and leases are not renewed: await what takes long, or make the job a plain def",
            at="".join(lines).rstrip(),
        )
