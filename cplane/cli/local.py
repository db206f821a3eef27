"""A complete cplane in one process: Postgres, Redis, tables, HTTP API and a worker in one event loop."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cplane.errors import InfrastructureError

if TYPE_CHECKING:
    from cplane.dev import DevStack
    from cplane.settings import CplaneSettings
    from cplane.web import WebServer

DRAIN_S = 3.0
"""Short, because somebody waits at the terminal. Jobs that still run are released, and start again next time."""

EGRESS_VARIABLES = ("CPLANE_EGRESS", "CPLANE_EGRESS_ALLOW", "CPLANE_EGRESS_DENY")
"""If none of them is set, pages may reach this machine, where the site under development runs."""

SERVER_VARIABLES = ("CPLANE_DATABASE_URL", "CPLANE_REDIS_URL")


class LocalPlane:
    """Postgres, Redis, the HTTP API and a worker, as one async context manager.

    Servers of CPLANE_DATABASE_URL and CPLANE_REDIS_URL are used. Unless both are set, embedded servers are started,
    with their data in `root`/.cplane.

    Args:
        root: the folder whose `.cplane` keeps the data.
        host: address of the HTTP API.
        port: port of the HTTP API; 0 takes a free one.
        insecure: whether an API without keys may listen beyond loopback.
        imports: modules that define jobs, in addition to those of CPLANE_IMPORTS.
        overrides: settings that override the environment.

    Attributes:
        api_url: URL of the HTTP API.
        settings: the settings of all parts.
        job_names: names of the registered jobs, sorted.
        took_s: duration of each step of the start, seconds.

    Example:
            async with LocalPlane(Path.cwd()) as local:
                print(local.api_url)
                raise await local.ended()
    """

    api_url: str
    settings: "CplaneSettings"
    job_names: list[str]

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        insecure: bool = False,
        imports: Sequence[str] = (),
        **overrides: Any,
    ) -> None:
        self.took_s: dict[str, float] = {}
        self._root = root
        self._address = (host, port)
        self._insecure = insecure
        self._imports = imports
        self._overrides = overrides
        self._stack: DevStack | None = None
        self._server: WebServer | None = None
        self._worker: asyncio.Task[None] | None = None
        self._open = AsyncExitStack()

    @property
    def data(self) -> str:
        """Where the data is, as text for people."""
        from cplane.cli.masking import masked

        if self._stack is not None:
            return str(self._root / ".cplane")
        urls = (self.settings.database_url, self.settings.redis_url)
        return " and ".join(masked(url.get_secret_value()) for url in urls)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            importing = asyncio.ensure_future(asyncio.to_thread(_import_layers))
            with self._timed("servers"):
                self._stack = await self._start_servers(opening)
            with self._timed("imports"):
                await importing
                from cplane.logs import configure_logs

                self.settings = self._load_settings()
                configure_logs(self.settings)
                self.job_names = await self._load_jobs()
            with self._timed("tables"):
                await self._upgrade()
            with self._timed("web"):  # before the worker, so that a port in use is reported early
                await self._listen(opening)
            with self._timed("worker"):
                self._worker = await opening.enter_async_context(_run_worker(self.settings))
            if self._stack is not None:
                self._stack.announce(self.api_url, self.settings.imports)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def ended(self) -> InfrastructureError:
        """Wait until a part ends by itself. Return the reason; raise if cplane itself has a bug."""
        if self._server is None or self._worker is None:
            raise RuntimeError("it is not running; use `async with LocalPlane(…) as local:`")
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._server.ended(), name="watch the HTTP server"),
            asyncio.create_task(_shielded(self._worker), name="watch the worker"),
        ]
        if self._stack is not None:
            tasks.append(asyncio.create_task(self._stack.ended(), name="watch the servers"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ended = done.pop().result()
            return (
                ended if isinstance(ended, InfrastructureError) else InfrastructureError("the worker stopped by itself")
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _start_servers(self, opening: AsyncExitStack) -> "DevStack | None":
        if all(os.environ.get(name) for name in SERVER_VARIABLES):
            return None
        from cplane.dev import DevStack

        return await opening.enter_async_context(DevStack(self._root))

    def _load_settings(self) -> "CplaneSettings":
        from cplane.settings import load_settings

        given: dict[str, Any] = dict(self._overrides)
        if self._stack is not None:
            addresses = {name: getattr(self._stack, name) for name in ("database_url", "redis_url", "artifacts_url")}
            given |= {name: url for name, url in addresses.items() if not os.environ.get(f"CPLANE_{name.upper()}")}
        if not os.environ.get("CPLANE_DRAIN_S"):
            given["drain_s"] = DRAIN_S
        if not any(os.environ.get(name) for name in EGRESS_VARIABLES):
            given["egress_allow"] = ("loopback",)
        settings = load_settings(**given)
        return settings.model_copy(update={"imports": (*settings.imports, *self._imports)})

    async def _load_jobs(self) -> list[str]:
        """Import the jobs in a thread without an event loop: a file may start its own, and must not block this one."""
        from cplane.cli.imports import import_jobs

        registry = await asyncio.to_thread(import_jobs, self.settings.imports)
        return sorted(registry.jobs)

    async def _upgrade(self) -> None:
        from cplane.postgres.migrations import upgrade

        await upgrade(self.settings.database_url)

    async def _listen(self, opening: AsyncExitStack) -> None:
        from cplane.web import create_app, open_server

        app = create_app(self.settings)
        self._server = await opening.enter_async_context(open_server(app, *self._address, insecure=self._insecure))
        self.api_url = self._server.url

    @contextmanager
    def _timed(self, step: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self.took_s[step] = time.perf_counter() - started


@asynccontextmanager
async def _run_worker(settings: "CplaneSettings") -> "AsyncGenerator[asyncio.Task[None]]":
    """Run a worker until the block ends; then drain and stop it."""
    from cplane.worker import Worker

    worker = Worker(settings=settings, handle_signals=False)
    running = asyncio.create_task(worker.async_run(), name="worker")
    ready = asyncio.create_task(worker.ready.wait(), name="wait until the worker claims jobs")
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield running
    finally:
        ready.cancel()
        worker.stop()
        await asyncio.wait([running])


async def _shielded(running: "asyncio.Task[None]") -> None:
    await asyncio.shield(running)


def _import_layers() -> None:
    """Import what takes long, while the servers start."""
    for layer in ("cplane.postgres.migrations", "cplane.tasks", "cplane.web", "cplane.worker.worker"):
        import_module(layer)
