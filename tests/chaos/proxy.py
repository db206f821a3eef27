"""A proxy between a worker and a server that cuts, blocks or delays the bytes, separately in each direction."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK = 65_536


Address = Path | tuple[str, int]
"""A Unix socket, or a host and a port."""


class Direction:
    """One direction of a connection: chunks are delayed by `delay_s`, and blocked while it is not open."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.open = asyncio.Event()
        self.open.set()

    def hold(self) -> None:
        """Block all bytes without an error. They are delivered when the direction is open again."""
        self.open.clear()


class Proxy:
    """Listens on the Unix socket `path` and forwards everything to `server`."""

    def __init__(self, path: Path, server: Address) -> None:
        self._path = path
        self._address = server
        self.to_server = Direction()
        self.to_client = Direction()
        self.refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._listener.close()
        self.heal()
        self.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hold(self) -> None:
        """Block both directions."""
        self.to_server.hold()
        self.to_client.hold()

    def heal(self) -> None:
        """Forward everything without delay again."""
        self.refusing = False
        for direction in (self.to_server, self.to_client):
            direction.delay_s = 0.0
            direction.open.set()

    def reset(self) -> None:
        """Abort all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self.refusing:
                await self._connect(reader, writer)
        except OSError:
            pass  # the server is unavailable, or one side cut the connection: pass that on to the other side
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await _open(self._address)
        self._writers.add(server_writer)
        try:
            await self._run_until_one_ends(
                lambda: _pump(reader, server_writer, self.to_server),
                lambda: _pump(server_reader, writer, self.to_client),
            )
        finally:
            self._writers.discard(server_writer)
            server_writer.transport.abort()

    async def _run_until_one_ends(self, *pumps: Callable[[], Awaitable[None]]) -> None:
        """Run both pumps until one side closes, then cancel the other."""
        tasks = {asyncio.ensure_future(pump()) for pump in pumps}
        self._tasks |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks -= tasks


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    try:
        while data := await reader.read(CHUNK):
            await direction.open.wait()
            if direction.delay_s:
                await asyncio.sleep(direction.delay_s)
                await direction.open.wait()
            writer.write(data)
            await writer.drain()
    except OSError:
        return  # the connection was cut


async def _open(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)
