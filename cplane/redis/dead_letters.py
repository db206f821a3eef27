"""Dead letters: what was in a queue and cannot be run, with the reason, until an operator decides."""

from collections.abc import Mapping
from dataclasses import dataclass

from cplane.redis.messages import text_of

ASIDE = "cplane:aside"
"""A stream of what was set aside: queue, id, reason, payload. It keeps the newest 10,000, about."""


@dataclass(frozen=True, slots=True)
class Aside:
    """One id that was set aside, with the reason."""

    at_ms: int
    queue: str
    id: str
    reason: str
    payload: bytes


def read_dead_letter(at: bytes, fields: Mapping[bytes, bytes]) -> Aside:
    return Aside(
        at_ms=int(at.partition(b"-")[0]),
        queue=text_of(fields.get(b"queue", b"")),
        id=text_of(fields.get(b"id", b"")),
        reason=text_of(fields.get(b"reason", b"")),
        payload=fields.get(b"payload", b""),
    )
