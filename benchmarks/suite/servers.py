"""The Redis and the Postgres that all systems use. Every measurement starts with a new Redis and a new database."""

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
    """Starts and stops the servers, empties them, and provides databases with the tables of a system."""

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
        """Start Redis with jemalloc if it is installed, as distributions do; the wheel's allocator is that of libc."""
        folder = self._folder / "redis"
        redis = EmbeddedRedis(folder, self._sockets, durable=self._durable, allocator=self._jemalloc)
        self.redis_url = (await self._redis_open.enter_async_context(redis)).url

    async def _stop_redis(self) -> None:
        await self._redis_open.aclose()
        await asyncio.to_thread(shutil.rmtree, self._folder / "redis", ignore_errors=True)

    @property
    def database_url(self) -> str:
        """The URL of the database of the current measurement."""
        return self._url("bench")

    async def describe(self) -> dict[str, str]:
        """Return versions and durability, for the report."""
        async with self.redis() as redis:
            server: dict[str, Any] = await redis.info("server")
            memory: dict[str, Any] = await redis.info("memory")
            config: dict[str, str] = await redis.config_get("append*")
        name = "Valkey" if "valkey_version" in server else "Redis"
        facts = {name: str(server.get("valkey_version", server.get("redis_version")))}
        facts |= {f"{name} {option}": config[option] for option in ("appendonly", "appendfsync")}
        facts[f"{name} allocator"] = _allocator(int(server["process_id"])) or str(memory["mem_allocator"])
        async with self.postgres(self._admin_url) as postgres:
            for setting in SETTINGS:
                facts[f"Postgres {setting}"] = str(await postgres.fetchval(f"SHOW {setting}"))
        return facts

    async def empty(self, template: str | None) -> None:
        """Start a new Redis, create a new database with the tables of `template`, and checkpoint.

        A Redis that is only flushed is slower by up to a half with the allocator of the C library, because its memory
        is fragmented, and every measurement would depend on the previous ones.
        """
        await self._stop_redis()
        await self._start_redis()
        async with self.postgres(self._admin_url) as postgres:
            await postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            origin = f' TEMPLATE "{template}"' if template is not None else ""
            await postgres.execute(f"CREATE DATABASE bench{origin}")
            await postgres.execute("CHECKPOINT")

    async def finish_background_work(self) -> None:
        """Finish the background work of filling the servers before a measurement: Redis's log, Postgres's statistics.

        Redis rewrites its log whenever it has doubled. It does so now, because it would otherwise do so during some
        measurements only.
        """
        async with self.redis() as redis:
            await _wait_for_rewrite(redis)
            if self._durable:
                await redis.bgrewriteaof()
                await _wait_for_rewrite(redis)
        await self.execute("VACUUM ANALYZE")
        await self.execute("CHECKPOINT")

    async def template(self, system: System, prepare: Callable[[str], Awaitable[None]]) -> str | None:
        """Return the database to copy for a system, created with `prepare(url)` on first use."""
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
        """Fetch one value from the database of the current measurement."""
        async with self.postgres(self.database_url) as postgres:
            return await postgres.fetchval(query, *args)

    async def execute(self, statement: str) -> None:
        """Execute one statement in the database of the current measurement."""
        async with self.postgres(self.database_url) as postgres:
            await postgres.execute(statement)

    @asynccontextmanager
    async def redis(self) -> AsyncGenerator[Any]:
        """Open a connection to Redis."""
        client: Any = Redis.from_url(self.redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
        async with client:
            yield client

    @asynccontextmanager
    async def postgres(self, url: str) -> AsyncGenerator[Any]:
        """Open a connection to Postgres."""
        connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
        connection = await connect(url)
        try:
            yield connection
        finally:
            await connection.close()

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self._admin_url)._replace(path=f"/{database}"))


def _allocator(pid: int) -> str | None:
    """Return the preloaded allocator of a process, if there is one."""
    return "jemalloc, preloaded" if "/libjemalloc" in Path(f"/proc/{pid}/maps").read_text() else None


async def _wait_for_rewrite(redis: Any) -> None:
    """Wait until Redis does not rewrite its log."""
    while True:
        info: dict[str, Any] = await redis.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled"):
            return
        await asyncio.sleep(0.02)
