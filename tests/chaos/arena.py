"""The servers of a scenario: Postgres with an audit of its records, Redis, a proxy for each, and ways to break them."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import uuid4

import asyncpg

from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.postgres.migrations import upgrade
from tests.chaos.proxy import Address, Proxy

AUDIT = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.effects (record uuid NOT NULL, attempt int NOT NULL);
CREATE TABLE chaos.moves (
    seq bigserial PRIMARY KEY, record uuid NOT NULL, old text, new text NOT NULL, attempt int NOT NULL, cause text NOT NULL);
CREATE FUNCTION chaos.log_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.moves (record, new, attempt, cause) VALUES (NEW.id, NEW.state, NEW.attempt, NEW.cause);
    ELSIF (OLD.state, OLD.attempt) IS DISTINCT FROM (NEW.state, NEW.attempt)
          OR (OLD.state NOT IN ('queued', 'running') AND OLD IS DISTINCT FROM NEW) THEN
        INSERT INTO chaos.moves (record, old, new, attempt, cause) VALUES (NEW.id, OLD.state, NEW.state, NEW.attempt, NEW.cause);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_move AFTER INSERT OR UPDATE ON cplane.jobs FOR EACH ROW EXECUTE FUNCTION chaos.log_move();
"""
"""A trigger logs every state change of a record in the transaction that makes it, whichever client and statement
made it.
"""

SOCKET = ".s.PGSQL.5432"

PREFIX = "cplane-tests-"
"""Prefix of temporary folders, followed by the pid. The next run removes those of a killed run (see
tests/conftest.py).
"""


class Arena:
    """The addresses of the servers, directly and through the proxies, and the faults that can be injected."""

    def __init__(
        self, database_url: str, redis: EmbeddedRedis, folder: Path, postgres: EmbeddedPostgres | None
    ) -> None:
        self.database_url = database_url
        self.redis_url = redis.url
        self.folder = folder
        self._redis = redis
        self._redis_data = folder / "redis"
        self._postgres = postgres
        self._proxy_folder = folder / "p"
        self._proxy_folder.mkdir()
        self.postgres_proxy = Proxy(self._proxy_folder / SOCKET, _postgres_address(database_url))
        self.redis_proxy = Proxy(self._proxy_folder / "redis.sock", Path(unquote(urlsplit(redis.url).path)))

    @property
    def proxied_database_url(self) -> str:
        parts = urlsplit(self.database_url)
        user = f"{parts.netloc.rpartition('@')[0]}@"
        return parts._replace(netloc=user, query=f"host={quote(str(self._proxy_folder))}&port=5432").geturl()

    @property
    def proxied_redis_url(self) -> str:
        return f"unix://{quote(str(self._proxy_folder / 'redis.sock'))}?db=0"

    async def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Query Postgres directly, without a proxy."""
        return await query(self.database_url, statement, *values)

    # Redis

    async def kill_redis(self) -> None:
        server = await self.redis_command("INFO", "server")
        os.kill(int(server["process_id"]), signal.SIGKILL)
        await self._redis.ended()

    async def start_redis(self) -> None:
        await self._redis.__aenter__()

    def save_redis(self) -> Path:
        """Return a copy of the data that Redis has on disk now."""
        copy = self.folder / f"saved-{uuid4().hex[:8]}"
        shutil.copytree(self._redis_data, copy)
        return copy

    def load_redis(self, saved: Path | None) -> None:
        """Replace the data of Redis, which must not run, with a copy; None: with nothing."""
        shutil.rmtree(self._redis_data)
        if saved is not None:
            shutil.copytree(saved, self._redis_data)

    async def flush_redis(self) -> None:
        await self.redis_command("FLUSHALL")

    async def redis_command(self, *words: str) -> Any:
        """Send one command to Redis directly, without a proxy."""
        from redis.asyncio import Redis

        client: Any = Redis.from_url(self.redis_url)  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
        async with client:
            return await client.execute_command(*words)

    async def scheduled(self) -> list[str]:
        """Return the ids in all queues."""
        ids: list[str] = []
        for key in cast("list[bytes]", await self.redis_command("KEYS", "arq:queue*")):
            if await self.redis_command("TYPE", key.decode()) == b"zset":
                ids += [entry.decode() for entry in await self.redis_command("ZRANGE", key.decode(), "0", "-1")]
        return ids

    # Postgres

    async def stop_postgres(self, stop_signal: signal.Signals) -> None:
        """Stop Postgres. SIGINT: fast shutdown; SIGQUIT: immediate, like a crash."""
        assert self._postgres is not None
        pid = int((self.folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, stop_signal)
        await self._postgres.ended()

    async def start_postgres(self) -> None:
        assert self._postgres is not None
        await self._postgres.__aenter__()

    async def end_sessions(self) -> int:
        """End all other sessions of this database, and return their number."""
        statement = """SELECT count(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        return cast("int", (await self.query(statement))[0]["ended"])


@asynccontextmanager
async def arena(database_url: str | None = None) -> AsyncGenerator[Arena]:
    """Open an arena in the migrated database `database_url`; None: with its own Postgres, which can be broken."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=_base())))
        postgres = None
        if database_url is None:
            (folder / "s").mkdir()
            postgres = EmbeddedPostgres(folder / "postgres", folder / "s")
            await postgres.__aenter__()
            stack.push_async_exit(postgres)
            database_url = postgres.url
            await upgrade(database_url)
        await query(database_url, AUDIT)
        (folder / "r").mkdir()
        redis = await stack.enter_async_context(EmbeddedRedis(folder / "redis", folder / "r"))
        made = Arena(database_url, redis, folder, postgres)
        await stack.enter_async_context(made.postgres_proxy)
        await stack.enter_async_context(made.redis_proxy)
        yield made


async def query(database_url: str, statement: str, *values: object) -> list[dict[str, Any]]:
    connection: Any = await cast("Any", asyncpg).connect(database_url)
    try:
        if not values and ";" in statement:
            await connection.execute(statement)
            return []
        rows: Sequence[Any] = await connection.fetch(statement, *values)
        return [dict(row) for row in rows]
    finally:
        with suppress(OSError):
            await connection.close()


async def until(deadline_s: float, condition: Any, *, interval_s: float = 0.05) -> bool:
    """Poll `condition` until it returns true.

    Returns False at the deadline. Errors of an unavailable server count as not true.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while True:
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    if await condition():
                        return True
                await asyncio.sleep(interval_s)
    return False


def _postgres_address(url: str) -> Address:
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host")
    return Path(folder[0]) / SOCKET if folder else (parts.hostname or "localhost", parts.port or 5432)


def _base() -> Path:
    """Return a folder in memory, where a server starts fast, with a path short enough for sockets."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1024**3:
        return memory
    return Path(tempfile.gettempdir())
