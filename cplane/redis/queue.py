"""The schedule: arq's keys in Redis, moved by scripts. Each works on a batch; see the `.lua` files for their protocol."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from operator import attrgetter
from typing import Any, Self, TypeVar, cast
from uuid import UUID

import msgspec
from arq.constants import default_queue_name, result_key_prefix
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from cplane.jobs.options import DEFAULT_QUEUE
from cplane.jobs.states import Priority
from cplane.redis.connection import BLOCK_S, SOCKET_TIMEOUT_S, Script, translated
from cplane.redis.envelope import RECORD_END, record_envelope

PAYLOAD_TTL_MS = 30 * 86_400_000
"""A payload outlives every outage we can think of; one that is gone is rebuilt from its record."""

ABORT_TTL_MS = 86_400_000
"""An abort that nobody could follow in a day is forgotten."""

LOOKS = 1000
"""Due ids a claim looks at, so that one call stays short whatever is in the queue."""

ASIDE = "cplane:aside"
"""A stream of what was set aside: queue, id, reason, payload. It keeps the newest 10,000, about."""

ARQ_LEASE = b"1"
"""What a plain arq worker's lease says."""

EPOCH = "cplane:epoch"

LANES = tuple(Priority)
LANE = {priority: number for number, priority in enumerate(LANES, 1)}
"""The number under which the scripts know a lane."""

ORDERS: tuple[tuple[Priority, ...], ...] = (
    (Priority.HIGH, Priority.NORMAL, Priority.LOW),
    (Priority.NORMAL, Priority.HIGH, Priority.LOW),
    (Priority.LOW, Priority.NORMAL, Priority.HIGH),
)
"""The orders in which a claim serves the lanes; see `order_of`."""


def order_of(claim: int) -> tuple[Priority, ...]:
    """Every sixteenth claim serves the low lane first, every fourth the normal one, the others the high one: none starves."""
    if claim % 16 == 15:
        return ORDERS[2]
    return ORDERS[1] if claim % 4 == 3 else ORDERS[0]


def redis_name(queue: str, priority: Priority = Priority.NORMAL) -> str:
    """The sorted set of a queue's lane: arq's own name for the normal lane of the default queue."""
    name = default_queue_name if queue == DEFAULT_QUEUE else f"{default_queue_name}:{queue}"
    return name if priority is Priority.NORMAL else f"{name}@{priority}"


def queue_of(redis_queue: str) -> str:
    """The queue of a sorted set."""
    return DEFAULT_QUEUE if redis_queue == default_queue_name else redis_queue.removeprefix(f"{default_queue_name}:")


def lane_of(redis_queue: str) -> tuple[str, Priority]:
    """The queue and the priority of a sorted set."""
    name, _, priority = redis_queue.partition("@")
    return queue_of(name), Priority(priority) if priority in set(Priority) else Priority.NORMAL


class Push(msgspec.Struct, frozen=True, gc=False):
    """One id for the schedule of a queue, due in `delay_ms` by Redis's clock."""

    queue: str
    id: str
    payload: bytes
    delay_ms: int = 0
    priority: Priority = Priority.NORMAL
    once: bool = False
    """A kept result of the same id blocks it: arq's semantics, for transient jobs."""
    late_ms: int = -1
    """An id that is there already, and that nobody has leased, may be due so much later than this; negative: it stays as it is."""
    host: str = ""
    """The places that it takes: who waits in the line of one may be due as late as the line says."""

    @classmethod
    def of_record(
        cls,
        queue: str,
        priority: Priority,
        record_id: UUID,
        job: str,
        delay_ms: int,
        *,
        host: str | None = None,
        late_ms: int = -1,
    ) -> Self:
        """A record's place in the schedule: its payload names the job; the arguments stay in Postgres."""
        payload = record_envelope(job, host)
        return cls(queue, str(record_id), payload, max(0, delay_ms), priority, late_ms=late_ms, host=host or "")


class Pushed(IntEnum):
    """What enqueue did."""

    SCHEDULED = 1
    ALREADY_THERE = 0
    RESULT_BLOCKS = -1


class Grant(msgspec.Struct, frozen=True, gc=False):
    """One leased id: only the holder of `token` may renew or finish it. Those that one claim brought have the same."""

    queue: str
    priority: Priority
    id: str
    payload: bytes
    tries: int
    """How often it was granted, this time included."""
    due: bytes
    """Its score in Redis: when it was due, ms."""
    token: str
    abort_wanted: bool = False
    host: str = ""
    """The places that it holds, as text (`politeness.places_of`); they are renewed and given back with the lease."""

    @property
    def due_ms(self) -> int:
        """When it was due; a score that is no time is as early as can be."""
        score = float(self.due)
        return int(score) if 1 <= score < 2**53 else 1

    @property
    def try_ended(self) -> int:
        """The try to write down when another follows; 0 for a record, whose tries are counted in Postgres."""
        return 0 if self.payload.endswith(RECORD_END) else self.tries


class Id(msgspec.Struct, frozen=True, gc=False):
    """One id of a queue, without a lease."""

    queue: str
    priority: Priority
    id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim brought."""

    grants: list[Grant]
    missing: list[Id]
    """Ids whose payload is gone; they have left the queue."""
    odd: list[tuple[Id, str, bytes]]
    """Ids whose keys hold something foreign, what, and the payload; they have left the queue."""
    wait_s: float | None
    """When to ask again; None: nothing is scheduled."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A claim: what claim.lua is given, and how its answer reads."""

    queue: str
    order: tuple[Priority, ...]
    room: int
    lease_s: float
    token: str

    @property
    def keys(self) -> list[str]:
        return [*_lanes(self.queue, self.order), wake_key(self.queue)]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.room, int(self.lease_s * 1000), self.token, LOOKS

    def read(self, answer: tuple[list[Any], list[Any], list[Any], int]) -> Claim:
        claimed, missing, odd, wait_ms = answer
        queue, order, token = self.queue, self.order, self.token
        return Claim(
            grants=[
                Grant(queue, order[int(place) - 1], _text(id_), payload, abs(tries), due, token, tries < 0)
                for place, id_, payload, tries, due in zip(*[iter(claimed)] * 5, strict=True)
            ],
            missing=[
                Id(queue, order[int(place) - 1], _text(id_)) for place, id_ in zip(*[iter(missing)] * 2, strict=True)
            ],
            odd=[
                (Id(queue, order[int(place) - 1], _text(id_)), _text(what), payload)
                for place, id_, what, payload in zip(*[iter(odd)] * 4, strict=True)
            ],
            wait_s=None if wait_ms < 0 else wait_ms / 1000,
        )


class Renewal(IntEnum):
    """What became of a lease."""

    RENEWED = 1
    ABORT_WANTED = 2
    FENCED = 0
    UNKNOWN = -1


class Action(IntEnum):
    """How a lease is given back."""

    DONE = 0
    RETRY = 1
    RELEASE = 2
    ASIDE = 3
    POSTPONE = 4


class Return(msgspec.Struct, frozen=True, gc=False):
    """One lease given back; see finish.lua for what `number` and `text` are to each action."""

    grant: Grant
    action: Action
    number: int = 0
    text: bytes = b""
    keep_ms: int = 0

    @classmethod
    def release(cls, grant: Grant) -> Self:
        """Back to where it stood in the queue."""
        return cls(grant, Action.RELEASE, grant.due_ms)


class Returned(IntEnum):
    """What finish did."""

    APPLIED = 1
    FENCED = 0
    UNKNOWN = -1


class Aborted(IntEnum):
    """What abort did."""

    CANCELLED = 2
    TOLD = 1
    UNKNOWN = 0


@dataclass(frozen=True, slots=True)
class Sweep:
    """How a queue stands: ids that were lost, and numbers for those who operate it."""

    missing: list[Id]
    lag_s: float
    """How long the longest due id has waited."""
    due: int
    later: int
    """Scheduled for later, or leased."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How a queue stands."""

    queue: str
    due: int
    later: int
    """Scheduled for later, or leased."""
    lag_s: float
    """How long the longest due id has waited."""


@dataclass(frozen=True, slots=True)
class Look:
    """What Redis holds of one job."""

    payload: bytes | None
    result: bytes | None
    leased: bool
    tries: int
    abort_wanted: bool


@dataclass(frozen=True, slots=True)
class Aside:
    """One id that was set aside, with the reason."""

    at_ms: int
    queue: str
    id: str
    reason: str
    payload: bytes


class Queue:
    """All queues on one Redis. Every call raises QueueUnavailable within 5 seconds when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._scripts = {
            name: Script(redis, name) for name in ("enqueue", "claim", "renew", "sweep", "stand", "abort", "epoch")
        }
        self._scripts["finish"] = Script(redis, "line", "finish")
        self._grants = count()
        self._prefix = f"{os.getpid():x}-{os.urandom(8).hex()}"

    async def ping(self) -> None:
        """Whether Redis answers."""
        async with translated("checking the connection"):
            await cast("Awaitable[object]", self._redis.ping())  # pyright: ignore[reportUnknownMemberType]

    async def enqueue(self, pushes: Sequence[Push]) -> list[Pushed]:
        """Schedule ids; an id that is there already stays as it is."""

        async def send(queue: str, group: Sequence[Push]) -> list[int]:
            batch: list[object] = []
            for push in group:
                batch += (
                    LANE[push.priority], _id(push.id), _bytes(push.payload), push.delay_ms, push.once, push.late_ms,
                    push.host,
                )  # fmt: skip
            return await self._answers("enqueue", [*_lanes(queue), wake_key(queue)], _pack(batch), PAYLOAD_TTL_MS)

        async with translated("scheduling jobs"):
            return [_PUSHED[answer] for answer in await _each_queue(pushes, _queue_of_push, send)]

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
            if isinstance(slept, Exception) and not (claim.grants or claim.missing or claim.odd):
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

    async def renew(self, grants: Sequence[Grant], lease_s: float) -> list[Renewal]:
        """Extend leases."""

        async def send(queue: str, group: Sequence[Grant]) -> list[int]:
            batch = [(LANE[grant.priority], _id(grant.id), grant.token, grant.host) for grant in group]
            return await self._answers("renew", _lanes(queue), _pack(batch), int(lease_s * 1000))

        async with translated("renewing leases"):
            return [_RENEWALS[answer] for answer in await _each_queue(grants, _queue_of_grant, send)]

    async def finish(self, returns: Sequence[Return]) -> list[Returned]:
        """Give leases back."""

        async def send(queue: str, group: Sequence[Return]) -> list[int]:
            batch: list[object] = []
            for back in group:
                batch += (
                    LANE[back.grant.priority], _id(back.grant.id), back.grant.token, back.grant.try_ended,
                    back.action, back.number, _bytes(back.text), back.keep_ms, back.grant.host,
                )  # fmt: skip
            return await self._answers("finish", [*_lanes(queue), wake_key(queue), ASIDE], _pack(batch))

        async with translated("giving leases back"):
            return [_RETURNED[answer] for answer in await _each_queue(returns, _queue_of_return, send)]

    async def sweep(self, queue: str, looks: int = LOOKS) -> Sweep:
        """Take lost ids and old aborts out of a queue, and say how it stands."""
        async with translated("sweeping a queue"):
            answer: tuple[list[Any], int, int, int] = await self._scripts["sweep"](_lanes(queue), looks, ABORT_TTL_MS)
        missing, lag_ms, due, later = answer
        lost = [Id(queue, LANES[int(lane) - 1], _text(id_)) for lane, id_ in zip(*[iter(missing)] * 2, strict=True)]
        return Sweep(lost, lag_ms / 1000, due, later)

    async def stand(self, queue: str) -> Stand:
        """How a queue stands; looking changes nothing."""
        async with translated("looking at a queue"):
            lag_ms, due, later = await self._answers("stand", _lanes(queue))
        return Stand(queue, due, later, lag_ms / 1000)

    async def set_aside(self, ids: Sequence[tuple[Id, str, bytes]]) -> None:
        """Note ids that have left the queue for a reason an operator should see."""
        async with translated("setting ids aside"), self._redis.pipeline(transaction=False) as pipe:
            for lost, reason, payload in ids:
                fields: Any = {
                    "queue": redis_name(lost.queue, lost.priority),
                    "id": lost.id.encode(errors="surrogateescape"),
                    "reason": reason.encode(errors="surrogateescape"),
                    "payload": payload,
                }
                pipe.xadd(ASIDE, fields, maxlen=10_000)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

    async def aside(self, limit: int = 100) -> list[Aside]:
        """What was set aside, newest first."""
        async with translated("reading what was set aside"):
            entries: Any = await self._redis.xrevrange(ASIDE, count=limit)  # pyright: ignore[reportUnknownMemberType]
        return [_aside(at, fields) for at, fields in entries]

    async def count_aside(self) -> int:
        """How many entries there are of what was set aside."""
        async with translated("counting what was set aside"):
            return int(await self._redis.xlen(ASIDE))

    async def drop_aside(self, id: str) -> Aside | None:  # noqa: A002  the field's word
        """Forget what was set aside under an id; answers the newest entry of it, None when there is none."""
        async with translated("forgetting what was set aside"):
            entries: Any = await self._redis.xrevrange(ASIDE)  # pyright: ignore[reportUnknownMemberType]
            mine = [(at, fields) for at, fields in entries if _text(fields.get(b"id", b"")) == id]
            if mine:
                await self._redis.xdel(ASIDE, *(at for at, _ in mine))  # pyright: ignore[reportUnknownMemberType]
        return _aside(*mine[0]) if mine else None

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
            for lane in _lanes(queue):
                pipe.zscore(lane, id)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            scores = cast("list[float | None]", await pipe.execute())
        return next((int(score) for score in scores if score is not None), None)

    async def abort(self, queue: str, id: str, result: bytes, keep_s: float) -> Aborted:  # noqa: A002  the field's word
        """Cancel a transient job: at once, or by telling its worker. `result` is kept as its result when nobody runs it."""
        async with translated("cancelling a job"):
            return Aborted(await self._scripts["abort"](_lanes(queue), id, result, int(keep_s * 1000)))

    async def aborts(self) -> set[str]:
        """Ids whose abort is wanted (arq's `Job.abort`)."""
        async with translated("reading aborts"):
            return {_text(id_) for id_ in await self._redis.zrange("arq:abort", 0, -1)}  # pyright: ignore[reportUnknownMemberType]

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
            for lane in _lanes(queue):
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

    def _ask(self, queue: str, room: int, lease_s: float) -> "_Asked":
        number = next(self._grants)
        return _Asked(queue, order_of(number), room, lease_s, f"{self._prefix}-{number}")

    def _nudge_key(self, queue: str) -> str:
        return f"cplane:nudge:{self._prefix}:{queue}"

    async def _answers(self, script: str, keys: Sequence[str], *args: bytes | str | int) -> list[int]:
        return cast("list[int]", await self._scripts[script](keys, *args))


# looking a number up is many times faster than asking the enum
_PUSHED = {pushed.value: pushed for pushed in Pushed}
_RENEWALS = {renewal.value: renewal for renewal in Renewal}
_RETURNED = {returned.value: returned for returned in Returned}

Item = TypeVar("Item")


_queue_of_push: Callable[[Push], str] = attrgetter("queue")
_queue_of_grant: Callable[[Grant], str] = attrgetter("queue")
_queue_of_return: Callable[[Return], str] = attrgetter("grant.queue")


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


def _aside(at: bytes, fields: Mapping[bytes, bytes]) -> Aside:
    return Aside(
        at_ms=int(at.partition(b"-")[0]),
        queue=_text(fields.get(b"queue", b"")),
        id=_text(fields.get(b"id", b"")),
        reason=_text(fields.get(b"reason", b"")),
        payload=fields.get(b"payload", b""),
    )


def _lanes(queue: str, order: Sequence[Priority] = LANES) -> list[str]:
    return [redis_name(queue, priority) for priority in order]


def _pack(batch: object) -> bytes:
    return msgspec.msgpack.encode(batch)


def _id(id_: str) -> str | msgspec.Raw:
    """An id as it stands in Redis; one that a foreign client wrote need not be text."""
    return id_ if id_.isascii() else _bytes(id_.encode(errors="surrogateescape"))


def _bytes(value: bytes) -> msgspec.Raw:
    """Bytes as msgpack's older text, of which Redis's cmsgpack makes a Lua string; it does not know binary."""
    size = len(value)
    if size < 32:
        head = bytes((0xA0 | size,))
    elif size < 2**8:
        head = bytes((0xD9, size))
    elif size < 2**16:
        head = b"\xda" + size.to_bytes(2, "big")
    else:
        head = b"\xdb" + size.to_bytes(4, "big")
    return msgspec.Raw(head + value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _block_s(longest_s: float) -> Any:
    """BLPOP reads 0 as "for ever", and counts in hundredths of a second at the finest; redis-py's types know whole seconds only."""
    return max(0.01, min(longest_s, BLOCK_S))


def wake_key(queue: str) -> str:
    """The list on which workers of a queue sleep."""
    return f"cplane:wake:{queue}"


assert BLOCK_S < SOCKET_TIMEOUT_S  # noqa: S101  a blocking read must end before its socket times out
