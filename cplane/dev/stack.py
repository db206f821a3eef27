"""The stack of `cplane dev`: Postgres, Redis and a folder for artifacts, in the project's folder `.cplane`."""

import asyncio
import json
import os
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cplane.dev.lock import FolderLock
from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.dev.sockets import SocketFolder
from cplane.errors import InfrastructureError


class DevStack:
    """Postgres and Redis for development, with persistent data in `root`/.cplane.

    While it runs, `.cplane/stack.json` contains its addresses. Programs that are started below `root` use them as a
    fallback. It does not create tables.

    Args:
        root: folder of the project.
        durable: if false, data may be lost when the machine crashes.
        api_url: where the HTTP API listens, for `stack.json`.

    Example:
        async with DevStack(Path.cwd()) as stack:
            print(stack.database_url, stack.redis_url)
    """

    def __init__(self, root: Path, *, durable: bool = True, api_url: str | None = None) -> None:
        self._folder = root.resolve() / ".cplane"
        self._durable = durable
        self._api_url = api_url
        self._servers: tuple[EmbeddedPostgres, EmbeddedRedis] | None = None
        self._resources = AsyncExitStack()

    @property
    def database_url(self) -> str:
        """The URL of Postgres."""
        return self._running()[0].url

    @property
    def redis_url(self) -> str:
        """The URL of Redis."""
        return self._running()[1].url

    @property
    def artifacts_url(self) -> str:
        """The URL of the folder for artifacts."""
        return (self._folder / "artifacts").as_uri()

    async def __aenter__(self) -> Self:
        self._prepare()
        async with AsyncExitStack() as resources:
            lock = await resources.enter_async_context(FolderLock(self._folder / "lock"))
            self._retract()  # left by a stack that was killed
            resources.callback(self._retract)
            sockets = resources.enter_context(SocketFolder(self._folder))
            self._servers = self._embedded(sockets, lock)
            await _enter_concurrently(resources, *self._servers)
            self.announce(self._api_url)
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    def announce(self, api_url: str | None, imports: Sequence[str] = ()) -> None:
        """Write stack.json.

        Args:
            api_url: where the HTTP API listens; None: it does not run.
            imports: modules that define jobs.
        """
        self._api_url = api_url
        addresses = {
            "pid": os.getpid(),
            "database_url": self.database_url,
            "redis_url": self.redis_url,
            "artifacts_url": self.artifacts_url,
            "api_url": api_url,
            "imports": ",".join(imports) or None,
        }
        unfinished = self._announcement.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)  # programs trust the file only if nobody else can write to it
        unfinished.write_text(json.dumps(addresses, indent=2) + "\n")
        unfinished.replace(self._announcement)

    def _retract(self) -> None:
        self._announcement.unlink(missing_ok=True)

    async def ended(self) -> InfrastructureError:
        """Wait until one of the servers ends unexpectedly, and return which one and why as an error."""
        postgres, redis = self._running()
        tasks = [
            asyncio.create_task(postgres.ended(), name="watch Postgres"),
            asyncio.create_task(redis.ended(), name="watch Redis"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @property
    def _announcement(self) -> Path:
        return self._folder / "stack.json"

    def _running(self) -> tuple[EmbeddedPostgres, EmbeddedRedis]:
        if self._servers is None:
            raise RuntimeError("the stack is not running; use `async with DevStack(root) as stack:`")
        return self._servers

    def _prepare(self) -> None:
        (self._folder / "artifacts").mkdir(parents=True, exist_ok=True)
        self._folder.chmod(stat.S_IMODE(self._folder.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
        (self._folder / ".gitignore").write_text("*\n")

    def _embedded(self, sockets: Path, lock: FolderLock) -> tuple[EmbeddedPostgres, EmbeddedRedis]:
        keep_open = (lock.fileno,)
        return (
            EmbeddedPostgres(self._folder / "postgres", sockets, durable=self._durable, keep_open=keep_open),
            EmbeddedRedis(self._folder / "redis", sockets, durable=self._durable, keep_open=keep_open),
        )


async def _enter_concurrently(resources: AsyncExitStack, postgres: EmbeddedPostgres, redis: EmbeddedRedis) -> None:
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(resources.enter_async_context(postgres), name="start Postgres")
            group.create_task(resources.enter_async_context(redis), name="start Redis")
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
    if first is not None:
        raise first
