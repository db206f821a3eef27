"""Where Postgres and Redis are."""

from typing import Any

import msgspec


class Servers(msgspec.Struct, frozen=True):
    """The servers of a worker, and the length of its leases. The values are secrets."""

    redis_url: str
    postgres: dict[str, Any]
    """The driver's arguments of a connection."""
    lease_s: float

    def __repr__(self) -> str:
        return "Servers(…)"
