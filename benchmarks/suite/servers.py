"""The Redis and the Postgres of all systems: before every run a new Redis and a new database."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ctypes.util import find_library
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.asyncio import Redis

from benchmarks.suite.systems import System
from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.dev.sockets import SocketFolder

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


class Servers:
    """Starts and stops them, and has what a run needs: emptiness, and a database with the system's own tables."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = folder
        self._durable = durable
        self._jemalloc = find_library("jemalloc")
        self._templates: set[str] = set()
        self._open = AsyncExitStack()
        self._redis_open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            self._sockets = opening.enter_context(SocketFolder(self._folder))
            postgres = EmbeddedPostgres(self._folder / "postgres", self._sockets, durable=self._durable)
            self._admin_url = (await opening.enter_async_context(postgres)).url
            opening.push_async_callback(self._stop_redis)
            await self._start_redis()
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _start_redis(self) -> None:
        """With the allocator that packages of Redis are built with, where it is installed; the wheel's is the C library's."""
        folder = self._folder / "redis"
        redis = EmbeddedRedis(folder, self._sockets, durable=self._durable, allocator=self._jemalloc)
        self.redis_url = (await self._redis_open.enter_async_context(redis)).url

    async def _stop_redis(self) -> None:
        await self._redis_open.aclose()
        await asyncio.to_thread(shutil.rmtree, self._folder / "redis", ignore_errors=True)

    @property
    def database_url(self) -> str:
        """The database of the current run."""
        return self._url("bench")

    async def describe(self) -> dict[str, str]:
        """Versions and durability, for the report."""
        async with self.redis() as redis:
            server: dict[str, Any] = await redis.info("server")
            memory: dict[str, Any] = await redis.info("memory")
            config: dict[str, str] = await redis.config_get("append*")
        name = "Valkey" if "valkey_version" in server else "Redis"
        said = {name: str(server.get("valkey_version", server.get("redis_version")))}
        said |= {f"{name} {option}": config[option] for option in ("appendonly", "appendfsync")}
        said[f"{name} allocator"] = _allocator(int(server["process_id"])) or str(memory["mem_allocator"])
        async with self.postgres(self._admin_url) as postgres:
            for setting in SETTINGS:
                said[f"Postgres {setting}"] = str(await postgres.fetchval(f"SHOW {setting}"))
        return said

    async def empty(self, template: str | None) -> None:
        """A new Redis; a new database with the tables of `template`; nothing left to checkpoint.

        A Redis that was only emptied is slower by up to a half where its memory comes from the C library: what was there before lies
        scattered, and every run would depend on the runs before it.
        """
        await self._stop_redis()
        await self._start_redis()
        async with self.postgres(self._admin_url) as postgres:
            await postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            origin = f' TEMPLATE "{template}"' if template is not None else ""
            await postgres.execute(f"CREATE DATABASE bench{origin}")
            await postgres.execute("CHECKPOINT")

    async def settle(self) -> None:
        """What filling them has left to be done is done now, not while something is measured: Redis's log, Postgres's statistics.

        Redis rewrites its log whenever it has doubled. It does so now, else it would in the middle of some runs and not of others.
        """
        async with self.redis() as redis:
            await _rewritten(redis)
            if self._durable:
                await redis.bgrewriteaof()
                await _rewritten(redis)
        await self.execute("VACUUM ANALYZE")
        await self.execute("CHECKPOINT")

    async def template(self, system: System, prepare: Callable[[str], Awaitable[None]]) -> str | None:
        """The database to copy for a system, made with `prepare(url)` when it is first asked for."""
        if not system.database and not system.ours:
            return None
        name = f"bench_{system.folder}"
        if name not in self._templates:
            async with self.postgres(self._admin_url) as postgres:
                await postgres.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                await postgres.execute(f"CREATE DATABASE {name}")
            await prepare(self._url(name))
            self._templates.add(name)
        return name

    async def fetch(self, query: str, *args: object) -> Any:
        """One value from the database of the current run."""
        async with self.postgres(self.database_url) as postgres:
            return await postgres.fetchval(query, *args)

    async def execute(self, statement: str) -> None:
        """One statement in the database of the current run."""
        async with self.postgres(self.database_url) as postgres:
            await postgres.execute(statement)

    @asynccontextmanager
    async def redis(self) -> AsyncGenerator[Any]:
        """A connection to Redis."""
        client: Any = Redis.from_url(self.redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
        async with client:
            yield client

    @asynccontextmanager
    async def postgres(self, url: str) -> AsyncGenerator[Any]:
        """A connection to Postgres."""
        connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
        connection = await connect(url)
        try:
            yield connection
        finally:
            await connection.close()

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self._admin_url)._replace(path=f"/{database}"))


def _allocator(pid: int) -> str | None:
    """What it has loaded to allocate with."""
    return "jemalloc, preloaded" if "/libjemalloc" in Path(f"/proc/{pid}/maps").read_text() else None


async def _rewritten(redis: Any) -> None:
    """Until Redis does not rewrite its log."""
    while True:
        info: dict[str, Any] = await redis.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled"):
            return
        await asyncio.sleep(0.02)
