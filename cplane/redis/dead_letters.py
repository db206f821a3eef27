"""Dead letters: ids that left their queue because they cannot be run, with the reason, until an operator acts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from cplane.redis.connection import translated
from cplane.redis.keys import redis_name
from cplane.redis.messages import Id, text_of

DEAD_LETTERS = "cplane:dead-letters"
"""The stream; an entry has the fields queue, id, reason and payload."""

MAX_DEAD_LETTERS = 10_000
"""How many dead letters the stream keeps, approximately; the oldest are dropped. ack.lua has the same number."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One id that left its queue because it cannot be run, with the reason."""

    at_ms: int
    """When it was added, ms since 1970 by Redis's clock."""
    queue: str
    """The sorted set it was in, by its name in Redis."""
    id: str
    reason: str
    payload: bytes
    """Empty if the payload is lost: nothing is left to run."""


class DeadLetterStream:
    """The stream in Redis. Every call raises QueueUnavailable within 5 seconds if Redis does not respond."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, malformed: Sequence[tuple[Id, str, bytes]]) -> None:
        """Add ids that have left their queue.

        Args:
            malformed: the id, the reason and the payload (may be empty) of each.
        """
        async with translated("adding dead letters"), self._redis.pipeline(transaction=False) as pipe:
            for id_, reason, payload in malformed:
                fields: Any = {
                    "queue": redis_name(id_.queue, id_.priority),
                    "id": id_.id.encode(errors="surrogateescape"),
                    "reason": reason.encode(errors="surrogateescape"),
                    "payload": payload,
                }
                pipe.xadd(DEAD_LETTERS, fields, maxlen=MAX_DEAD_LETTERS)  # pyright: ignore[reportUnusedCoroutine, reportUnknownMemberType]
            await pipe.execute()

    async def newest(self, limit: int = 100) -> list[DeadLetter]:
        """Return at most `limit` dead letters, newest first."""
        async with translated("reading dead letters"):
            entries: Any = await self._redis.xrevrange(DEAD_LETTERS, count=limit)  # pyright: ignore[reportUnknownMemberType]
        return [_read(entry_id, fields) for entry_id, fields in entries]

    async def find(self, job_id: str) -> DeadLetter | None:
        """Return the newest dead letter of an id, or None."""
        return next((letter for letter in await self.newest(2 * MAX_DEAD_LETTERS) if letter.id == job_id), None)

    async def count(self) -> int:
        """Return the number of dead letters."""
        async with translated("counting dead letters"):
            return int(await self._redis.xlen(DEAD_LETTERS))

    async def drop(self, job_id: str) -> DeadLetter | None:
        """Delete every dead letter of an id. Returns the newest of them, or None if there was none."""
        async with translated("dropping dead letters"):
            entries: Any = await self._redis.xrevrange(DEAD_LETTERS)  # pyright: ignore[reportUnknownMemberType]
            same = [entry for entry in entries if text_of(entry[1].get(b"id", b"")) == job_id]
            if same:
                await self._redis.xdel(DEAD_LETTERS, *(entry_id for entry_id, _ in same))  # pyright: ignore[reportUnknownMemberType]
        return _read(*same[0]) if same else None


def _read(entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        at_ms=int(entry_id.partition(b"-")[0]),
        queue=text_of(fields.get(b"queue", b"")),
        id=text_of(fields.get(b"id", b"")),
        reason=text_of(fields.get(b"reason", b"")),
        payload=fields.get(b"payload", b""),
    )
