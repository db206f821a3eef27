"""Servers for the whole run, a database copied from a migrated template for each test, and a clean environment."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from cplane.dev import DevStack
from cplane.dev.sockets import SocketFolder

if TYPE_CHECKING:
    from cplane import ControlPlane
    from cplane.settings import CplaneSettings


@dataclass(frozen=True)
class Servers:
    """Addresses of the servers of this run, and the name of the migrated template database."""

    database_url: str
    redis_url: str
    template: str


class XdistNode(Protocol):
    """A worker of pytest-xdist, which ships no types."""

    config: pytest.Config
    workerinput: dict[str, object]


class ServerRun:
    """The servers of one run, on a separate event loop that runs only while they start and stop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._resources = AsyncExitStack()
        self._servers: Servers | None = None

    def servers(self) -> Servers:
        """Return the servers; the first call starts them."""
        if self._servers is None:
            self._servers = self._runner.run(self._start())
        return self._servers

    def stop(self) -> None:
        self._runner.run(self._resources.aclose())
        self._runner.close()

    async def _start(self) -> Servers:
        try:
            database_url, redis_url = await self._addresses()
            template = f"cplane_template_{os.getpid()}"
            await make_template(database_url, template)
            self._resources.push_async_callback(drop_database, database_url, template)
        except BaseException:
            await self._resources.aclose()
            raise
        return Servers(database_url, redis_url, template)

    async def _addresses(self) -> tuple[str, str]:
        database_url = os.environ.get("CPLANE_TEST_DATABASE_URL")
        redis_url = os.environ.get("CPLANE_TEST_REDIS_URL")
        if database_url and redis_url:
            return database_url, redis_url
        base = server_base()
        remove_leftovers(base)
        root = self._resources.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
        stack = await self._resources.enter_async_context(DevStack(Path(root), durable=False))
        return stack.database_url, stack.redis_url


PREFIX = "cplane-tests-"
SERVER_RUN = pytest.StashKey[ServerRun]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start background jobs: processes would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not is_xdist_worker(config):
        config.stash[SERVER_RUN] = ServerRun()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER_RUN in config.stash:
        config.stash[SERVER_RUN].stop()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: XdistNode) -> None:
    """Start the servers once, in the controller of xdist, and pass their addresses to each of its workers."""
    servers = node.config.stash[SERVER_RUN].servers()
    node.workerinput["servers"] = (servers.database_url, servers.redis_url, servers.template)


def server_base() -> Path:
    """Return the folder for the servers' data: in memory, where copying a database takes 10 ms instead of 300."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1024**3:
        return memory
    return Path(tempfile.gettempdir())


def remove_leftovers(base: Path) -> None:
    """Remove the data of runs that were killed; their servers died with them."""
    for folder in base.glob(f"{PREFIX}*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with SocketFolder(folder / ".cplane"):  # it has the name of the socket folder that was left, and removes it
                shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:
            continue


def is_xdist_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the CPLANE_* variables of the shell from every test."""
    for name in [name for name in os.environ if name.startswith("CPLANE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Servers:
    """Return the servers of this run; a run that cannot start them fails."""
    if is_xdist_worker(request.config):
        return Servers(*cast("Any", request.config).workerinput["servers"])
    return request.config.stash[SERVER_RUN].servers()


@pytest_asyncio.fixture
async def database_url(servers: Servers) -> AsyncIterator[str]:
    """Create a database for this test alone, with the tables of this version."""
    name = f"test_{uuid4().hex}"
    await execute(servers.database_url, f'CREATE DATABASE "{name}" TEMPLATE "{servers.template}" STRATEGY file_copy')
    yield with_database(servers.database_url, name)
    await drop_database(servers.database_url, name)


@pytest_asyncio.fixture
async def redis_url(servers: Servers, worker_id: str) -> str:
    """Return an empty Redis database: one for each xdist worker, 0 without xdist."""
    number = 0 if worker_id == "master" else int(worker_id.removeprefix("gw")) + 1
    url = with_redis_database(servers.redis_url, number)
    await flush(url)
    return url


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> "CplaneSettings":
    """Return settings with a database, a Redis database and an artifacts folder for this test alone."""
    from cplane.settings import load_settings

    return load_settings(
        database_url=database_url,
        redis_url=redis_url,
        artifacts_url=(tmp_path / "artifacts").as_uri(),
        egress_allow=("loopback",),
    )


@pytest_asyncio.fixture
async def plane(settings: "CplaneSettings") -> "AsyncIterator[ControlPlane]":
    """Open a control plane on the servers of this test."""
    from cplane import ControlPlane

    async with ControlPlane(settings) as plane:
        yield plane


async def make_template(database_url: str, name: str) -> None:
    from cplane.postgres.migrations import upgrade

    await drop_database(database_url, name)
    await execute(database_url, f'CREATE DATABASE "{name}"')
    await upgrade(with_database(database_url, name))


async def drop_database(database_url: str, name: str) -> None:
    await execute(database_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


async def execute(database_url: str, statement: str) -> None:
    connect = cast("Callable[[str], Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  untyped
    connection = await connect(database_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def flush(redis_url: str) -> None:
    from redis.asyncio import Redis

    client: Any = Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]  its keywords are untyped
    async with client:
        await client.flushdb()


def with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def with_redis_database(url: str, number: int) -> str:
    address = url.partition("?")[0]
    if address.startswith("unix://"):
        return f"{address}?db={number}"
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))
