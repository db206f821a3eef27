"""The hosts that jobs take the time of: places, turns and cooldowns, kept in Redis for all workers. See `lua/limiter_common.lua`."""

from collections.abc import Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis

from cplane.errors import MAX_COOL_DOWN_S
from cplane.jobs.per_host import PerHost
from cplane.redis.connection import Script, translated
from cplane.redis.keys import LANE, LANES, redis_name, wake_key
from cplane.redis.messages import Lease

HOSTS = "cplane:hosts"

LOOK_MS = 20_000
"""Who waits for a place is called when one is given back; should a call get lost, it is looked at after so long, and later the more wait
before it."""

FIELDS = ["tat", "until", "concurrency", "interval", "burst"]

GRANTED = -1
LEASE_GONE = -2


class LimitRequest(msgspec.Struct, frozen=True, gc=False):
    """One leased id that wants to start."""

    lease: Lease
    limit_keys: tuple[str, ...]
    """A host, a browser session, or both (see `per_host.limit_keys_of`)."""
    limits: PerHost
    """Of the host; a session has one place."""


class LimiterStats(msgspec.Struct, frozen=True, kw_only=True):
    """How a host stands that somebody had to wait for. Concurrency and rate are those that were asked for last; 0: any."""

    host: str
    """A browser session stands here as `@NAME`."""
    in_use: int
    """Jobs that run there now, of a host whose concurrency is limited."""
    concurrency: int
    rate: float
    waiting: int
    next_start_s: float
    """Seconds until rate and cooldown allow the next start."""
    cooldown_s: float
    """Seconds for which no job starts, because the host has had enough."""


class Limiter:
    """Asks for turns, and leaves hosts alone. Every call raises QueueUnavailable within 5 seconds when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._ask = Script(redis, "limiter_common", "acquire")
        self._cool = Script(redis, "cool_down")

    async def acquire(self, queue: str, asks: Sequence[LimitRequest]) -> list[int]:
        """For leased ids of one queue: GRANTED, LEASE_GONE, or in how many ms the id is due again; it is not leased any more."""
        batch = [
            (
                LANE[ask.lease.priority], ask.lease.id, ask.lease.token, ask.lease.due.decode(), " ".join(ask.limit_keys),
                ask.limits.concurrency or 0, ask.limits.interval_ms, ask.limits.burst,
            )
            for ask in asks
        ]  # fmt: skip
        keys = [*(redis_name(queue, lane) for lane in LANES), wake_key(queue)]
        async with translated("asking whether hosts have time"):
            return cast("list[int]", await self._ask(keys, msgspec.msgpack.encode(batch), LOOK_MS))

    async def cool_down(self, host: str, seconds: float) -> float:
        """Start no job of the host for so long, at most an hour; answers the seconds: those of an earlier call may be more."""
        wait_ms = int(min(max(0.0, seconds), MAX_COOL_DOWN_S) * 1000)
        async with translated("leaving a host alone"):
            return int(await self._cool([_key(host), HOSTS], host, wait_ms)) / 1000

    async def stats(self, limit: int = 100) -> list[LimiterStats]:
        """The hosts that are limited now: those that cool down, that somebody waits for, or whose places are all taken."""
        async with translated("looking at hosts"):
            names: list[str] = [
                name.decode()
                for name in cast("list[bytes]", await self._redis.zrevrange(HOSTS, 0, limit - 1))  # pyright: ignore[reportUnknownMemberType]
            ]
            seconds, micros = cast("tuple[int, int]", await self._redis.time())  # pyright: ignore[reportUnknownMemberType]
            now_ms = seconds * 1000 + micros // 1000
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hmget(_key(name), FIELDS)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                    pipe.zcount(f"{_key(name)}:held", now_ms, "+inf")  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                    pipe.zcard(f"{_key(name)}:line")  # pyright: ignore[reportUnusedCoroutine]
                found = await pipe.execute()
        stands = [
            _stand(name, now_ms, *found[place : place + 3])
            for name, place in zip(names, range(0, len(found), 3), strict=True)
        ]
        return [stand for stand in stands if stand.waiting or stand.cooldown_s or stand.in_use]


def _stand(host: str, now_ms: int, fields: Sequence[bytes | None], in_use: int, waiting: int) -> LimiterStats:
    tat, until, concurrency, interval, burst = (float(field or 0) for field in fields)
    start_ms = max(until, tat - max(0.0, burst - 1) * interval)
    return LimiterStats(
        host=host,
        in_use=in_use,
        concurrency=int(concurrency),
        rate=1000 / interval if interval else 0.0,
        waiting=waiting,
        next_start_s=max(0.0, start_ms - now_ms) / 1000,
        cooldown_s=max(0.0, until - now_ms) / 1000,
    )


def _key(host: str) -> str:
    return f"cplane:host:{host}"
