"""What a client may send before a key is checked: heads, pipelined requests and connections have limits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane
from cplane.web import create_app, open_server, protocol

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
CONNECTIONS = 8


@pytest_asyncio.fixture
async def connect(plane: ControlPlane) -> AsyncGenerator[Open]:
    """Connects to an API with keys, of which the client has none."""
    update = {"api_keys": (SecretStr("a-key"),), "connections_per_address": CONNECTIONS}
    writers: list[asyncio.StreamWriter] = []
    async with open_server(create_app(plane.settings.model_copy(update=update), plane=plane), "127.0.0.1", 0) as server:

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
            writers.append(writer)
            return reader, writer

        async with asyncio.timeout(30):
            yield connect
        for writer in writers:
            writer.close()


async def received(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sends until it closes, or resets, the connection."""
    read = b""
    try:
        while chunk := await reader.read(65536):
            read += chunk
    except ConnectionError:
        pass
    return read


async def send_endlessly(writer: asyncio.StreamWriter, chunk: bytes, size: int) -> int:
    """Send a chunk again and again; returns how much was taken before the server closed."""
    sent = 0
    try:
        while sent < size and not writer.is_closing():
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize("start", [b"GET /", b"GET /livez HTTP/1.1\r\nX-Long: "], ids=["path", "header"])
async def test_a_head_without_end_is_refused_early(connect: Open, start: bytes) -> None:
    reader, writer = await connect()
    writer.write(start)
    sending = asyncio.create_task(send_endlessly(writer, b"x" * 65536, 64 * 1024 * 1024))
    other_reader, other_writer = await connect()
    started = time.perf_counter()
    other_writer.write(LIVEZ)
    assert (await other_reader.readline()).startswith(b"HTTP/1.1 200")
    assert time.perf_counter() - started < 2
    response = await received(reader)
    assert response == b"" or response.startswith(b"HTTP/1.1 431"), response[:100]
    assert await sending < 32 * 1024 * 1024


async def test_a_large_head_is_refused_with_its_reason(connect: Open) -> None:
    reader, writer = await connect()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: of them\r\n" * 5000 + b"\r\n")
    assert (await received(reader)).startswith(b"HTTP/1.1 431 ")


async def test_a_head_of_usual_size_is_served(connect: Open) -> None:
    reader, writer = await connect()
    for _ in range(2):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"c" * 30_000 + b"\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")


async def test_a_silent_connection_is_closed(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.1)
    reader, _ = await connect()
    assert await received(reader) == b""


async def test_a_head_that_trickles_is_closed(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await connect()
    writer.write(LIVEZ)  # the second request is watched as the first is
    await reader.readuntil(b"}")
    closed = asyncio.create_task(received(reader))
    sent = 0
    while not closed.done() and sent < 2000:
        writer.write(LIVEZ[sent % 20 : sent % 20 + 1] if sent < 20 else b"x")
        sent += 1
        await asyncio.wait([closed], timeout=0.01)
    assert await closed == b""
    assert sent < 2000


async def test_a_response_that_takes_long_is_not_cut(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await connect()
    writer.write(
        b"GET /api/v1/jobs/01890000-0000-7000-8000-000000000000?wait=1 HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer a-key\r\nContent-Length: 5\r\n\r\n"
    )
    await asyncio.sleep(0.4)  # the head is complete, so its timeout must not apply
    writer.write(b"12345")
    assert (await reader.readline()).startswith(b"HTTP/1.1 404")


async def test_a_flood_of_pipelined_requests_is_cut(connect: Open) -> None:
    reader, writer = await connect()
    sent = asyncio.create_task(send_endlessly(writer, LIVEZ * 1000, 16 * 1024 * 1024))
    assert (await received(reader)).count(b"HTTP/1.1 200") <= 2 * protocol.PIPELINE_MAX
    assert await sent < 16 * 1024 * 1024


async def test_a_few_pipelined_requests_are_served(connect: Open) -> None:
    reader, writer = await connect()
    writer.write(LIVEZ * 10)
    for _ in range(10):
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")


async def test_one_address_has_a_limited_number_of_connections(connect: Open) -> None:
    opened = [await connect() for _ in range(CONNECTIONS)]
    for reader, writer in opened:
        writer.write(LIVEZ)
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
    reader, writer = await connect()
    writer.write(LIVEZ)
    assert await received(reader) == b""
    opened[0][1].close()
    await opened[0][1].wait_closed()
    while True:  # the server may not have seen the end yet
        reader, writer = await connect()
        writer.write(LIVEZ)
        if (await reader.readline()).startswith(b"HTTP/1.1 200"):
            break
