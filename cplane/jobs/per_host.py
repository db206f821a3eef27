"""Limits per host: `PerHost`, the host of a URL, and the limit keys of a job.

A job can be limited by a host, by a browser session, or by both. Records, envelopes and leases carry these as limit
keys. The key of a session begins with `@`, which no host does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self, cast

from pydantic_core import Url
from pydantic_core import ValidationError as UrlError

MAX_HOST_CHARS = 260
"""A DNS name has at most 253 characters and a port 5, so a longer text is not a host."""

MAX_CONCURRENCY = MAX_BURST = 10_000
MAX_RATE = 1000.0
MIN_RATE = 1 / 86_400
"""One job a day."""

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class PerHost:
    """Limits on the jobs of one host, over all workers. The host is read from an argument that is a URL.

    Args:
        concurrency: maximum number of jobs that run concurrently, 0 to 10,000; 0 is unlimited. None uses
            CPLANE_PER_HOST_CONCURRENCY.
        rate: maximum number of jobs that start per second, for example 0.5: one a day (1/86400) to 1000, or 0 for
            unlimited. None uses CPLANE_PER_HOST_RATE.
        burst: number of jobs that may start back to back after a pause, 1 to 10,000; the rate still holds over time.
        of: name of the argument that holds the URL. A job submitted without it is not limited.

    Raises:
        ValueError: a value is out of its range.

    Example:
        ```python
        from cplane import ControlPlane, PerHost, job


        @job(per_host=PerHost(concurrency=2, rate=5.0, burst=3, of="address"))
        async def visit(address: str) -> str:
            return f"visited {address}"


        async with ControlPlane():
            handles = await visit.submit_many({"address": f"https://example.com/{page}"} for page in range(3))
            for handle in handles:
                print(await handle.result(timeout=30))
        ```
    """

    concurrency: int | None = None
    rate: float | None = None
    burst: int = 1
    of: str = "url"

    def __post_init__(self) -> None:
        checks = {
            f"concurrency must be 0 to {MAX_CONCURRENCY}, not {self.concurrency!r}": self.concurrency is None
            or (_is_int(self.concurrency) and 0 <= self.concurrency <= MAX_CONCURRENCY),
            f"rate must be 0, or one job a day (1/86400) to {MAX_RATE:g} a second, not {self.rate!r}": self.rate is None
            or (_is_number(self.rate) and (self.rate == 0 or MIN_RATE <= self.rate <= MAX_RATE)),
            f"burst must be 1 to {MAX_BURST}, not {self.burst!r}": _is_int(self.burst) and 1 <= self.burst <= MAX_BURST,
            f"of must be the name of an argument, not {self.of!r}": isinstance(self.of, str) and bool(self.of),  # pyright: ignore[reportUnnecessaryIsInstance]  callers may have no type checker
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    @classmethod
    def read(cls, value: object) -> Self:
        """Return the limits that a `PerHost` or a mapping of its arguments gives.

        Raises:
            ValueError: it is neither, or a value is out of its range; the message is one sentence.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"per_host is a PerHost, a mapping of its arguments, or False, not {value!r}")  # noqa: TRY004  one type of error for all
        given, known = cast("Mapping[str, Any]", value), cls.__dataclass_fields__
        if unknown := [str(name) for name in given if name not in known]:
            raise ValueError(f"per_host has no {', '.join(sorted(unknown))}; known arguments: {', '.join(known)}")
        return cls(**given)

    def with_defaults(self, defaults: "PerHost | None") -> "PerHost":
        """Return these limits, with a concurrency and a rate of None taken from `defaults`."""
        if defaults is None or (self.concurrency is not None and self.rate is not None):
            return self
        return replace(
            self,
            concurrency=defaults.concurrency if self.concurrency is None else self.concurrency,
            rate=defaults.rate if self.rate is None else self.rate,
        )

    @property
    def interval_ms(self) -> float:
        """Milliseconds from one start to the next; 0 if the rate is unlimited."""
        return 1000 / self.rate if self.rate else 0.0


DeclaredLimits = PerHost | Literal[False] | None
"""The option `per_host` of a job: its limits; False for none, whatever the settings say; None if not given."""


@lru_cache(maxsize=1024)
def limits(declared: DeclaredLimits, defaults: PerHost | None) -> PerHost | None:
    """Return the limits of a job; None if it has none and so needs no host.

    Args:
        declared: option `per_host` of the job.
        defaults: limits of the settings.
    """
    if declared is False:
        return None
    return defaults if declared is None else declared.with_defaults(defaults)


def host_of(url: str) -> str | None:
    """Return the host of a URL.

    Returns:
        The host in lower case and IDNA form, followed by `:port` unless the port is the scheme's default; None if the
        URL has no host.
    """
    try:
        address = Url(url)
    except UrlError:
        return None
    if not address.host:
        return None
    host = address.host.lower().removesuffix(".")
    default = DEFAULT_PORTS.get(address.scheme)
    named = host if address.port in {None, default} else f"{host}:{address.port}"
    return named if 0 < len(named) <= MAX_HOST_CHARS and named.isascii() and named.isprintable() else None


def limit_keys_of(session: str | None, host: str | None) -> tuple[str, ...]:
    """Return the limit keys of a job that needs a browser session, a host, or both."""
    if session is None:
        return () if host is None else (host,)
    return (f"@{session}",) if host is None else (f"@{session}", host)


def host_among(limit_keys: tuple[str, ...]) -> str | None:
    """Return the host among limit keys, or None."""
    return next((key for key in limit_keys if not key.startswith("@")), None)


def session_among(limit_keys: tuple[str, ...]) -> str | None:
    """Return the browser session among limit keys, without its `@`, or None."""
    return next((key[1:] for key in limit_keys if key.startswith("@")), None)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
