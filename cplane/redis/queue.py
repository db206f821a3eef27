"""The schedule: arq's keys in Redis, moved by scripts. Each works on a batch; see the `.lua` files for their protocol."""

import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from operator import attrgetter
from typing import Any, TypeVar, cast

from arq.constants import result_key_prefix
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from cplane.redis.connection import BLOCK_S, SOCKET_TIMEOUT_S, Script, translated
from cplane.redis.dead_letters import DEAD_LETTERS
from cplane.redis.keys import ARQ_LEASE, EPOCH, LANE, LANES, lane_keys, order_of, wake_key
from cplane.redis.messages import (
    MAX_LEASE_MS,
    RUNNING_SCAN_LIMIT,
    SCAN_LIMIT,
    Aborted,
    Ack,
    AckResult,
    Claim,
    ClaimRequest,
    EnqueueRequest,
    EnqueueResult,
    Id,
    Lease,
    Look,
    QueueStats,
    Renewal,
    pack,
    packed_bytes,
    packed_id,
    text_of,
)

PAYLOAD_TTL_MS = 30 * 86_400_000
"""A payload outlives every outage we can think of; one that is gone is rebuilt from its record."""


ABORT_TTL_MS = 86_400_000
"""An abort that nobody could follow in a day is forgotten."""


class Queue:
    """All queues on one Redis. Every call raises QueueUnavailable within 5 seconds when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = {
            name: Script(redis, name) for name in ("enqueue", "claim", "renew", "sweep", "stats", "abort", "epoch")
        }
        self._scripts["ack"] = Script(redis, "limiter_common", "ack")
        self._grants = count()
        self._prefix = f"{os.getpid():x}-{os.urandom(8).hex()}"

    async def ping(self) -> None:
        """Whether Redis answers."""
        async with translated("checking the connection"):
            await cast("Awaitable[object]", self._redis.ping())  # pyright: ignore[reportUnknownMemberType]

    async def enqueue(self, pushes: Sequence[EnqueueRequest]) -> list[EnqueueResult]:
        """Schedule ids; an id that is there already stays as it is."""

        async def send(queue: str, group: Sequence[EnqueueRequest]) -> list[int]:
            batch: list[object] = []
            for push in group:
                batch += (
                    LANE[push.priority], packed_id(push.id), packed_bytes(push.payload), push.delay_ms, push.once, push.late_ms,
                    " ".join(push.limit_keys),
                )  # fmt: skip
            return await self._answers("enqueue", [*lane_keys(queue), wake_key(queue)], pack(batch), PAYLOAD_TTL_MS)

        async with translated("scheduling jobs"):
            return [_ENQUEUE_RESULTS[answer] for answer in await _each_queue(pushes, _queue_of_request, send)]

    async def claim(self, queue: str, room: int, lease_s: float) -> Claim:
        """Lease at most `room` ids that are due."""
        asked = self._ask(queue, room, lease_s)
        async with translated("claiming jobs"):
            return asked.read(await self._scripts["claim"](asked.keys, *asked.arguments))

    async def sleep(self, queue: str, longest_s: float) -> bool:
        """Wait until something is pushed, at most `longest_s` seconds (and 3); answers whether a push woke us."""
        async with translated("waiting for jobs"):
            token = await cast(
                "Awaitable[object]", self._redis.blpop([wake_key(queue)], timeout=_block_s(longest_s))  # pyright: ignore[reportUnknownMemberType]
            )  # fmt: skip
        return token is not None

    async def sleep_and_claim(self, queue: str, longest_s: float, room: int, lease_s: float) -> Claim:
        """`sleep`, or until `nudge`, then `claim`, sent as one: who is woken has claimed before we hear of it.

        Cancelled, it leaves what it may have leased to the end of the leases: rather nudge it.
        """
        asked = self._ask(queue, room, lease_s)
        script = self._scripts["claim"]
        async with translated("claiming jobs"):
            async with self._redis.pipeline(transaction=False) as pipe:
                keys = [wake_key(queue), self._nudge_key(queue)]
                pipe.blpop(keys, timeout=_block_s(longest_s))  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                pipe.evalsha(script.sha, len(asked.keys), *asked.keys, *asked.arguments)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                slept, answer = await pipe.execute(raise_on_error=False)
            if isinstance(answer, NoScriptError):
                answer = await script(asked.keys, *asked.arguments)
            if isinstance(answer, Exception):
                raise answer
            claim = asked.read(answer)
            if isinstance(slept, Exception) and not (claim.leases or claim.missing or claim.malformed):
                raise slept  # what was leased is not lost because the sleep failed
            return claim

    async def nudge(self, queue: str) -> None:
        """End our own `sleep_and_claim` of a queue; one that begins within two seconds ends at once."""
        key = self._nudge_key(queue)
        async with translated("ending a wait for jobs"), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, b"1")  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            pipe.expire(key, 2)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

    async def wake(self, queue: str) -> None:
        """Wake one worker that sleeps: something was pushed without one of our scripts."""
        async with translated("waking a worker"):
            await cast("Awaitable[int]", self._redis.lpush(wake_key(queue), b"1"))  # pyright: ignore[reportUnknownMemberType]

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> list[Renewal]:
        """Extend leases."""

        async def send(queue: str, group: Sequence[Lease]) -> list[int]:
            batch = [
                (LANE[lease.priority], packed_id(lease.id), lease.token, " ".join(lease.limit_keys)) for lease in group
            ]
            return await self._answers("renew", lane_keys(queue), pack(batch), int(lease_s * 1000))

        async with translated("renewing leases"):
            return [_RENEWALS[answer] for answer in await _each_queue(leases, _queue_of_lease, send)]

    async def ack(self, acks: Sequence[Ack]) -> list[AckResult]:
        """Give leases back."""

        async def send(queue: str, group: Sequence[Ack]) -> list[int]:
            batch: list[object] = []
            for back in group:
                batch += (
                    LANE[back.lease.priority], packed_id(back.lease.id), back.lease.token, back.lease.try_ended,
                    back.action, back.number, packed_bytes(back.text), back.keep_ms, " ".join(back.lease.limit_keys),
                )  # fmt: skip
            return await self._answers("ack", [*lane_keys(queue), wake_key(queue), DEAD_LETTERS], pack(batch))

        async with translated("giving leases back"):
            return [_ACK_RESULTS[answer] for answer in await _each_queue(acks, _queue_of_ack, send)]

    async def sweep(self, queue: str, scan_limit: int = SCAN_LIMIT) -> list[Id]:
        """Remove lost ids and old aborts from a queue.

        Args:
            queue: its name.
            scan_limit: due ids of each lane that are read, at most.

        Returns:
            The lost ids: they were due, with neither payload nor lease.
        """
        async with translated("sweeping a queue"):
            missing: list[Any] = await self._scripts["sweep"](lane_keys(queue), scan_limit, ABORT_TTL_MS)
        return [Id(queue, LANES[int(lane) - 1], text_of(id_)) for lane, id_ in zip(*[iter(missing)] * 2, strict=True)]

    async def stats(self, queue: str) -> QueueStats:
        """Return the state of a queue; reading changes nothing."""
        async with translated("reading the state of a queue"):
            answers = await self._answers("stats", lane_keys(queue), MAX_LEASE_MS, RUNNING_SCAN_LIMIT)
        ready, scheduled, running, latency_ms = answers
        return QueueStats(queue, ready, scheduled, running, latency_ms / 1000)

    async def look(self, id: str) -> Look:  # noqa: A002
        """What there is of one job, in one round trip."""
        async with translated("asking for a job"), self._redis.pipeline(transaction=True) as pipe:
            pipe.get(f"arq:job:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(result_key_prefix + id)  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(f"arq:in-progress:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(f"arq:retry:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.zscore("arq:abort", id)  # pyright: ignore[reportUnusedCoroutine]
            payload, result, lease, ended, abort = await pipe.execute()
        ours = lease is not None and lease != ARQ_LEASE  # arq counts a try as it begins, we count it as it ends
        return Look(payload, result, lease is not None, int(ended or 0) + ours, abort is not None)

    async def due_ms(self, queue: str, id: str) -> int | None:  # noqa: A002
        """When an id falls due by Redis's clock; None: it is not in the queue."""
        async with translated("asking for a job"), self._redis.pipeline(transaction=False) as pipe:
            for lane in lane_keys(queue):
                pipe.zscore(lane, id)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            scores = cast("list[float | None]", await pipe.execute())
        return next((int(score) for score in scores if score is not None), None)

    async def abort(self, queue: str, id: str, result: bytes, keep_s: float) -> Aborted:  # noqa: A002  the field's word
        """Cancel a transient job: at once, or by telling its worker. `result` is kept as its result when nobody runs it."""
        async with translated("cancelling a job"):
            return Aborted(await self._scripts["abort"](lane_keys(queue), id, result, int(keep_s * 1000)))

    async def aborts(self) -> set[str]:
        """Ids whose abort is wanted (arq's `Job.abort`)."""
        async with translated("reading aborts"):
            return {text_of(id_) for id_ in await self._redis.zrange("arq:abort", 0, -1)}  # pyright: ignore[reportUnknownMemberType]

    async def now_ms(self) -> int:
        """Redis's clock, by which everything is due."""
        async with translated("asking for the time"):
            seconds, micros = cast("tuple[int, int]", await self._redis.time())  # pyright: ignore[reportUnknownMemberType]
        return seconds * 1000 + micros // 1000

    async def tell_health(self, key: str, info: str, keep_s: float) -> None:
        """Write a worker's health line under arq's key."""
        async with translated("telling the worker's health"):
            await self._redis.psetex(key, int(keep_s * 1000), info)

    async def depth(self, queue: str) -> int:
        """How many ids the queue holds: due, scheduled and leased."""
        async with translated("counting jobs"), self._redis.pipeline(transaction=False) as pipe:
            for lane in lane_keys(queue):
                pipe.zcard(lane)  # pyright: ignore[reportUnusedCoroutine]
            return sum(cast("list[int]", await pipe.execute()))

    async def results(self, ids: Sequence[str]) -> list[bytes | None]:
        """The kept results of transient jobs, in order."""
        async with translated("reading results"):
            return cast("list[bytes | None]", await self._redis.mget([result_key_prefix + id_ for id_ in ids]))

    async def standing(self, id: str) -> tuple[bool, bool]:  # noqa: A002
        """Of a transient job: whether it is queued or leased at all, and whether it is leased."""
        async with translated("asking for a job"), self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(f"arq:job:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.exists(f"arq:in-progress:{id}")  # pyright: ignore[reportUnusedCoroutine]
            there, leased = cast("list[int]", await pipe.execute())
        return bool(there), bool(there and leased)

    async def epoch(self, at_least: int | None = None) -> int:
        """The counter by which a Redis that lost its memory is noticed: read (None), or moved on, to `at_least` or beyond."""
        async with translated("reading the epoch"):
            if at_least is None:
                value = cast("bytes | None", await self._redis.get(EPOCH))
                return int(value) if value is not None and value.isdigit() else 0
            return int(await self._scripts["epoch"]([EPOCH], at_least))

    async def eviction(self) -> str | None:
        """The policy by which Redis throws keys away when its memory is full; None: it never does, or does not tell."""
        async with translated("asking for the eviction policy"):
            memory = cast("dict[str, Any]", await self._redis.info("memory"))  # pyright: ignore[reportUnknownMemberType]
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        return None if policy == "noeviction" else policy

    def _ask(self, queue: str, room: int, lease_s: float) -> "ClaimRequest":
        number = next(self._grants)
        return ClaimRequest(queue, order_of(number), room, lease_s, f"{self._prefix}-{number}")

    def _nudge_key(self, queue: str) -> str:
        return f"cplane:nudge:{self._prefix}:{queue}"

    async def _answers(self, script: str, keys: Sequence[str], *args: bytes | str | int) -> list[int]:
        return cast("list[int]", await self._scripts[script](keys, *args))


# looking a number up is many times faster than asking the enum
_ENQUEUE_RESULTS = {pushed.value: pushed for pushed in EnqueueResult}


_RENEWALS = {renewal.value: renewal for renewal in Renewal}


_ACK_RESULTS = {returned.value: returned for returned in AckResult}


Item = TypeVar("Item")


_queue_of_request: Callable[[EnqueueRequest], str] = attrgetter("queue")


_queue_of_lease: Callable[[Lease], str] = attrgetter("queue")


_queue_of_ack: Callable[[Ack], str] = attrgetter("lease.queue")


async def _each_queue(
    items: Sequence[Item],
    queue_of_item: Callable[[Item], str],
    send: Callable[[str, Sequence[Item]], Awaitable[list[int]]],
) -> list[int]:
    """One call for each queue that the items name; the answers in the items' order."""
    if len(queues := set(map(queue_of_item, items))) == 1:  # nearly always
        return await send(queues.pop(), items)
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(queue_of_item(item), []).append(place)
    answers = [0] * len(items)
    for queue, taken in places.items():
        for place, answer in zip(taken, await send(queue, [items[place] for place in taken]), strict=True):
            answers[place] = answer
    return answers


def _block_s(longest_s: float) -> Any:
    """BLPOP reads 0 as "for ever", and counts in hundredths of a second at the finest; redis-py's types know whole seconds only."""
    return max(0.01, min(longest_s, BLOCK_S))


assert BLOCK_S < SOCKET_TIMEOUT_S  # noqa: S101  a blocking read must end before its socket times out
