"""What happens, told as it happens: two Redis streams. Losing an event loses no job; whoever waits falls back on the record."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from cplane.jobs.states import State
from cplane.redis.connection import BLOCK_S, Script, translated

EVENTS = "cplane:events"
"""Every move of a record and its progress."""

CONTROL = "cplane:control"
"""What workers are told: cancels."""

KEEP_S = 60.0
"""How long an entry is kept, about: whoever follows is never far behind."""

LISTEN_S = 10
"""Nothing is written while nobody listens: a listener says so, and for how long it counts as one."""


class Event(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One move or step of a record. `data` is JSON-like: progress has done, total, note."""

    record_id: UUID
    state: State
    attempt: int = 0
    data: dict[str, Any] | None = None


Step = tuple[str, State, int]
"""An event without data, ready to be sent: the record's id, its state, the attempt."""


class Events:
    """Publishing to and reading from the streams. Every call raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._publish = Script(redis, "publish")

    async def publish(self, events: Sequence[Event | Step], stream: str = EVENTS) -> None:
        """Tell whoever listens: a batch of events is one entry."""
        if not events:
            return
        async with translated("publishing events"):
            await self._publish([stream, _listening(stream)], msgspec.msgpack.encode(events), int(KEEP_S * 1000))

    async def position(self, stream: str = EVENTS) -> bytes:
        """Where the stream ends now: what is published later comes after it."""
        async with translated("reading events"):
            last = cast("list[tuple[bytes, Any]]", await self._redis.xrevrange(stream, count=1))  # pyright: ignore[reportUnknownMemberType]
        return last[0][0] if last else b"0-0"

    async def read(self, after: bytes, stream: str = EVENTS) -> tuple[list[Event], bytes]:
        """Events after a position, and the new position; waits at most 3 seconds for one."""
        async with translated("reading events"):
            answer: Any = await self._redis.xread({stream: after}, count=1000, block=int(BLOCK_S * 1000))
        if not answer:
            return [], after
        entries: list[tuple[bytes, dict[bytes, bytes]]] = answer[0][1]
        events = [event for _, fields in entries for event in _decode(fields.get(b"e", b""))]
        return events, entries[-1][0]

    async def follow(self, stream: str = EVENTS) -> AsyncIterator[list[Event]]:
        """Batches of events from now on, for ever; an empty one first, as soon as the position is known."""
        await self._listen(stream)
        after, again_at = await self.position(stream), time.monotonic() + LISTEN_S / 3
        yield []
        while True:
            if time.monotonic() > again_at:
                await self._listen(stream)
                again_at = time.monotonic() + LISTEN_S / 3
            events, after = await self.read(after, stream)
            if events:
                yield events
            else:
                await asyncio.sleep(0)

    async def _listen(self, stream: str) -> None:
        async with translated("listening to events"):
            await self._redis.set(_listening(stream), b"1", ex=LISTEN_S)


def _listening(stream: str) -> str:
    return f"{stream}:listening"


_entries = msgspec.msgpack.Decoder(list[Event])


def _decode(entry: bytes) -> list[Event]:
    """The events of an entry; none for an entry that is not ours."""
    try:
        return _entries.decode(entry)
    except msgspec.DecodeError:
        return []
