"""The schedule: arq's keys in Redis, changed by Lua scripts. Each works on a batch; docs/protocol.md describes them."""

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from itertools import count
from operator import attrgetter
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from cplane.jobs.names import quarantine_of
from cplane.redis.connection import MAX_BLOCK_S, SOCKET_TIMEOUT_S, Script, translated
from cplane.redis.dead_letters import DEAD_LETTERS
from cplane.redis.keys import ARQ_LEASE, ARQ_RESULT_PREFIX, EPOCH, LANE_INDEX, LANES, lane_keys, lane_order, wake_key
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
    JobKeys,
    Lease,
    QueueStats,
    Renewal,
    pack,
    packed_bytes,
    packed_id,
    text_of,
)

PAYLOAD_TTL_MS = 30 * 86_400_000
"""How long a payload lives after its job is due: longer than any expected outage. A lost one is rebuilt from its
record."""

ABORT_TTL_MS = 86_400_000
"""How long an abort stays wanted: one that no worker could follow within a day is deleted."""


class Queue:
    """All queues on one Redis. Every call raises QueueUnavailable within 5 seconds if Redis does not respond."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = {
            name: Script(redis, name) for name in ("enqueue", "claim", "renew", "sweep", "stats", "abort", "epoch")
        }
        self._scripts["ack"] = Script(redis, "limiter_common", "ack")
        self._claim_numbers = count()
        self.prefix = f"{os.getpid():x}-{os.urandom(8).hex()}"
        """What the tokens of this client's leases begin with."""

    async def ping(self) -> None:
        """Check that Redis responds.

        Raises:
            QueueUnavailable: it does not.
        """
        async with translated("checking the connection"):
            await cast("Awaitable[object]", self._redis.ping())  # pyright: ignore[reportUnknownMemberType]

    async def enqueue(self, requests: Sequence[EnqueueRequest]) -> list[EnqueueResult]:
        """Schedule ids. An id that is scheduled already stays as it is, except as `late_ms` of its request says.

        Returns:
            The outcome of each request, in order. Repeating the call is safe.
        """

        async def send(queue: str, group: Sequence[EnqueueRequest]) -> list[int]:
            batch: list[object] = []
            for request in group:
                batch += (
                    LANE_INDEX[request.priority], packed_id(request.id), packed_bytes(request.payload),
                    request.delay_ms, request.once, request.late_ms, " ".join(request.limit_keys),
                )  # fmt: skip
            return await self._run("enqueue", [*lane_keys(queue), wake_key(queue)], pack(batch), PAYLOAD_TTL_MS)

        async with translated("scheduling jobs"):
            return [_ENQUEUE_RESULTS[code] for code in await _each_queue(requests, _queue_of_request, send)]

    async def claim(self, queue: str, capacity: int, lease_s: float) -> Claim:
        """Lease ready ids of one queue.

        Args:
            queue: name of the queue.
            capacity: maximum number of ids to lease, 1 or more.
            lease_s: length of each lease, seconds.

        Returns:
            The leases, in the order in which the ids were due within each lane; missing and malformed ids; and
            when the next id falls due.
        """
        request = self._claim_request(queue, capacity, lease_s)
        async with translated("claiming jobs"):
            return request.read(await self._scripts["claim"](request.keys, *request.arguments))

    async def sleep(self, queue: str, timeout_s: float) -> bool:
        """Block until a job is enqueued, up to `timeout_s` seconds (at most 3). Returns False on timeout."""
        async with translated("waiting for jobs"):
            token = await cast(
                "Awaitable[object]", self._redis.blpop([wake_key(queue)], timeout=_block_s(timeout_s))  # pyright: ignore[reportUnknownMemberType]
            )  # fmt: skip
        return token is not None

    async def sleep_and_claim(self, queue: str, timeout_s: float, capacity: int, lease_s: float) -> Claim:
        """Block as `sleep` does, or until `nudge`, then claim. Both are sent together: a woken worker has claimed.

        If this is cancelled, ids that it may have leased stay leased until their leases end; prefer `nudge`.

        Args:
            queue: name of the queue.
            timeout_s: the longest time to block, seconds; at most 3.
            capacity: maximum number of ids to lease, 1 or more.
            lease_s: length of each lease, seconds.
        """
        request = self._claim_request(queue, capacity, lease_s)
        script = self._scripts["claim"]
        async with translated("claiming jobs"):
            async with self._redis.pipeline(transaction=False) as pipe:
                keys = [wake_key(queue), _nudge_key(self.prefix, queue)]
                pipe.blpop(keys, timeout=_block_s(timeout_s))  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                pipe.evalsha(script.sha, len(request.keys), *request.keys, *request.arguments)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
                slept, reply = await pipe.execute(raise_on_error=False)
            if isinstance(reply, NoScriptError):
                reply = await script(request.keys, *request.arguments)
            if isinstance(reply, Exception):
                raise reply
            claim = request.read(reply)
            if isinstance(slept, Exception) and not (claim.leases or claim.missing or claim.malformed):
                raise slept  # a failed sleep must not lose what was leased
            return claim

    async def nudge(self, queue: str, prefix: str = "") -> None:
        """End a `sleep_and_claim` of a queue; one that begins within 2 seconds ends immediately.

        Args:
            queue: name of the queue.
            prefix: that of the client which sleeps; empty: our own.
        """
        key = _nudge_key(prefix or self.prefix, queue)
        async with translated("ending a wait for jobs"), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, b"1")  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            pipe.expire(key, 2)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

    async def wake(self, queue: str) -> None:
        """Wake one blocked worker, after a job was enqueued without our scripts."""
        async with translated("waking a worker"):
            await cast("Awaitable[int]", self._redis.lpush(wake_key(queue), b"1"))  # pyright: ignore[reportUnknownMemberType]

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> list[Renewal]:
        """Extend leases and their slots by `lease_s` seconds from now. Returns the outcome of each, in order."""

        async def send(queue: str, group: Sequence[Lease]) -> list[int]:
            batch = [
                (LANE_INDEX[lease.priority], packed_id(lease.id), lease.token, " ".join(lease.limit_keys))
                for lease in group
            ]
            return await self._run("renew", lane_keys(queue), pack(batch), int(lease_s * 1000))

        async with translated("renewing leases"):
            return [_RENEWALS[code] for code in await _each_queue(leases, _queue_of_lease, send)]

    async def ack(self, acks: Sequence[Ack]) -> list[AckResult]:
        """Acknowledge leases and release their slots. Returns the outcome of each, in order."""

        async def send(queue: str, group: Sequence[Ack]) -> list[int]:
            batch: list[object] = []
            for ack in group:
                batch += (
                    LANE_INDEX[ack.lease.priority], packed_id(ack.lease.id), ack.lease.token, ack.lease.try_ended,
                    ack.disposition, ack.time_ms, packed_bytes(ack.text), ack.keep_lease_ms, " ".join(ack.lease.limit_keys),
                )  # fmt: skip
            return await self._run("ack", _ack_keys(queue), pack(batch))

        async with translated("acknowledging leases"):
            return [_ACK_RESULTS[code] for code in await _each_queue(acks, _queue_of_ack, send)]

    async def sweep(self, queue: str, scan_limit: int = SCAN_LIMIT) -> tuple[Id, ...]:
        """Remove lost ids and old aborts from a queue.

        Args:
            queue: name of the queue.
            scan_limit: maximum number of ready ids of each lane to read.

        Returns:
            The lost ids: they were ready, with neither payload nor lease.
        """
        async with translated("sweeping a queue"):
            missing: list[Any] = await self._scripts["sweep"](lane_keys(queue), scan_limit, ABORT_TTL_MS)
        pairs = zip(*[iter(missing)] * 2, strict=True)
        return tuple(Id(queue, LANES[int(lane) - 1], text_of(id_)) for lane, id_ in pairs)

    async def leases_of(self, queue: str, prefix: str) -> list[Lease]:
        """Return the leases of a client in a queue; of each lane, the first RUNNING_SCAN_LIMIT ids are read.

        Args:
            queue: name of the queue.
            prefix: what the tokens of the client begin with.
        """
        leases: list[Lease] = []
        start = f"{prefix}-".encode()
        async with translated("reading leases"):
            for lane, priority in zip(lane_keys(queue), LANES, strict=True):
                ids = cast("list[bytes]", await self._redis.zrange(lane, 0, RUNNING_SCAN_LIMIT - 1))  # pyright: ignore[reportUnknownMemberType]
                keys = [b"arq:in-progress:" + id_ for id_ in ids]
                tokens = cast("list[bytes | None]", await self._redis.mget(keys)) if keys else []
                leases += [
                    Lease(queue, priority, text_of(id_), b"", 0, b"1", token.decode())
                    for id_, token in zip(ids, tokens, strict=True)
                    if token is not None and token.startswith(start)
                ]
        return leases

    async def stats(self, queue: str) -> QueueStats:
        """Return the state of a queue; nothing is changed."""
        async with translated("reading the state of a queue"):
            reply = await self._run("stats", lane_keys(queue), MAX_LEASE_MS, RUNNING_SCAN_LIMIT)
        ready, scheduled, running, latency_ms = reply
        return QueueStats(queue, ready, scheduled, running, latency_ms / 1000)

    async def read_job(self, id: str) -> JobKeys:  # noqa: A002
        """Read all keys of one job, in one round trip."""
        async with translated("reading a job"), self._redis.pipeline(transaction=True) as pipe:
            pipe.get(f"arq:job:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(ARQ_RESULT_PREFIX + id)  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(f"arq:in-progress:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.get(f"arq:retry:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.zscore("arq:abort", id)  # pyright: ignore[reportUnusedCoroutine]
            payload, result, lease, ended, abort = await pipe.execute()
        running = lease is not None and lease != ARQ_LEASE  # arq counts a try when it begins, we count it when it ends
        return JobKeys(payload, result, lease is not None, int(ended or 0) + running, abort is not None)

    async def due_ms(self, queue: str, id: str) -> int | None:  # noqa: A002
        """Return when an id falls due, ms by Redis's clock, or None if it is not in the queue."""
        async with translated("reading a job"), self._redis.pipeline(transaction=False) as pipe:
            for lane in lane_keys(queue):
                pipe.zscore(lane, id)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            scores = cast("list[float | None]", await pipe.execute())
        return next((int(score) for score in scores if score is not None), None)

    async def abort(self, queue: str, id: str, result: bytes, keep_s: float) -> Aborted:  # noqa: A002  arq's word
        """Cancel a transient job: immediately, or by a request to the worker that runs it.

        Args:
            queue: name of the queue.
            id: the job's id.
            result: the kept result that says the job was cancelled; stored if no worker runs it.
            keep_s: how long that result is kept, seconds.
        """
        async with translated("cancelling a job"):
            return Aborted(await self._scripts["abort"](lane_keys(queue), id, result, int(keep_s * 1000)))

    async def aborts(self) -> set[str]:
        """Return the ids whose abort is wanted (arq's `Job.abort`)."""
        async with translated("reading aborts"):
            return {text_of(id_) for id_ in await self._redis.zrange("arq:abort", 0, -1)}  # pyright: ignore[reportUnknownMemberType]

    async def now_ms(self) -> int:
        """Return Redis's time in ms since 1970: every score is by this clock."""
        async with translated("reading the time"):
            seconds, micros = cast("tuple[int, int]", await self._redis.time())  # pyright: ignore[reportUnknownMemberType]
        return seconds * 1000 + micros // 1000

    async def write_health(self, key: str, info: str, keep_s: float) -> None:
        """Write a worker's health line under arq's key, for `keep_s` seconds."""
        async with translated("writing the worker's health"):
            await self._redis.psetex(key, int(keep_s * 1000), info)

    async def depth(self, queue: str) -> int:
        """Return the number of ids in a queue: ready, scheduled and running."""
        async with translated("counting jobs"), self._redis.pipeline(transaction=False) as pipe:
            for lane in lane_keys(queue):
                pipe.zcard(lane)  # pyright: ignore[reportUnusedCoroutine]
            return sum(cast("list[int]", await pipe.execute()))

    async def results(self, ids: Sequence[str]) -> list[bytes | None]:
        """Return the kept results of transient jobs, in order; None where there is none."""
        async with translated("reading results"):
            return cast("list[bytes | None]", await self._redis.mget([ARQ_RESULT_PREFIX + id_ for id_ in ids]))

    async def presence(self, id: str) -> tuple[bool, bool]:  # noqa: A002
        """Return whether Redis holds a transient job, and whether it is leased."""
        async with translated("reading a job"), self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(f"arq:job:{id}")  # pyright: ignore[reportUnusedCoroutine]
            pipe.exists(f"arq:in-progress:{id}")  # pyright: ignore[reportUnusedCoroutine]
            exists, leased = cast("list[int]", await pipe.execute())
        return bool(exists), bool(exists and leased)

    async def epoch(self, at_least: int | None = None) -> int:
        """Read the counter by which a Redis that lost its data is detected, or advance it.

        Args:
            at_least: None reads the counter; a number advances it by one, and to this number at least.
        """
        async with translated("reading the epoch"):
            if at_least is None:
                value = cast("bytes | None", await self._redis.get(EPOCH))
                return int(value) if value is not None and value.isdigit() else 0
            return int(await self._scripts["epoch"]([EPOCH], at_least))

    async def eviction_policy(self) -> str | None:
        """Return Redis's eviction policy, or None if it never evicts keys or does not report a policy."""
        async with translated("reading the eviction policy"):
            memory = cast("dict[str, Any]", await self._redis.info("memory"))  # pyright: ignore[reportUnknownMemberType]
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        return None if policy == "noeviction" else policy

    def _claim_request(self, queue: str, capacity: int, lease_s: float) -> ClaimRequest:
        number = next(self._claim_numbers)
        return ClaimRequest(queue, lane_order(number), capacity, lease_s, f"{self.prefix}-{number}")

    async def _run(self, script: str, keys: Sequence[str], *args: bytes | str | int) -> list[int]:
        return cast("list[int]", await self._scripts[script](keys, *args))


@lru_cache(maxsize=1024)
def _ack_keys(queue: str) -> list[str]:
    quarantine = quarantine_of(queue)
    return [*lane_keys(queue), wake_key(queue), DEAD_LETTERS, *lane_keys(quarantine), wake_key(quarantine)]


def _nudge_key(prefix: str, queue: str) -> str:
    return f"cplane:nudge:{prefix}:{queue}"


# a dict is many times faster than a call of the enum
_ENQUEUE_RESULTS = {result.value: result for result in EnqueueResult}
_RENEWALS = {renewal.value: renewal for renewal in Renewal}
_ACK_RESULTS = {result.value: result for result in AckResult}

Item = TypeVar("Item")

_queue_of_request: Callable[[EnqueueRequest], str] = attrgetter("queue")
_queue_of_lease: Callable[[Lease], str] = attrgetter("queue")
_queue_of_ack: Callable[[Ack], str] = attrgetter("lease.queue")


async def _each_queue(
    items: Sequence[Item],
    queue_of_item: Callable[[Item], str],
    send: Callable[[str, Sequence[Item]], Awaitable[list[int]]],
) -> list[int]:
    """Send one call for each queue that the items name. Returns the replies in the order of the items."""
    if len(queues := set(map(queue_of_item, items))) == 1:  # nearly always
        return await send(queues.pop(), items)
    indexes: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        indexes.setdefault(queue_of_item(item), []).append(index)
    results = [0] * len(items)
    for queue, group in indexes.items():
        for index, result in zip(group, await send(queue, [items[index] for index in group]), strict=True):
            results[index] = result
    return results


def _block_s(timeout_s: float) -> Any:
    """Return the timeout of a BLPOP, which reads 0 as "without limit" and has a resolution of 0.01 s.

    The type is Any because redis-py's types accept whole seconds only.
    """
    return max(0.01, min(timeout_s, MAX_BLOCK_S))


assert MAX_BLOCK_S < SOCKET_TIMEOUT_S  # noqa: S101  a blocking read must end before its socket times out
