"""The connection to Redis, with a deadline on every call; and our Lua scripts."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cplane.errors import QueueUnavailable

if TYPE_CHECKING:
    from pydantic import SecretStr

SOCKET_TIMEOUT_S = 5.0
"""Deadline of one call: a black-holed packet must not hang the loop. Blocking reads wait less than this."""

MAX_BLOCK_S = 3.0
"""The longest time that one blocking read (BLPOP, XREAD) waits; a caller that waits longer repeats it."""

CONNECT_TIMEOUT_S = 2.0

AnyRedis = Redis  # redis-py's class is not generic at run time; replies are bytes (no decode_responses, as arq needs)


@asynccontextmanager
async def connect(url: "SecretStr | str") -> AsyncGenerator[Redis]:
    """Open a client that connects when it is first used, and close all its connections at the end.

    A call after the end raises `ConnectionError` instead of connecting again.

    Args:
        url: address of the server: redis://, rediss:// or unix://.
    """
    address = url if isinstance(url, str) else url.get_secret_value()
    pool = _Pool.from_url(  # pyright: ignore[reportUnknownMemberType]  redis-py leaves **kwargs untyped
        address,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        **({} if address.startswith("unix:") else {"socket_keepalive": True}),
    )
    try:
        yield Redis(connection_pool=pool)
    finally:
        await pool.close_for_good()


class _Connection(AbstractConnection):
    """A connection that sends without an extra task: redis-py creates one per command, to limit its time.

    That task costs as much as the sending, and before Python 3.12 it can swallow a cancellation.
    """

    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    @property
    def is_usable(self) -> bool:
        """Whether the connection is open and Redis has not closed it."""
        return self.is_connected and self._reader is not None and not self._reader.at_eof()

    async def send_packed_command(self, command: str | bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command, within SOCKET_TIMEOUT_S."""
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        writer = self._writer
        if writer is None:
            raise RedisConnectionError("the connection to Redis was closed concurrently")
        parts = [command.encode()] if isinstance(command, str) else [command] if isinstance(command, bytes) else command
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_S):
                writer.writelines(parts)
                await writer.drain()
        except BaseException as error:  # a half-sent command makes the connection useless
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            raise


def _connection(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """Return a class of connection (TCP, TLS, Unix socket) with our way of sending."""
    return type(kind.__name__, (_Connection, kind), {})


class _Pool(ConnectionPool):
    """A pool that stays closed: redis-py's reconnects after a close, and leaks connections if the close is cancelled."""

    _closed = False

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(_connection(connection_class), **options)  # pyright: ignore[reportUnknownMemberType]  its options are untyped

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect where necessary, and check that the connection works."""
        self._raise_if_closed()
        if isinstance(connection, _Connection) and connection.is_usable:
            return  # no reply can be left in it: a connection on which anything failed is closed
        await super().ensure_connection(connection)
        if self._closed:  # while it connected
            await connection.disconnect(nowait=True)
            self._raise_if_closed()

    async def close_for_good(self) -> None:
        """Close every connection, also those in use."""
        self._closed = True
        try:
            await self.disconnect()
        finally:  # if this was cancelled: without `nowait` each disconnect would be a wait that is cancelled as well
            for connection in (*self._available_connections, *self._in_use_connections):
                await connection.disconnect(nowait=True)

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise RedisConnectionError("the connections to Redis are closed")


@asynccontextmanager
async def translated(doing: str) -> AsyncGenerator[None]:
    """Turn errors of redis-py into QueueUnavailable; the password in the URL stays out of the message.

    Args:
        doing: what the block does, as a participle: "claiming jobs".

    Raises:
        QueueUnavailable: Redis did not respond, or replied with an error.
    """
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError) as error:
        raise QueueUnavailable(
            f"Redis did not respond while {doing}", hint="is CPLANE_REDIS_URL right, and the server up?"
        ) from error
    except RedisError as error:
        raise QueueUnavailable(f"Redis replied with an error while {doing}: {error}") from error


SERVER_STATE = re.compile(r"(?!WRONGTYPE )[A-Z]{3,} ")
"""The beginning of an error that is about the server's state: OOM, MISCONF, READONLY, BUSY and others."""


def is_refusal(error: QueueUnavailable) -> bool:
    """Return whether Redis refused the call itself: the same call will be refused again, another may not be."""
    cause = error.__cause__
    return type(cause) is ResponseError and SERVER_STATE.match(str(cause)) is None


class Script:
    """One of our Lua scripts, joined from one or more `.lua` files; docs/protocol.md describes them."""

    def __init__(self, redis: Redis, *names: str) -> None:
        self._redis: Any = redis  # redis-py's types say that replies are str
        self._text = "".join(map(_text, names))
        self.sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str], *args: bytes | str | int) -> Any:
        """Run the script and return its reply, as its header describes it.

        If Redis does not know the script, the same call sends its text and runs that: a concurrent SCRIPT FLUSH has no
        effect.
        """
        try:
            return await self._redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._redis.eval(self._text, len(keys), *keys, *args)


@cache
def _text(name: str) -> str:
    return (files("cplane.redis") / "lua" / f"{name}.lua").read_text()
