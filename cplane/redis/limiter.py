"""The limiter: slots, rates and cooldowns of limit keys, in Redis for all workers. See `lua/limiter_common.lua`."""

from collections.abc import Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis

from cplane.errors import MAX_COOL_DOWN_S
from cplane.jobs.per_host import PerHost
from cplane.redis.connection import Script, translated
from cplane.redis.keys import LANE_INDEX, lane_keys, wake_key
from cplane.redis.messages import Lease

HOSTS = "cplane:hosts"
"""The limit keys for which a job had to wait, or that cool down."""

RECHECK_INTERVAL_MS = 20_000
"""A waiter is made ready when a slot is released. If that fails, it is due after this time, or later the more waiters
are before it."""

FIELDS = ["tat", "cooldown_until", "concurrency", "interval", "burst"]
"""The fields of a limit key's hash."""

GRANTED = -1
LEASE_GONE = -2


class LimitRequest(msgspec.Struct, frozen=True, gc=False):
    """One leased id that needs a slot of each of its limit keys before it may start."""

    lease: Lease
    limit_keys: tuple[str, ...]
    """A host, a browser session, or both (see `per_host.limit_keys_of`)."""
    limits: PerHost
    """The limits of the host; a browser session has one slot."""


class LimiterStats(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a limit key. Concurrency and rate are those of the last request; 0: unlimited."""

    host: str
    """A host, or a browser session as `@NAME`."""
    in_use: int
    """Jobs that run there now, if concurrency is limited."""
    concurrency: int
    rate: float
    waiting: int
    """Jobs in the wait queue."""
    next_start_s: float
    """Seconds until rate and cooldown allow the next start."""
    cooldown_s: float
    """Seconds until the cooldown ends; 0: there is none."""


class Limiter:
    """The limiter in Redis. Every call raises QueueUnavailable within 5 seconds if Redis does not respond."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._acquire = Script(redis, "limiter_common", "acquire")
        self._cool_down = Script(redis, "cool_down")

    async def acquire(self, queue: str, requests: Sequence[LimitRequest]) -> list[int]:
        """Acquire slots for leased ids of one queue. An id that must wait is requeued and is not leased any more.

        Args:
            queue: name of the queue.
            requests: the leased ids, with their limits.

        Returns:
            For each request, in order: GRANTED, LEASE_GONE, or the ms after which the requeued id is due again.
        """
        batch = [
            (
                LANE_INDEX[request.lease.priority], request.lease.id, request.lease.token, request.lease.due.decode(),
                " ".join(request.limit_keys),
                request.limits.concurrency or 0, request.limits.interval_ms, request.limits.burst,
            )
            for request in requests
        ]  # fmt: skip
        async with translated("acquiring slots"):
            reply = await self._acquire(
                [*lane_keys(queue), wake_key(queue)], msgspec.msgpack.encode(batch), RECHECK_INTERVAL_MS
            )
        return cast("list[int]", reply)

    async def cool_down(self, host: str, seconds: float) -> float:
        """Start no job of a host for `seconds`, at most an hour.

        Returns:
            Seconds until the cooldown ends; an earlier one that lasts longer is not shortened.
        """
        cooldown_ms = int(min(max(0.0, seconds), MAX_COOL_DOWN_S) * 1000)
        async with translated("starting a cooldown"):
            return int(await self._cool_down([_key(host), HOSTS], host, cooldown_ms)) / 1000

    async def stats(self, limit: int = 100) -> list[LimiterStats]:
        """Return the limit keys that limit jobs now: in cooldown, with waiters, or with slots in use.

        Args:
            limit: maximum number of limit keys to read, the ones that were waited for last first.
        """
        async with translated("reading the state of the limiter"):
            names: list[str] = [
                name.decode()
                for name in cast("list[bytes]", await self._redis.zrevrange(HOSTS, 0, limit - 1))  # pyright: ignore[reportUnknownMemberType]
            ]
            seconds, micros = cast("tuple[int, int]", await self._redis.time())  # pyright: ignore[reportUnknownMemberType]
            now_ms = seconds * 1000 + micros // 1000
            async with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hmget(_key(name), FIELDS)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                    pipe.zcount(f"{_key(name)}:slots", now_ms, "+inf")  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                    pipe.zcard(f"{_key(name)}:waiters")  # pyright: ignore[reportUnusedCoroutine]
                replies = await pipe.execute()
        all_stats = [
            _stats(name, now_ms, *replies[at : at + 3])
            for name, at in zip(names, range(0, len(replies), 3), strict=True)
        ]
        return [stats for stats in all_stats if stats.waiting or stats.cooldown_s or stats.in_use]


def _stats(host: str, now_ms: int, fields: Sequence[bytes | None], in_use: int, waiting: int) -> LimiterStats:
    tat, cooldown_until, concurrency, interval, burst = (float(field or 0) for field in fields)
    start_ms = max(cooldown_until, tat - max(0.0, burst - 1) * interval)
    return LimiterStats(
        host=host,
        in_use=in_use,
        concurrency=int(concurrency),
        rate=1000 / interval if interval else 0.0,
        waiting=waiting,
        next_start_s=max(0.0, start_ms - now_ms) / 1000,
        cooldown_s=max(0.0, cooldown_until - now_ms) / 1000,
    )


def _key(name: str) -> str:
    return f"cplane:host:{name}"
