"""The connection to Redis: built from the URL by us, with a deadline on every call."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
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
    """A client for `url` (redis://, rediss:// or unix://); it connects when first used, and closes every connection at the end."""
    pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  redis-py leaves **kwargs untyped
        url.get_secret_value(),
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        **({} if url.get_secret_value().startswith("unix:") else {"socket_keepalive": True}),
    )
    client = Redis(connection_pool=pool)
    try:
        yield client
    finally:
        await client.aclose(close_connection_pool=True)
        await pool.disconnect()


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
