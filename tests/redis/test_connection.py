"""Connections to Redis are closed with the client that opened them, whatever happens during the close."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio.connection import AbstractConnection, ConnectionPool

from cplane.errors import QueueUnavailable
from cplane.jobs.states import Priority
from cplane.redis.connection import connect
from cplane.redis.dead_letters import DeadLetterStream
from cplane.redis.messages import Id
from cplane.redis.queue import Queue


class OpenedConnections:
    """The connections that a test has opened."""

    def __init__(self) -> None:
        self.all: list[AbstractConnection] = []

    @property
    def open(self) -> int:
        return sum(connection.is_connected for connection in self.all)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> OpenedConnections:
    opened = OpenedConnections()
    real: Callable[[Any], AbstractConnection] = ConnectionPool.make_connection

    def make(pool: Any) -> AbstractConnection:
        opened.all.append(real(pool))
        return opened.all[-1]

    monkeypatch.setattr(ConnectionPool, "make_connection", make)
    return opened


async def test_a_call_after_the_close_opens_no_connection(redis_url: str, opened: OpenedConnections) -> None:
    async with connect(SecretStr(redis_url)) as client:
        await Queue(client).ping()
    with pytest.raises(QueueUnavailable):
        await Queue(client).ping()
    assert opened.open == 0


async def test_a_call_that_connects_during_the_close_leaves_no_connection_open(
    redis_url: str, opened: OpenedConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, closed = asyncio.Event(), asyncio.Event()
    real: Callable[[Any], Awaitable[None]] = AbstractConnection.connect

    async def slow(connection: Any) -> None:
        connecting.set()
        await closed.wait()
        await real(connection)

    monkeypatch.setattr(AbstractConnection, "connect", slow)
    async with connect(SecretStr(redis_url)) as client:
        call = asyncio.create_task(Queue(client).ping())
        await connecting.wait()
    closed.set()
    with pytest.raises(QueueUnavailable):
        await call
    assert opened.open == 0


async def test_a_cancelled_close_leaves_no_connection_open(
    redis_url: str, opened: OpenedConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[Any], Awaitable[None]] = ConnectionPool.disconnect

    async def cancelled(pool: Any) -> None:
        user.cancel()
        await real(pool)

    monkeypatch.setattr(ConnectionPool, "disconnect", cancelled)

    async def use() -> None:
        async with connect(SecretStr(redis_url)) as client:
            queue = Queue(client)
            await asyncio.gather(*(queue.ping() for _ in range(3)))
            assert opened.open == 3

    user = asyncio.create_task(use())
    with pytest.raises(asyncio.CancelledError):
        await user
    assert opened.open == 0


async def test_an_idle_connection_that_redis_closed_is_replaced(redis_url: str, opened: OpenedConnections) -> None:
    async with connect(SecretStr(redis_url)) as client, connect(SecretStr(redis_url)) as other:
        killer: Any = other
        first: Any = client
        await killer.client_kill_filter(_id=await first.client_id())
        async with asyncio.timeout(20):
            while opened.all[0]._reader is not None and not opened.all[0]._reader.at_eof():  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0.001)
        await Queue(client).ping()
        assert opened.open == 2


@pytest.mark.parametrize("ends", [TimeoutError, ConnectionResetError])
async def test_a_command_that_cannot_be_sent_closes_its_connection(
    opened: OpenedConnections, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: type[OSError]
) -> None:
    monkeypatch.setattr("cplane.redis.connection.SOCKET_TIMEOUT_S", 0.2)

    accepted: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        for _ in range(2):  # the handshake of a new connection
            await reader.readuntil(b"SETINFO\r\n")
            writer.write(b"+OK\r\n")
        if ends is ConnectionResetError:
            await reader.read(100_000)
            writer.transport.abort()

    async with (
        await asyncio.start_unix_server(accept, tmp_path / "s", limit=1000),  # the server reads no more than that
        connect(SecretStr(f"unix://{tmp_path}/s")) as client,
    ):
        with pytest.raises(QueueUnavailable):
            await DeadLetterStream(client).add([(Id("default", Priority.NORMAL, "a"), "reason", b"x" * 50_000_000)])
        assert opened.open == 0
        for writer in accepted:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
