"""Playwright's Node.js process, one for each browser."""

import asyncio
import contextlib

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Playwright, async_playwright

from cplane.browser.engine.process import Process

STOP_S = 5.0


class Driver:
    """Started once, stopped once, whatever state its start is in."""

    def __init__(self) -> None:
        self.process: Process | None = None
        """To kill when it does not stop."""
        self._manager = async_playwright()
        self._starting: asyncio.Task[Playwright] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> Playwright:
        """Start it. The start itself is never cancelled: half-way, the process would stay, and nobody could stop it."""
        self._starting = asyncio.get_running_loop().create_task(self._manager.start(), name="start browser driver")
        return await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Stop it, within 5 s or by force."""
        if self._starting is None:
            return
        if self._stopping is None:
            stop = self._stop(self._starting)
            self._stopping = asyncio.get_running_loop().create_task(stop, name="stop browser driver")
        done, _ = await asyncio.wait((self._stopping,), timeout=STOP_S)
        if done:
            return
        self._starting.cancel()
        if self.process is not None:
            self.process.kill()
        await asyncio.wait((self._stopping,), timeout=STOP_S)

    async def _stop(self, starting: asyncio.Task[Playwright]) -> None:
        await asyncio.wait((starting,))
        if not starting.cancelled() and starting.exception() is None:
            with contextlib.suppress(PlaywrightError):
                await self._manager.__aexit__(None, None, None)
