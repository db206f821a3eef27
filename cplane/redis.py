"""The connection to Redis: built from the URL by us, with a deadline on every call."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
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


class _Pool(ConnectionPool):
    """redis-py's pool opens connections again after it was closed, and leaves some open if that is cancelled; this one does not."""

    _closed = False

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, if it must be, and check that the connection is sound."""
        self._refuse_if_closed()
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


@cache
def script_text(name: str) -> str:
    """The text of one of our `.lua` files."""
    return (files("cplane") / "lua" / f"{name}.lua").read_text()
