"""Kills renderers that use more memory than a page may, and knows which page that was."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from playwright.async_api import CDPSession
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.launch import running_pids
from cplane.browser.engine.process import resident_bytes
from cplane.browser.lease import PageLease
from cplane.errors import PageTooLarge

CHECK_INTERVAL_S = 0.25
"""How often the renderers are measured while a job has a page; a page can allocate about 1 GiB meanwhile."""

RESPONSE_TIMEOUT_S = 5.0
CRASH_WITHIN_S = 5.0
"""A page that crashes within this time of a kill, and that no other page accounts for, is the one that was killed."""

log = structlog.get_logger("cplane")


@dataclass(slots=True)
class _Kill:
    """A renderer that was killed."""

    at: float
    used_bytes: int
    lease: PageLease | None = None
    """The page that crashed with it; None: none has yet."""


class MemoryGuard:
    """Limits the memory of each page of one local Chromium.

    A page's own process is not known, but its crash is reported: contexts do not share renderers, so the page that
    crashes when a renderer is killed is the one that was too large.

    Args:
        session: a DevTools session with the browser.
        max_bytes: memory of one renderer that it does not share with other processes, bytes.
    """

    def __init__(self, session: CDPSession, max_bytes: int) -> None:
        self._session = session
        self._max_bytes = max_bytes
        self._kills: list[_Kill] = []

    async def watch(self, is_used: Callable[[], bool]) -> None:
        """Measure all renderers every 0.25 s, until cancelled.

        Args:
            is_used: whether a job has a page of the browser; if not, there is nothing to measure.
        """
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if is_used():
                with contextlib.suppress(TimeoutError, PlaywrightError):  # whether the browser lives is found elsewhere
                    async with asyncio.timeout(RESPONSE_TIMEOUT_S):
                        pids = await running_pids(self._session)
                    self._check(pid for pid, kind in pids.items() if kind == "renderer")

    def explain(self, lease: PageLease) -> PageTooLarge | None:
        """Return why a page has crashed: its renderer was killed; None: it was not."""
        since = time.monotonic() - CRASH_WITHIN_S
        self._kills = [kill for kill in self._kills if kill.at >= since]
        kill = next((kill for kill in self._kills if kill.lease in (None, lease)), None)
        if kill is None:
            return None
        kill.lease = lease
        used, limit = kill.used_bytes >> 20, self._max_bytes >> 20
        return PageTooLarge(
            f"the page {lease.page.url[:200]} used {used} MiB of memory; a page may use {limit}",
            hint="CPLANE_BROWSER_PAGE_MEMORY_MB sets the limit",
        )

    def _check(self, renderers: Iterable[int]) -> None:
        for pid in renderers:
            if (used := resident_bytes([pid])) > self._max_bytes:
                log.warning("page_memory_exceeded", pid=pid, used_mb=used >> 20, limit_mb=self._max_bytes >> 20)
                self._kills.append(_Kill(time.monotonic(), used))
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
