"""DNS lookups of one gate: one lookup a name for all callers, a few concurrently, with a cache of one minute."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cplane.egress.rules import Address

RESOLVE_TIMEOUT_S = 5.0
CACHE_TTL_S = 60.0
"""How long a result is used. The next result of a name is judged like the first."""
MAX_CACHED = 1000
MAX_LOOKUPS = 256
"""Lookups of one gate that are in flight or wait for capacity."""
MAX_CONCURRENT = 8
"""Concurrent lookups of one gate: a page whose names never resolve takes no more of the threads all gates share."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Returns the addresses of a name; raises OSError if it has none."""


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    addresses: tuple[Address, ...]
    expires_at: float
    """In the event loop's time."""


class Lookups:
    """The lookups of one gate. One continues when its callers are gone, because the thread behind it does too."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._cache: dict[str, _CacheEntry] = {}
        self._in_flight: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._capacity = asyncio.Semaphore(MAX_CONCURRENT)

    async def addresses(self, host: str, port: int) -> tuple[Address, ...]:
        """Return every address of a name.

        Raises:
            OSError: it has none, it was not resolved within 5 s, or too many lookups are in flight.
        """
        cached = self._cache.get(host)
        if cached is not None and asyncio.get_running_loop().time() < cached.expires_at:
            return cached.addresses
        lookup = self._in_flight.get(host) or self._start(host, port)
        done, _ = await asyncio.wait([lookup], timeout=RESOLVE_TIMEOUT_S)
        if not done or lookup.cancelled():
            raise OSError(f"its name was not resolved within {RESOLVE_TIMEOUT_S:g} s")
        try:
            return lookup.result()
        except (socket.gaierror, UnicodeError):
            raise OSError("there is no such name") from None

    async def close(self) -> None:
        """Cancel all lookups."""
        lookups = [*self._in_flight.values()]
        for lookup in lookups:
            lookup.cancel()
        if lookups:
            await asyncio.wait(lookups)

    def _start(self, host: str, port: int) -> asyncio.Task[tuple[Address, ...]]:
        if len(self._in_flight) >= MAX_LOOKUPS:
            raise OSError("its page looks up too many names at once")
        lookup = asyncio.get_running_loop().create_task(self._look_up(host, port), name="look up a name for a page")
        self._in_flight[host] = lookup
        lookup.add_done_callback(lambda done: self._done(host, done))
        return lookup

    async def _look_up(self, host: str, port: int) -> tuple[Address, ...]:
        async with self._capacity:
            addresses = tuple(await self._resolve(host, port))
        if not addresses:
            raise OSError("there is no such name")
        self._store(host, addresses)
        return addresses

    def _store(self, host: str, addresses: tuple[Address, ...]) -> None:
        self._cache.pop(host, None)
        if len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[host] = _CacheEntry(addresses, asyncio.get_running_loop().time() + CACHE_TTL_S)

    def _done(self, host: str, lookup: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._in_flight[host]
        if not lookup.cancelled():
            lookup.exception()  # read it: the callers may be gone
