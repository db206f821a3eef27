"""A whole cplane in one process and loop: Postgres, Redis, tables, HTTP API and a worker."""

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
"""Who stops it is waiting in front of it; what still runs is handed back and starts again next time."""

EGRESS = ("CPLANE_EGRESS", "CPLANE_EGRESS_ALLOW", "CPLANE_EGRESS_DENY")
"""Where none of them is set, pages may reach this machine: that is where what is being developed runs."""
OUR_SERVERS = ("CPLANE_DATABASE_URL", "CPLANE_REDIS_URL")


class LocalPlane:
    """`async with LocalPlane(root, …) as local:` with `local.api_url` and `local.settings`; `local.took_s` says what took time.

    Servers named by CPLANE_DATABASE_URL and CPLANE_REDIS_URL are used; only without them our own are started in `root`/.cplane.

    Args:
        root: the folder whose `.cplane` keeps the data.
        host: where the HTTP API listens.
        port: 0 takes a free one.
        imports: modules that define jobs, besides those of CPLANE_IMPORTS.
        overrides: settings that win over the environment.
    """

    api_url: str
    settings: "CplaneSettings"
    job_names: list[str]

    def __init__(
        self, root: Path, *, host: str = "127.0.0.1", port: int = 0, imports: Sequence[str] = (), **overrides: Any
    ) -> None:
        self.took_s: dict[str, float] = {}
        self._root = root
        self._address = (host, port)
        self._imports = imports
        self._overrides = overrides
        self._stack: DevStack | None = None
        self._server: WebServer | None = None
        self._working: asyncio.Task[None] | None = None
        self._open = AsyncExitStack()

    @property
    def data(self) -> str:
        """Where the data is, for people."""
        from cplane.cli.masking import masked

        if self._stack is not None:
            return str(self._root / ".cplane")
        return f"{masked(self.settings.database_url.get_secret_value())} and {masked(self.settings.redis_url.get_secret_value())}"

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
            with self._timed("web"):  # before the worker: a port that is taken should be known at once
                await self._listen(opening)
            with self._timed("worker"):
                self._working = await opening.enter_async_context(_working(self.settings))
            if self._stack is not None:
                self._stack.announce(self.api_url, self.settings.imports)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def ended(self) -> InfrastructureError:
        """Wait until a part of it ends by itself; answers why. An error of our own code is raised."""
        if self._server is None or self._working is None:
            raise RuntimeError("it does not run; use `async with LocalPlane(…) as local:`")
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._server.ended(), name="watch the HTTP server"),
            asyncio.create_task(_shielded(self._working), name="watch the worker"),
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
        if all(os.environ.get(name) for name in OUR_SERVERS):
            return None
        from cplane.dev import DevStack

        return await opening.enter_async_context(DevStack(self._root))

    def _load_settings(self) -> "CplaneSettings":
        from cplane.settings import load_settings

        given: dict[str, Any] = dict(self._overrides)
        if self._stack is not None:
            ours = {name: getattr(self._stack, name) for name in ("database_url", "redis_url", "artifacts_url")}
            given |= {name: url for name, url in ours.items() if not os.environ.get(f"CPLANE_{name.upper()}")}
        if not os.environ.get("CPLANE_DRAIN_S"):
            given["drain_s"] = DRAIN_S
        if not any(os.environ.get(name) for name in EGRESS):
            given["egress_allow"] = ("loopback",)
        settings = load_settings(**given)
        return settings.model_copy(update={"imports": (*settings.imports, *self._imports)})

    async def _load_jobs(self) -> list[str]:
        """In a thread without a loop: a file may start one of its own, and must not block ours."""
        from cplane.cli.imports import import_jobs

        registry = await asyncio.to_thread(import_jobs, self.settings.imports)
        return sorted(registry.jobs)

    async def _upgrade(self) -> None:
        from cplane.postgres.migrations import upgrade

        await upgrade(self.settings.database_url)

    async def _listen(self, opening: AsyncExitStack) -> None:
        from cplane.web import create_app, open_server

        self._server = await opening.enter_async_context(open_server(create_app(self.settings), *self._address))
        self.api_url = self._server.url

    @contextmanager
    def _timed(self, what: str) -> Generator[None]:
        started = time.perf_counter()
        yield
        self.took_s[what] = time.perf_counter() - started


@asynccontextmanager
async def _working(settings: "CplaneSettings") -> "AsyncGenerator[asyncio.Task[None]]":
    """A worker that claims jobs; at the end it drains and leaves."""
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
    """What costs time to import, while the servers start."""
    for layer in ("cplane.postgres.migrations", "cplane.tasks", "cplane.web", "cplane.worker"):
        import_module(layer)
