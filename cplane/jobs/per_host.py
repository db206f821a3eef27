"""How much of a host's time jobs may take: `PerHost`, the host that a URL names, and the limit keys of a job.

A job may be limited by a host, by a browser session, or by both. Records, envelopes and leases have these as limit keys; a session's
begins with `@`, as no host does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self, cast

from pydantic_core import Url
from pydantic_core import ValidationError as UrlError

LONGEST_HOST = 260
"""A name in the DNS has 253 characters at most, and a port 5: what is longer is nobody's host."""

MOST_AT_ONCE = 10_000
HIGHEST_RATE = 1000.0
LOWEST_RATE = 1 / 86_400
"""One job a day."""

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class PerHost:
    """How many jobs may run at once on one host, and how many may start, over all workers. The host is that of an argument, a URL.

    Args:
        concurrency: jobs of one host at once; 0: any number. None: what CPLANE_PER_HOST_CONCURRENCY says.
        rate: jobs that start each second on one host, for example 0.5; 0: any number. None: what CPLANE_PER_HOST_RATE says.
        burst: jobs that may start at once after the host was left alone for a while; the rate holds over time all the same.
        of: the argument that holds the URL. A job that is submitted without it is not limited.
    """

    concurrency: int | None = None
    rate: float | None = None
    burst: int = 1
    of: str = "url"

    def __post_init__(self) -> None:
        checks = {
            f"concurrency must be 0 to {MOST_AT_ONCE}, not {self.concurrency!r}": self.concurrency is None
            or (_is_int(self.concurrency) and 0 <= self.concurrency <= MOST_AT_ONCE),
            f"rate must be 0, or one job a day (1/86400) to {HIGHEST_RATE:g} a second, not {self.rate!r}": self.rate
            is None
            or (_is_number(self.rate) and (self.rate == 0 or LOWEST_RATE <= self.rate <= HIGHEST_RATE)),
            f"burst must be 1 to {MOST_AT_ONCE}, not {self.burst!r}": _is_int(self.burst)
            and 1 <= self.burst <= MOST_AT_ONCE,
            f"of must be the name of an argument, not {self.of!r}": isinstance(self.of, str) and bool(self.of),  # pyright: ignore[reportUnnecessaryIsInstance]  who calls us may not be typed
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    @classmethod
    def read(cls, value: object) -> Self:
        """The limits that a mapping or a PerHost says. Raises ValueError, one sentence."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"per_host is a PerHost, a dict of its arguments, or False, not {value!r}")  # noqa: TRY004  one kind of error for all
        given, known = cast("Mapping[str, Any]", value), cls.__dataclass_fields__
        if unknown := [str(name) for name in given if name not in known]:
            raise ValueError(f"per_host has no {', '.join(sorted(unknown))}; it takes {', '.join(known)}")
        return cls(**given)

    def filled(self, defaults: "PerHost | None") -> "PerHost":
        """The same with what is not said here taken from `defaults`."""
        if defaults is None or (self.concurrency is not None and self.rate is not None):
            return self
        return replace(
            self,
            concurrency=defaults.concurrency if self.concurrency is None else self.concurrency,
            rate=defaults.rate if self.rate is None else self.rate,
        )

    @property
    def interval_ms(self) -> float:
        """Milliseconds from one start to the next; 0: any."""
        return 1000 / self.rate if self.rate else 0.0


Declared = PerHost | Literal[False] | None
"""What a job says: its limits, that it has none whatever the settings say, or nothing."""


@lru_cache(maxsize=1024)
def limits(declared: Declared, defaults: PerHost | None) -> PerHost | None:
    """The limits of a job; None: it has none, and no host."""
    if declared is False:
        return None
    return defaults if declared is None else declared.filled(defaults)


def host_of(url: str) -> str | None:
    """The host that a URL names: lower case, IDNA, and the port if it is not the scheme's own. None: it names none."""
    try:
        address = Url(url)
    except UrlError:
        return None
    if not address.host:
        return None
    host = address.host.lower().removesuffix(".")
    default = DEFAULT_PORTS.get(address.scheme)
    named = host if address.port in {None, default} else f"{host}:{address.port}"
    return named if 0 < len(named) <= LONGEST_HOST and named.isascii() and named.isprintable() else None


def limit_keys_of(session: str | None, host: str | None) -> tuple[str, ...]:
    """Return the keys that a job is limited by. A browser session's begins with `@`, as no host does."""
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
