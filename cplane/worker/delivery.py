"""Delivery of outcomes to one server: through its outages, and past an outcome that it refuses."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

import structlog

from cplane.runtime.splitting import portions, send_halving

INITIAL_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0

LARGE_BYTES = 64 * 1024
"""An outcome of this size is sent in a separate batch: the others do not wait while a server receives it."""

PORTION_BYTES = 4 * 1024 * 1024
"""What one call carries at most, a larger outcome aside, which is alone."""

LARGE_TRIES = 3
"""How often a large outcome may run into an outage of a server that serves otherwise."""

log = structlog.get_logger("cplane")


class Sized(Protocol):
    """What is delivered."""

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        ...


Item = TypeVar("Item", bound=Sized)
Reply = TypeVar("Reply")

_size: Callable[[Sized], int] = attrgetter("size")


class Delivery(Generic[Item, Reply]):
    """Sends batches until each item is done, replaced or given up. One that is refused holds up no other.

    Args:
        outage_event: what an outage is logged as.
        send: sends items in one call, and returns one reply for each.
        outages: errors for which no item is to blame; the items are sent again.
        ping: raises one of `outages` if the server does not serve.
        done: takes an item and its reply.
        replace: returns what is sent in place of an item that was refused, with the error; None: nothing.
        goes_on: returns whether an item is sent again after an outage; if not, it is ended.
    """

    def __init__(
        self,
        outage_event: str,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Reply]]],
        *,
        outages: tuple[type[Exception], ...],
        ping: Callable[[], Awaitable[object]],
        done: Callable[[Item, Reply], None],
        replace: Callable[[Item, Exception], Item | None],
        goes_on: Callable[[Item], bool],
    ) -> None:
        self._outage_event = outage_event
        self._send = send
        self._outages = outages
        self._ping = ping
        self._done = done
        self._replace = replace
        self._goes_on = goes_on

    async def __call__(self, batch: Sequence[Item]) -> list[None]:
        """Deliver a batch, in portions that the server takes in quickly."""
        for portion in portions(batch, _size, PORTION_BYTES):
            await self._deliver(portion)
        return [None] * len(batch)

    async def _deliver(self, batch: Sequence[Item]) -> None:
        tries, backoff_s = 0, INITIAL_BACKOFF_S
        while batch:
            batch, outage = await self._try(batch)
            tries += 1
            if outage is None:
                continue
            if await self._is_to_blame(batch, tries):
                error = TimeoutError(f"it did not reply {tries} times, and serves otherwise")
                batch = self._replaced(batch[0], error)
                continue
            log.warning(self._outage_event, count=len(batch), reason=str(outage), retry_in_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            batch = [item for item in batch if self._goes_on(item)]

    async def _try(self, batch: Sequence[Item]) -> tuple[list[Item], Exception | None]:
        """Send once. Returns what is to be sent again, and the outage if there is one."""
        again, outage = list[Item](), None
        replies = await send_halving(batch, self._send, outages=self._outages)
        for item, reply in zip(batch, replies, strict=True):
            if isinstance(reply, self._outages):
                outage = reply
                again.append(item)
            elif isinstance(reply, Exception):
                again += self._replaced(item, reply)
            else:
                self._done(item, reply)
        return again, outage

    def _replaced(self, item: Item, error: Exception) -> list[Item]:
        replacement = self._replace(item, error)
        return [] if replacement is None else [replacement]

    async def _is_to_blame(self, batch: Sequence[Item], tries: int) -> bool:
        """Return whether what looks like an outage is one large item: the server serves, but does not take it in time."""
        if len(batch) > 1 or tries < LARGE_TRIES or batch[0].size < LARGE_BYTES:
            return False
        try:
            await self._ping()
        except self._outages:
            return False
        return True
