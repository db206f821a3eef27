"""The requests and replies of the scripts: one type per message, and how each is packed."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self
from uuid import UUID

import msgspec

from cplane.jobs.states import Priority
from cplane.redis.envelope import RECORD_SUFFIX, record_envelope
from cplane.redis.keys import lane_keys, wake_key

SCAN_LIMIT = 1000
"""Ready ids that one claim or sweep reads at most: a call stays short whatever the queue holds."""

RUNNING_SCAN_LIMIT = 10_000
"""Ids of each lane that `stats` reads at most to tell running from scheduled ids: about 10 ms of Redis."""

MAX_LEASE_MS = 3_600_000
"""The longest lease that the settings allow."""


class EnqueueRequest(msgspec.Struct, frozen=True, gc=False):
    """One id to schedule in a queue, due in `delay_ms` by Redis's clock."""

    queue: str
    id: str
    payload: bytes
    delay_ms: int = 0
    priority: Priority = Priority.NORMAL
    once: bool = False
    """A kept result of the same id blocks the request: arq's semantics, for transient jobs."""
    late_ms: int = -1
    """An id that is scheduled already, and not leased, may be due up to `late_ms` later than this request. If it is due
    later than that, it is moved to the time of this request. Negative: it stays as it is."""
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
        """Return the request for a record: its payload names the job, and the arguments stay in Postgres."""
        payload = record_envelope(job, limit_keys)
        return cls(queue, str(record_id), payload, max(0, delay_ms), priority, late_ms=late_ms, limit_keys=limit_keys)


class EnqueueResult(IntEnum):
    """The outcome of an enqueue request."""

    SCHEDULED = 1
    ALREADY_THERE = 0
    RESULT_BLOCKS = -1


class Lease(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One leased id: only the holder of `token` may renew or acknowledge it. All leases of one claim share a token."""

    queue: str
    priority: Priority
    id: str
    payload: bytes
    tries: int
    """Number of this try, from 1."""
    due: bytes
    """Its score before the lease: when it was due, ms."""
    token: str
    abort_wanted: bool = False
    limit_keys: tuple[str, ...] = ()
    """The limit keys of which it holds a slot; the slots are renewed and released with the lease."""

    @property
    def due_ms(self) -> int:
        """When it was due; a score that is not a time reads as the earliest possible one."""
        score = float(self.due)
        return int(score) if 1 <= score < 2**53 else 1

    @property
    def try_ended(self) -> int:
        """The try to record if another follows; 0 for a record, whose tries are counted in Postgres."""
        return 0 if self.payload.endswith(RECORD_SUFFIX) else self.tries


class Id(msgspec.Struct, frozen=True, gc=False):
    """One id of a queue, without a lease."""

    queue: str
    priority: Priority
    id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of a claim."""

    leases: list[Lease]
    missing: list[Id]
    """Ids whose payload is lost; they have left the queue."""
    malformed: list[tuple[Id, str, bytes]]
    """Ids whose keys hold another type than they should, the reason, and the payload; they have left the queue."""
    wait_s: float | None
    """Seconds until the next id falls due; None: nothing is scheduled."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """A claim: the arguments of claim.lua, and how its reply is read."""

    queue: str
    order: tuple[Priority, ...]
    capacity: int
    lease_s: float
    token: str

    @property
    def keys(self) -> list[str]:
        return [*lane_keys(self.queue, self.order), wake_key(self.queue)]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.capacity, int(self.lease_s * 1000), self.token, SCAN_LIMIT

    def read(self, reply: tuple[list[Any], list[Any], list[Any], int]) -> Claim:
        leases, missing, malformed, wait_ms = reply
        queue, order, token = self.queue, self.order, self.token
        return Claim(
            leases=[
                Lease(queue, order[int(lane) - 1], text_of(id_), payload, abs(tries), due, token, tries < 0)
                for lane, id_, payload, tries, due in zip(*[iter(leases)] * 5, strict=True)
            ],
            missing=[
                Id(queue, order[int(lane) - 1], text_of(id_)) for lane, id_ in zip(*[iter(missing)] * 2, strict=True)
            ],
            malformed=[
                (Id(queue, order[int(lane) - 1], text_of(id_)), text_of(reason), payload)
                for lane, id_, reason, payload in zip(*[iter(malformed)] * 4, strict=True)
            ],
            wait_s=None if wait_ms < 0 else wait_ms / 1000,
        )


class Renewal(IntEnum):
    """The outcome of a renewal."""

    RENEWED = 1
    ABORT_WANTED = 2
    FENCED = 0
    UNKNOWN = -1


class Disposition(IntEnum):
    """How a lease is acknowledged; ack.lua describes each."""

    DONE = 0
    RETRY = 1
    RELEASE = 2
    DEAD_LETTER = 3
    POSTPONE = 4
    QUARANTINE = 5


class Ack(msgspec.Struct, frozen=True, gc=False):
    """The acknowledgement of one lease; ack.lua says what `time_ms` and `text` mean for each disposition."""

    lease: Lease
    disposition: Disposition
    time_ms: int = 0
    text: bytes = b""
    keep_lease_ms: int = 0
    """For DONE: how long the lease stays, ms; 0: it is deleted."""

    @classmethod
    def release(cls, lease: Lease) -> Self:
        """Return the acknowledgement that restores the id's position in the queue and does not count the try."""
        return cls(lease, Disposition.RELEASE, lease.due_ms)


class AckResult(IntEnum):
    """The outcome of an acknowledgement."""

    APPLIED = 1
    FENCED = 0
    UNKNOWN = -1


class Aborted(IntEnum):
    """The outcome of an abort."""

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
class JobKeys:
    """What the keys of one job in Redis hold."""

    payload: bytes | None
    result: bytes | None
    leased: bool
    tries: int
    """Number of the current or last try; 0: none has begun."""
    abort_wanted: bool


def pack(batch: object) -> bytes:
    """Return a batch as the msgpack that scripts read."""
    return msgspec.msgpack.encode(batch)


def packed_id(id_: str) -> str | msgspec.Raw:
    """Return an id by its bytes in Redis; one that another client wrote need not be UTF-8."""
    return id_ if id_.isascii() else packed_bytes(id_.encode(errors="surrogateescape"))


def packed_bytes(value: bytes) -> msgspec.Raw:
    """Return bytes as msgpack's older text type, which Redis's cmsgpack reads as a Lua string.

    cmsgpack does not know the binary type.
    """
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
    """Return an id or a name as text; bytes that are not UTF-8 survive the way back."""
    return value.decode("utf-8", "surrogateescape")
