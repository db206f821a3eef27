"""The pages a worker can give to jobs: a browser pool that opens as soon as there is a browser."""

import asyncio
from contextlib import AsyncExitStack

import structlog

from cplane.browser import BrowserPool
from cplane.errors import BrowserError, BrowserNotFound
from cplane.settings import CplaneSettings

AGAIN_S = 10.0
"""How often a worker without a browser looks for one."""

LAUNCH_AGAIN_S = 1.0
"""How soon a browser that is there, but did not start, is started again."""

log = structlog.get_logger("cplane")


class Pages:
    """The pool, once it is open. A worker without a browser does its other work, and looks again now and then."""

    def __init__(self, settings: CplaneSettings) -> None:
        self._settings = settings
        self._pool: BrowserPool | None = None
        self._trouble = BrowserError("the browser is starting")
        self._opened = asyncio.Event()

    def pool(self) -> BrowserPool:
        """The open pool.

        Raises:
            BrowserError: there is none yet; says why.
        """
        if self._pool is None:
            raise self._trouble
        return self._pool

    @property
    def free(self) -> int:
        """Pages that could be acquired right now."""
        return 0 if self._pool is None else self._pool.free

    async def wait_free(self) -> None:
        """Wait until a page is free."""
        await self._opened.wait()
        if self._pool is not None:
            await self._pool.wait_free()

    async def keep(self) -> None:
        """Open the pool as soon as that works, and close it when cancelled."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            while self._pool is None:
                pool = BrowserPool(
                    settings.browser_pages,
                    executable=settings.browser_executable,
                    sandbox=settings.browser_sandbox,
                    wait_s=settings.browser_wait_s,
                )
                try:
                    self._pool = await stack.enter_async_context(pool)
                except BrowserError as error:
                    if str(error) != str(self._trouble):
                        log.error("no browser: jobs that ask for a page wait", reason=str(error))
                    self._trouble = error
                    await asyncio.sleep(AGAIN_S if isinstance(error, BrowserNotFound) else LAUNCH_AGAIN_S)
            self._opened.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._pool = None
                self._opened.clear()
