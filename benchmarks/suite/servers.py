"""The Redis and the Postgres that all systems share, emptied before every run."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.asyncio import Redis

from benchmarks.suite.systems import System

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


class Servers:
    """Addresses, and what a run needs: emptiness, and a database with the system's own tables."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self.redis_url = redis_url
        self._admin_url = database_url
        self._templates: set[str] = set()

    @property
    def database_url(self) -> str:
        """The database of the current run."""
        return self._url("bench")

    async def describe(self) -> dict[str, str]:
        """Versions and durability, for the report."""
        async with self.redis() as redis:
            info: dict[str, Any] = await redis.info("server")
            config: dict[str, str] = await redis.config_get("append*")
        name = "Valkey" if "valkey_version" in info else "Redis"
        said = {name: str(info.get("valkey_version", info.get("redis_version")))}
        said |= {f"{name} {option}": config[option] for option in ("appendonly", "appendfsync")}
        async with self.postgres(self._admin_url) as postgres:
            for setting in SETTINGS:
                said[f"Postgres {setting}"] = str(await postgres.fetchval(f"SHOW {setting}"))
        return said

    async def empty(self, template: str | None) -> None:
        """Nothing in Redis, its log rewritten; a new database with the tables of `template`; nothing left to checkpoint."""
        async with self.redis() as redis:
            await redis.flushall()
            if (await redis.config_get("appendonly"))["appendonly"] == "yes":
                await _rewrite(redis)
        async with self.postgres(self._admin_url) as postgres:
            await postgres.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            origin = f' TEMPLATE "{template}"' if template is not None else ""
            await postgres.execute(f"CREATE DATABASE bench{origin}")
            await postgres.execute("CHECKPOINT")

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


async def _rewrite(redis: Any) -> None:
    """An append-only file that still holds the last run would be rewritten in the middle of the next one."""
    await redis.bgrewriteaof()
    for _ in range(200):
        await asyncio.sleep(0.02)
        info: dict[str, Any] = await redis.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled"):
            return
