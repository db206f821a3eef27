"""The names that one gate asks for: each is looked up once for all who wait, a few at a time, and remembered for a minute."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cplane.egress.rules import Address

RESOLVE_S = 5.0
KEPT_S = 60.0
"""An answer is used for this long. Whatever the next one says is judged as the first was."""
MOST_KEPT = 1000
MOST_WAITING = 256
"""Lookups of one gate that are under way or wait for room."""
AT_ONCE = 8
"""Lookups of one gate at once. A page that asks for names which nobody answers takes no more of the threads of all."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a name; OSError when it has none."""


@dataclass(frozen=True, slots=True)
class _Answer:
    addresses: tuple[Address, ...]
    until: float


class Lookups:
    """What one gate has looked up. A lookup goes on when nobody waits for it any more: the thread behind it does too."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._answers: dict[str, _Answer] = {}
        self._lookups: dict[str, asyncio.Task[tuple[Address, ...]]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def addresses(self, host: str, port: int) -> tuple[Address, ...]:
        """Every address of a name.

        Raises:
            OSError: it has none, or nobody says so in time.
        """
        answer = self._answers.get(host)
        if answer is not None and asyncio.get_running_loop().time() < answer.until:
            return answer.addresses
        lookup = self._lookups.get(host) or self._look_up(host, port)
        done, _ = await asyncio.wait([lookup], timeout=RESOLVE_S)
        if not done or lookup.cancelled():
            raise OSError(f"its name was not resolved within {RESOLVE_S:g} s")
        try:
            return lookup.result()
        except (socket.gaierror, UnicodeError):
            raise OSError("there is no such name") from None

    async def close(self) -> None:
        """Look nothing up any more."""
        lookups = [*self._lookups.values()]
        for lookup in lookups:
            lookup.cancel()
        if lookups:
            await asyncio.wait(lookups)

    def _look_up(self, host: str, port: int) -> asyncio.Task[tuple[Address, ...]]:
        if len(self._lookups) >= MOST_WAITING:
            raise OSError("its page asks for too many names at once")
        lookup = asyncio.get_running_loop().create_task(self._ask(host, port), name="look up a name for a page")
        self._lookups[host] = lookup
        lookup.add_done_callback(lambda done: self._settle(host, done))
        return lookup

    async def _ask(self, host: str, port: int) -> tuple[Address, ...]:
        async with self._room:
            addresses = tuple(await self._resolve(host, port))
        if not addresses:
            raise OSError("there is no such name")
        self._keep(host, addresses)
        return addresses

    def _keep(self, host: str, addresses: tuple[Address, ...]) -> None:
        self._answers.pop(host, None)
        if len(self._answers) >= MOST_KEPT:
            del self._answers[next(iter(self._answers))]
        self._answers[host] = _Answer(addresses, asyncio.get_running_loop().time() + KEPT_S)

    def _settle(self, host: str, lookup: asyncio.Task[tuple[Address, ...]]) -> None:
        del self._lookups[host]
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may be gone
