"""Playwright's driver: one Node.js process for each browser."""

import asyncio
import contextlib
from collections.abc import Iterable
from uuid import uuid4

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Playwright, async_playwright

from cplane.browser.engine.environment import restrict_next_driver
from cplane.browser.engine.process import Process

STOP_TIMEOUT_S = 5.0

ID_VARIABLE = "CPLANE_DRIVER_ID"
"""Set in the environment of a driver, to find its process while it starts."""


class Driver:
    """A driver that is started once and stopped once. It can be stopped in any state of its start.

    Args:
        variables: names of variables that its process gets besides those it needs.
    """

    def __init__(self, variables: Iterable[str] = ()) -> None:
        self.process: Process | None = None
        """The process to kill if it does not stop."""
        self._variables = tuple(variables)
        self._id = uuid4().hex
        self._manager = async_playwright()
        self._starting: asyncio.Task[Playwright] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> Playwright:
        """Start the driver. The start itself is never cancelled: half-way, it would leave a process nobody can stop."""
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="start browser driver")
        return await asyncio.shield(self._starting)

    async def _start(self) -> Playwright:
        restrict_next_driver(self._variables, {ID_VARIABLE: self._id})  # in this task alone
        return await self._manager.start()

    async def stop(self) -> None:
        """Stop the driver; kill it if it does not stop within 5 s."""
        if self._starting is None:
            return
        if self._stopping is None:
            stop = self._stop(self._starting)
            self._stopping = asyncio.get_running_loop().create_task(stop, name="stop browser driver")
        done, _ = await asyncio.wait((self._stopping,), timeout=STOP_TIMEOUT_S)
        if done:
            return
        process = self.process or await asyncio.to_thread(Process.find_by_variable, f"{ID_VARIABLE}={self._id}")
        if process is not None:
            process.kill()
            done, _ = await asyncio.wait((self._stopping,), timeout=STOP_TIMEOUT_S)
        if not done:
            self._starting.cancel()
            await asyncio.wait((self._stopping,), timeout=STOP_TIMEOUT_S)

    async def _stop(self, starting: asyncio.Task[Playwright]) -> None:
        await asyncio.wait((starting,))
        if not starting.cancelled() and starting.exception() is None:
            with contextlib.suppress(PlaywrightError):
                await self._manager.__aexit__(None, None, None)
