"""Dead letters: what was in a queue and cannot be run, with the reason, until an operator requeues or drops it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from cplane.redis.connection import translated
from cplane.redis.keys import redis_name
from cplane.redis.messages import Id, text_of

DEAD_LETTERS = "cplane:dead-letters"
"""A stream of queue, id, reason and payload."""

MAX_KEPT = 10_000
"""About how many dead letters the stream keeps; older ones are dropped."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One id that left its queue because it cannot be run, with the reason."""

    at_ms: int
    queue: str
    """The sorted set it was in, as it is named in Redis."""
    id: str
    reason: str
    payload: bytes
    """Empty: the payload is gone, and nothing is left to run."""


class DeadLetterStream:
    """The stream in Redis. Every call raises QueueUnavailable within 5 seconds when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, malformed: Sequence[tuple[Id, str, bytes]]) -> None:
        """Add ids that have left their queue, each with the reason and its payload."""
        async with translated("adding dead letters"), self._redis.pipeline(transaction=False) as pipe:
            for lost, reason, payload in malformed:
                fields: Any = {
                    "queue": redis_name(lost.queue, lost.priority),
                    "id": lost.id.encode(errors="surrogateescape"),
                    "reason": reason.encode(errors="surrogateescape"),
                    "payload": payload,
                }
                pipe.xadd(DEAD_LETTERS, fields, maxlen=MAX_KEPT)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

    async def newest(self, limit: int = 100) -> list[DeadLetter]:
        """Return at most `limit` dead letters, newest first."""
        async with translated("reading dead letters"):
            entries: Any = await self._redis.xrevrange(DEAD_LETTERS, count=limit)  # pyright: ignore[reportUnknownMemberType]
        return [_read(at, fields) for at, fields in entries]

    async def find(self, job_id: str) -> DeadLetter | None:
        """Return the newest dead letter of an id, or None."""
        return next((letter for letter in await self.newest(2 * MAX_KEPT) if letter.id == job_id), None)

    async def count(self) -> int:
        """Return how many dead letters there are."""
        async with translated("counting dead letters"):
            return int(await self._redis.xlen(DEAD_LETTERS))

    async def drop(self, job_id: str) -> DeadLetter | None:
        """Delete every dead letter of an id. Returns the newest of them, None if there was none."""
        async with translated("dropping dead letters"):
            entries: Any = await self._redis.xrevrange(DEAD_LETTERS)  # pyright: ignore[reportUnknownMemberType]
            same = [(at, fields) for at, fields in entries if text_of(fields.get(b"id", b"")) == job_id]
            if same:
                await self._redis.xdel(DEAD_LETTERS, *(at for at, _ in same))  # pyright: ignore[reportUnknownMemberType]
        return _read(*same[0]) if same else None


def _read(at: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        at_ms=int(at.partition(b"-")[0]),
        queue=text_of(fields.get(b"queue", b"")),
        id=text_of(fields.get(b"id", b"")),
        reason=text_of(fields.get(b"reason", b"")),
        payload=fields.get(b"payload", b""),
    )
