"""The pages a worker can give to jobs: a browser pool that opens as soon as there is a browser."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack

import structlog
from pydantic import SecretStr

from cplane.browser import BrowserPool, BrowserSource, Engine, Limits, PageOptions
from cplane.egress import EgressProxy, EgressRules
from cplane.errors import BrowserError, BrowserNotFound
from cplane.jobs.definition import AnyJob
from cplane.settings import CplaneSettings

SEARCH_INTERVAL_S = 10.0
"""How often a worker without a browser searches for one."""

RELAUNCH_INTERVAL_S = 1.0
"""How soon a browser that is there, but did not start, is launched again."""

log = structlog.get_logger("cplane")


class WorkerPages:
    """The pool, once it is open. A worker without a browser does its other work, and tries again from time to time."""

    def __init__(self, settings: CplaneSettings, jobs: Iterable[AnyJob] = ()) -> None:
        self._settings = settings
        self._wanted = list(_wanted(jobs))
        self._pool: BrowserPool | None = None
        self._error = BrowserError("the browser is starting")
        self._opened = asyncio.Event()

    def pool(self) -> BrowserPool:
        """The open pool.

        Raises:
            BrowserError: there is none yet; it says why.
        """
        if self._pool is None:
            raise self._error
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
            egress = await stack.enter_async_context(_egress(settings)) if settings.egress == "public" else None
            while self._pool is None:
                try:
                    self._pool = await stack.enter_async_context(_pool(settings, egress))
                except BrowserError as error:
                    if str(error) != str(self._error):
                        log.error("browser_unavailable", reason=str(error), hint="jobs that ask for a page wait")
                    self._error = error
                    await asyncio.sleep(
                        SEARCH_INTERVAL_S if isinstance(error, BrowserNotFound) else RELAUNCH_INTERVAL_S
                    )
            for options in self._wanted:
                self._pool.expect(options)
            self._opened.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._pool = None
                self._opened.clear()


def browser_source(settings: CplaneSettings) -> BrowserSource:
    """Return how browsers are launched or connected to, by the settings."""
    return BrowserSource(
        engine=Engine(settings.browser_engine),
        executable=settings.browser_executable,
        sandbox=settings.browser_sandbox,
        args=settings.browser_args,
        cdp_url=_secret(settings.browser_cdp_url),
        server_url=_secret(settings.browser_server_url),
        env=settings.browser_env,
    )


def _egress(settings: CplaneSettings) -> EgressProxy:
    max_bytes = None if settings.egress_max_mb is None else settings.egress_max_mb << 20
    return EgressProxy(EgressRules.read(settings.egress_allow, settings.egress_deny), max_bytes=max_bytes)


def _pool(settings: CplaneSettings, egress: EgressProxy | None) -> BrowserPool:
    return BrowserPool(
        settings.browser_pages,
        browsers=settings.browser_count,
        warm=settings.browser_warm,
        source=browser_source(settings),
        limits=Limits(
            pages=settings.browser_max_pages,
            age_s=settings.browser_max_age_s,
            memory_bytes=settings.browser_max_memory_mb << 20,
            page_memory_bytes=settings.browser_page_memory_mb << 20,
        ),
        egress=egress,
        trace=settings.trace,
        wait_s=settings.browser_wait_s,
    )


def _wanted(jobs: Iterable[AnyJob]) -> Iterable[PageOptions]:
    """The page options that jobs always have."""
    for job in jobs:
        if job.needs_page and not callable(job.options.browser):
            options = PageOptions.read(job.options.browser)
            yield options if job.options.record else options.model_copy(update={"trace": "off"})


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None
