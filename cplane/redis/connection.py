"""The connection to Redis: built from the URL by us, with a deadline on every call; and our scripts."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cplane.errors import QueueUnavailable

SOCKET_TIMEOUT_S = 5.0
"""A black-holed packet must not hang the loop; blocking reads wait less than this."""

BLOCK_S = 3.0
"""The longest a blocking read (BLPOP, XREAD) waits before it asks again."""

CONNECT_TIMEOUT_S = 2.0

AnyRedis = (
    Redis  # redis-py's class is not generic at run time; answers are bytes (decode_responses is off, as arq needs)
)


@asynccontextmanager
async def connect(url: SecretStr) -> AsyncGenerator[Redis]:
    """A client for `url` (redis://, rediss:// or unix://); it connects when first used, and closes every connection at the end.

    What still calls it after the end is refused.
    """
    pool = _Pool.from_url(  # pyright: ignore[reportUnknownMemberType]  redis-py leaves **kwargs untyped
        url.get_secret_value(),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        **({} if url.get_secret_value().startswith("unix:") else {"socket_keepalive": True}),
    )
    try:
        yield Redis(connection_pool=pool)
    finally:
        await pool.close_for_good()


class _Connection(AbstractConnection):
    """redis-py makes a task of each sending, to watch over its time; here that is done without one.

    The task costs as much as the sending, and before Python 3.12 it can swallow a cancellation.
    """

    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    @property
    def is_usable(self) -> bool:
        """Whether it is connected, and Redis has not closed it."""
        return self.is_connected and self._reader is not None and not self._reader.at_eof()

    async def send_packed_command(self, command: str | bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send a command, within SOCKET_TIMEOUT_S."""
        if not self.is_connected:
            await self.connect()  # type: ignore[no-untyped-call]
        elif check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        writer = self._writer
        if writer is None:
            raise RedisConnectionError("the connection to Redis was closed meanwhile")
        parts = [command.encode()] if isinstance(command, str) else [command] if isinstance(command, bytes) else command
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_S):
                writer.writelines(parts)
                await writer.drain()
        except BaseException as error:  # what is half sent makes the connection useless
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            raise


def _connection(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """A kind of connection (TCP, TLS, Unix socket) that sends our way."""
    return type(kind.__name__, (_Connection, kind), {})


class _Pool(ConnectionPool):
    """redis-py's pool opens connections again after it was closed, and leaves some open if that is cancelled; this one does not."""

    _closed = False

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(_connection(connection_class), **options)  # pyright: ignore[reportUnknownMemberType]  its options are untyped

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, if it must be, and check that the connection is sound."""
        self._refuse_if_closed()
        if isinstance(connection, _Connection) and connection.is_usable:
            return  # nothing can be left to read: a connection on which anything failed is closed
        await super().ensure_connection(connection)
        if self._closed:  # while it connected
            await connection.disconnect(nowait=True)
            self._refuse_if_closed()

    async def close_for_good(self) -> None:
        """Close every connection, those in use too."""
        self._closed = True
        try:
            await self.disconnect()
        finally:  # cancelled meanwhile: without `nowait` each would be a wait that is cancelled as well
            for connection in (*self._available_connections, *self._in_use_connections):
                await connection.disconnect(nowait=True)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RedisConnectionError("the connections to Redis are closed")


@asynccontextmanager
async def translated(doing: str) -> AsyncGenerator[None]:
    """Redis's errors become QueueUnavailable: `doing` says what was under way. The password in the URL stays out of the message."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError) as error:
        raise QueueUnavailable(
            f"Redis did not answer while {doing}", hint="is CPLANE_REDIS_URL right, and the server up?"
        ) from error
    except RedisError as error:
        raise QueueUnavailable(f"Redis refused while {doing}: {error}") from error


class Script:
    """One of our `.lua` scripts, which may be put together from several files."""

    def __init__(self, redis: Redis, *names: str) -> None:
        self._redis: Any = redis  # redis-py's types say that answers are str
        self._text = "".join(map(_text, names))
        self.sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, keys: Sequence[str], *args: bytes | str | int) -> Any:
        """Run it; the answer is what the script's header says.

        A Redis that does not know it is sent the text and runs that in the same call: whoever empties Redis's scripts cannot come between.
        """
        try:
            return await self._redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._redis.eval(self._text, len(keys), *keys, *args)


@cache
def _text(name: str) -> str:
    return (files("cplane.redis") / "lua" / f"{name}.lua").read_text()
