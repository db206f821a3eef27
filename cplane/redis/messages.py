"""What goes to the scripts and what comes back: one type a message, and how each is packed."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self
from uuid import UUID

import msgspec

from cplane.jobs.states import Priority
from cplane.redis.envelope import RECORD_END, record_envelope
from cplane.redis.keys import lane_keys, wake_key

SCAN_LIMIT = 1000
"""Due ids that a claim reads at most, so that one call stays short whatever is in the queue."""

RUNNING_SCAN_LIMIT = 10_000
"""Ids of each lane that `stats` reads at most to tell running from scheduled ones: about 10 ms of Redis."""

MAX_LEASE_MS = 3_600_000
"""The longest lease that the settings allow."""


class EnqueueRequest(msgspec.Struct, frozen=True, gc=False):
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
    limit_keys: tuple[str, ...] = ()
    """Limit keys the job needs. While it waits for one of them, `late_ms` does not apply."""

    @classmethod
    def of_record(
        cls,
        queue: str,
        priority: Priority,
        record_id: UUID,
        job: str,
        delay_ms: int,
        *,
        limit_keys: tuple[str, ...] = (),
        late_ms: int = -1,
    ) -> Self:
        """A record's place in the schedule: its payload names the job; the arguments stay in Postgres."""
        payload = record_envelope(job, limit_keys)
        return cls(queue, str(record_id), payload, max(0, delay_ms), priority, late_ms=late_ms, limit_keys=limit_keys)


class EnqueueResult(IntEnum):
    """What enqueue did."""

    SCHEDULED = 1
    ALREADY_THERE = 0
    RESULT_BLOCKS = -1


class Lease(msgspec.Struct, frozen=True, gc=False):
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
    limit_keys: tuple[str, ...] = ()
    """The limit keys of which it holds a slot; they are renewed and released with the lease."""

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

    leases: list[Lease]
    missing: list[Id]
    """Ids whose payload is gone; they have left the queue."""
    malformed: list[tuple[Id, str, bytes]]
    """Ids whose keys hold something foreign, what, and the payload; they have left the queue."""
    wait_s: float | None
    """When to ask again; None: nothing is scheduled."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim: what claim.lua is given, and how its answer reads."""

    queue: str
    order: tuple[Priority, ...]
    room: int
    lease_s: float
    token: str

    @property
    def keys(self) -> list[str]:
        return [*lane_keys(self.queue, self.order), wake_key(self.queue)]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.room, int(self.lease_s * 1000), self.token, SCAN_LIMIT

    def read(self, answer: tuple[list[Any], list[Any], list[Any], int]) -> Claim:
        claimed, missing, malformed, wait_ms = answer
        queue, order, token = self.queue, self.order, self.token
        return Claim(
            leases=[
                Lease(queue, order[int(place) - 1], text_of(id_), payload, abs(tries), due, token, tries < 0)
                for place, id_, payload, tries, due in zip(*[iter(claimed)] * 5, strict=True)
            ],
            missing=[
                Id(queue, order[int(place) - 1], text_of(id_)) for place, id_ in zip(*[iter(missing)] * 2, strict=True)
            ],
            malformed=[
                (Id(queue, order[int(place) - 1], text_of(id_)), text_of(what), payload)
                for place, id_, what, payload in zip(*[iter(malformed)] * 4, strict=True)
            ],
            wait_s=None if wait_ms < 0 else wait_ms / 1000,
        )


class Renewal(IntEnum):
    """What became of a lease."""

    RENEWED = 1
    ABORT_WANTED = 2
    FENCED = 0
    UNKNOWN = -1


class Disposition(IntEnum):
    """How a lease is given back."""

    DONE = 0
    RETRY = 1
    RELEASE = 2
    DEAD_LETTER = 3
    POSTPONE = 4


class Ack(msgspec.Struct, frozen=True, gc=False):
    """One lease given back; see ack.lua for what `number` and `text` are to each action."""

    lease: Lease
    action: Disposition
    number: int = 0
    text: bytes = b""
    keep_ms: int = 0

    @classmethod
    def release(cls, lease: Lease) -> Self:
        """Back to where it stood in the queue."""
        return cls(lease, Disposition.RELEASE, lease.due_ms)


class AckResult(IntEnum):
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
class QueueStats:
    """The state of a queue."""

    queue: str
    ready: int
    """Ids that are due."""
    scheduled: int
    """Ids that are due later."""
    running: int
    """Ids that are leased. Exact while at most RUNNING_SCAN_LIMIT ids of a lane fall due within the longest lease."""
    latency_s: float
    """How long the longest ready id has waited."""


@dataclass(frozen=True, slots=True)
class Look:
    """What Redis holds of one job."""

    payload: bytes | None
    result: bytes | None
    leased: bool
    tries: int
    abort_wanted: bool


def pack(batch: object) -> bytes:
    """Return a batch as the msgpack that scripts read."""
    return msgspec.msgpack.encode(batch)


def packed_id(id_: str) -> str | msgspec.Raw:
    """An id as it stands in Redis; one that a foreign client wrote need not be text."""
    return id_ if id_.isascii() else packed_bytes(id_.encode(errors="surrogateescape"))


def packed_bytes(value: bytes) -> msgspec.Raw:
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


def text_of(value: bytes) -> str:
    """Return an id or a name as text; bytes that are no UTF-8 survive the way back."""
    return value.decode("utf-8", "surrogateescape")
