"""Events: two Redis streams with every change of a record and every request to workers.

Losing an event loses no job: a waiter also reads the record now and then.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from cplane.jobs.states import State
from cplane.redis.connection import MAX_BLOCK_S, Script, translated

EVENTS = "cplane:events"
"""The stream of state changes and progress."""

CONTROL = "cplane:control"
"""The stream of requests to workers: cancels."""

RETENTION_S = 60.0
"""How long an entry is kept, approximately: a subscriber is never far behind."""

SUBSCRIPTION_TTL_S = 10
"""How long a subscriber counts as one without renewal. Without subscribers nothing is written."""


class Event(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One state change or progress of a record."""

    record_id: UUID
    state: State
    attempt: int = 0
    data: dict[str, Any] | None = None
    """JSON-like. Progress has `done`, `total` and `note`."""


BareEvent = tuple[str, State, int]
"""An event without data, ready to be sent: the record's id, its state, the attempt."""


class Events:
    """Publisher and subscriber of the streams. Every call raises QueueUnavailable if Redis does not respond."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._publish = Script(redis, "publish")

    async def publish(self, events: Sequence[Event | BareEvent], stream: str = EVENTS) -> None:
        """Publish a batch of events as one entry; without a subscriber nothing is written."""
        if not events:
            return
        async with translated("publishing events"):
            await self._publish(
                [stream, _subscribed_key(stream)], msgspec.msgpack.encode(events), int(RETENTION_S * 1000)
            )

    async def position(self, stream: str = EVENTS) -> bytes:
        """Return the id of the stream's last entry; what is published later comes after it."""
        async with translated("reading events"):
            last = cast("list[tuple[bytes, Any]]", await self._redis.xrevrange(stream, count=1))  # pyright: ignore[reportUnknownMemberType]
        return last[0][0] if last else b"0-0"

    async def read(self, after: bytes, stream: str = EVENTS) -> tuple[list[Event], bytes]:
        """Wait up to 3 seconds for events.

        Args:
            after: position after which to read, as `position` or `read` returned it.
            stream: EVENTS or CONTROL.

        Returns:
            The events in the order of their publication, up to 1000 entries of the stream, and the new position.
            No events if none came in time.
        """
        async with translated("reading events"):
            reply: Any = await self._redis.xread({stream: after}, count=1000, block=int(MAX_BLOCK_S * 1000))
        if not reply:
            return [], after
        entries: list[tuple[bytes, dict[bytes, bytes]]] = reply[0][1]
        events = [event for _, fields in entries for event in _decode(fields.get(b"e", b""))]
        return events, entries[-1][0]

    async def follow(self, stream: str = EVENTS) -> AsyncIterator[list[Event]]:
        """Subscribe, and yield batches of events until cancelled.

        The first batch is empty: it is yielded as soon as the position is known. Every event published later follows.
        """
        await self._subscribe(stream)
        after, renew_at = await self.position(stream), time.monotonic() + SUBSCRIPTION_TTL_S / 3
        yield []
        while True:
            if time.monotonic() > renew_at:
                await self._subscribe(stream)
                renew_at = time.monotonic() + SUBSCRIPTION_TTL_S / 3
            events, after = await self.read(after, stream)
            if events:
                yield events
            else:
                await asyncio.sleep(0)

    async def _subscribe(self, stream: str) -> None:
        async with translated("subscribing to events"):
            await self._redis.set(_subscribed_key(stream), b"1", ex=SUBSCRIPTION_TTL_S)


def _subscribed_key(stream: str) -> str:
    return f"{stream}:subscribed"


_entries = msgspec.msgpack.Decoder(list[Event])
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])
_events = msgspec.msgpack.Decoder(Event)


def _decode(entry: bytes) -> list[Event]:
    """Return the events of an entry. One that is not in our format, such as that of an arq id, hides no other."""
    try:
        return _entries.decode(entry)
    except msgspec.DecodeError:
        pass
    try:
        parts = _parts.decode(entry)
    except msgspec.DecodeError:
        return []
    events: list[Event] = []
    for part in parts:
        with suppress(msgspec.DecodeError):
            events.append(_events.decode(part))
    return events
