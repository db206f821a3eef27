"""What happens, told as it happens: two Redis streams. Losing an event loses no job; whoever waits falls back on the record."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from cplane.redis import BLOCK_S, translated
from cplane.states import State

EVENTS = "cplane:events"
"""Every move of a record and its progress."""

CONTROL = "cplane:control"
"""What workers are told: cancels."""

KEEP = 10_000
"""Entries a stream keeps, about."""


@dataclass(frozen=True, slots=True)
class Event:
    """One move or step of a record. `data` is JSON-like: progress has done, total, note."""

    record_id: UUID
    state: State
    attempt: int = 0
    data: dict[str, Any] | None = None


class Events:
    """Publishing to and reading from the streams. Every call raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def publish(self, events: Sequence[Event], stream: str = EVENTS) -> None:
        """Append events in one round trip."""
        async with translated("publishing events"), self._redis.pipeline(transaction=False) as pipe:
            for event in events:
                pipe.xadd(stream, {b"e": _encode(event)}, maxlen=KEEP, approximate=True)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

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
        events = [event for _, fields in entries if (event := _decode(fields.get(b"e", b""))) is not None]
        return events, entries[-1][0]

    async def follow(self, stream: str = EVENTS) -> AsyncIterator[list[Event]]:
        """Batches of events from now on, for ever; an empty one first, as soon as the position is known."""
        after = await self.position(stream)
        yield []
        while True:
            events, after = await self.read(after, stream)
            if events:
                yield events
            else:
                await asyncio.sleep(0)


_ENTRY = msgspec.msgpack.Decoder(tuple[UUID, State, int, dict[str, Any] | None])


def _encode(event: Event) -> bytes:
    return msgspec.msgpack.encode([str(event.record_id), event.state.value, event.attempt, event.data])


def _decode(entry: bytes) -> Event | None:
    """The event, or None for an entry that is not ours."""
    try:
        return Event(*_ENTRY.decode(entry))
    except msgspec.DecodeError:
        return None
