"""The schedule: arq's keys in Redis, moved by four scripts. Each works on a batch; see the `.lua` files for their protocol."""

import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import count
from typing import Any, Protocol, Self, TypeVar, cast
from uuid import UUID

import msgspec
from arq.constants import default_queue_name
from redis.asyncio import Redis

from cplane.jobs import DEFAULT_QUEUE
from cplane.redis import BLOCK_S, SOCKET_TIMEOUT_S, script_text, translated

PAYLOAD_TTL_MS = 30 * 86_400_000
"""A payload outlives every outage we can think of; one that is gone is rebuilt from its record."""

LOOKS = 1000
"""Due ids a claim looks at, so that one call stays short whatever is in the queue."""


def redis_name(queue: str) -> str:
    """The sorted set of a queue: arq's own name for the default one."""
    return default_queue_name if queue == DEFAULT_QUEUE else f"{default_queue_name}:{queue}"


def queue_of(redis_queue: str) -> str:
    """The queue of a sorted set."""
    return DEFAULT_QUEUE if redis_queue == default_queue_name else redis_queue.removeprefix(f"{default_queue_name}:")


def encode_envelope(function: str, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None) -> bytes:
    """arq's job dict as msgpack: no code can come from it."""
    envelope = {"t": None, "f": function, "a": list(args), "k": dict(kwargs or {}), "et": int(time.time() * 1000)}
    return msgspec.msgpack.encode(envelope)


def decode_envelope(payload: bytes) -> dict[str, object]:
    """arq's job dict.

    Raises:
        ValueError: it is not msgpack, or not a dict with arq's fields.
    """
    try:
        envelope = msgspec.msgpack.decode(payload)
    except msgspec.DecodeError as error:
        raise ValueError(f"the payload is not msgpack: {error}") from None
    if not isinstance(envelope, dict) or not isinstance(cast("dict[str, object]", envelope).get("f"), str):
        raise ValueError("the payload is not arq's job dict")  # noqa: TRY004  data from outside, not a programming error
    return cast("dict[str, object]", envelope)


@dataclass(frozen=True, slots=True)
class Push:
    """One id for the schedule of a queue, due in `delay_ms` by Redis's clock."""

    queue: str
    id: str
    payload: bytes
    delay_ms: int = 0
    once: bool = False
    """A kept result of the same id blocks it: arq's semantics, for transient jobs."""

    @classmethod
    def of_record(cls, queue: str, record_id: UUID, job: str, delay_ms: int) -> Self:
        """A record's place in the schedule: its payload names the job; the arguments stay in Postgres."""
        return cls(queue, str(record_id), encode_envelope(job), max(0, delay_ms))


class Pushed(IntEnum):
    """What enqueue did."""

    SCHEDULED = 1
    ALREADY_THERE = 0
    RESULT_BLOCKS = -1


@dataclass(frozen=True, slots=True)
class Grant:
    """One leased id: only the holder of `token` may renew or finish it."""

    id: str
    payload: bytes
    tries: int
    due_ms: int
    token: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought: grants, ids whose payload is gone, and when to ask again (None: nothing is scheduled)."""

    grants: list[Grant]
    missing: list[str]
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease to renew."""

    queue: str
    id: str
    token: str


class Renewal(IntEnum):
    """What became of a lease."""

    RENEWED = 1
    ABORT_WANTED = 2
    FENCED = 0
    UNKNOWN = -1


class Action(StrEnum):
    """How a lease is given back."""

    DONE = "done"
    RETRY = "retry"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Return:
    """One lease given back: `number` is a delay in ms (retry) or the old due time in ms (release)."""

    queue: str
    id: str
    token: str
    action: Action
    number: int = 0
    result: bytes = b""
    keep_ms: int = 0


class Returned(IntEnum):
    """What finish did."""

    APPLIED = 1
    FENCED = 0
    UNKNOWN = -1


class Queue:
    """All queues on one Redis. Every call raises QueueUnavailable within 5 seconds when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._enqueue = redis.register_script(script_text("enqueue"))
        self._claim = redis.register_script(script_text("claim"))
        self._renew = redis.register_script(script_text("renew"))
        self._finish = redis.register_script(script_text("finish"))
        self._grants = count()
        self._prefix = f"{os.getpid():x}-{os.urandom(8).hex()}"

    async def ping(self) -> None:
        """Whether Redis answers."""
        async with translated("checking the connection"):
            await cast("Awaitable[object]", self._redis.ping())  # pyright: ignore[reportUnknownMemberType]

    async def enqueue(self, pushes: Sequence[Push]) -> list[Pushed]:
        """Schedule ids; an id that is there already stays as it is."""

        async def send(queue: str, group: Sequence[Push]) -> list[int]:
            args: list[bytes | str | int] = [PAYLOAD_TTL_MS]
            for push in group:
                args += [push.id, push.payload, push.delay_ms, "1" if push.once else "0"]
            return await _call(self._enqueue, keys=[redis_name(queue), _wake_key(queue)], args=args)

        async with translated("scheduling jobs"):
            return [Pushed(answer) for answer in await _each_queue(pushes, send)]

    async def claim(self, queue: str, room: int, lease_s: float) -> Claim:
        """Lease at most `room` ids that are due."""
        async with translated("claiming jobs"):
            claimed, missing, wait_ms = await _call(
                self._claim,
                keys=[redis_name(queue), _wake_key(queue)],
                args=[room, int(lease_s * 1000), f"{self._prefix}-{next(self._grants)}", LOOKS],
            )
        return Claim(
            grants=[
                Grant(_text(id_), payload, tries, int(float(due_ms)), _text(token))
                for id_, payload, tries, due_ms, token in zip(*[iter(claimed)] * 5, strict=True)
            ],
            missing=[_text(id_) for id_ in missing],
            wait_s=None if wait_ms < 0 else wait_ms / 1000,
        )

    async def sleep(self, queue: str, longest_s: float) -> bool:
        """Wait until something is pushed, at most `longest_s` seconds (and 3); answers whether a push woke us."""
        async with translated("waiting for jobs"):
            # BLPOP reads 0 as "for ever", and counts in hundredths of a second at the finest
            wait_s: Any = max(0.01, min(longest_s, BLOCK_S))  # its types know whole seconds only
            token = await cast("Awaitable[object]", self._redis.blpop([_wake_key(queue)], timeout=wait_s))  # pyright: ignore[reportUnknownMemberType]
        return token is not None

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> list[Renewal]:
        """Extend leases."""

        async def send(queue: str, group: Sequence[Lease]) -> list[int]:
            args: list[str | int] = [int(lease_s * 1000)]
            for lease in group:
                args += [lease.id, lease.token]
            return await _call(self._renew, keys=[redis_name(queue)], args=args)

        async with translated("renewing leases"):
            return [Renewal(answer) for answer in await _each_queue(leases, send)]

    async def finish(self, returns: Sequence[Return]) -> list[Returned]:
        """Give leases back."""

        async def send(queue: str, group: Sequence[Return]) -> list[int]:
            args: list[bytes | str | int] = []
            for lease in group:
                args += [lease.id, lease.token, lease.action, lease.number, lease.result, lease.keep_ms]
            return await _call(self._finish, keys=[redis_name(queue), _wake_key(queue)], args=args)

        async with translated("giving leases back"):
            return [Returned(answer) for answer in await _each_queue(returns, send)]

    async def tell_health(self, key: str, info: str, keep_s: float) -> None:
        """Write a worker's health line under arq's key."""
        async with translated("telling the worker's health"):
            await self._redis.psetex(key, int(keep_s * 1000), info)

    async def depth(self, queue: str) -> int:
        """How many ids the queue holds: due, scheduled and leased."""
        async with translated("counting jobs"):
            return cast("int", await self._redis.zcard(redis_name(queue)))

    async def result(self, id: str) -> bytes | None:  # noqa: A002  the field's word
        """The kept result of a transient job."""
        async with translated("reading a result"):
            return cast("bytes | None", await self._redis.get(f"arq:result:{id}"))


class _Queued(Protocol):
    @property
    def queue(self) -> str: ...


Item = TypeVar("Item", bound=_Queued)


async def _each_queue(items: Sequence[Item], send: Callable[[str, Sequence[Item]], Awaitable[list[int]]]) -> list[int]:
    """One call for each queue that the items name; the answers in the items' order."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.queue, []).append(place)
    answers = [0] * len(items)
    for queue, taken in places.items():
        for place, answer in zip(taken, await send(queue, [items[place] for place in taken]), strict=True):
            answers[place] = answer
    return answers


async def _call(script: Any, keys: Sequence[str], args: Sequence[bytes | str | int]) -> list[Any]:
    """One script: redis-py's types say str, the answer is what the script's header says."""
    return cast("list[Any]", await script(keys=keys, args=args))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _wake_key(queue: str) -> str:
    return f"cplane:wake:{queue}"


assert BLOCK_S < SOCKET_TIMEOUT_S  # noqa: S101  a blocking read must end before its socket times out
