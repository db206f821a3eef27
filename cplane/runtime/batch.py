"""Adaptive batching: items that arrive while a batch is in flight form the next one.

No timer adds latency, and batches grow with load.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

Item = TypeVar("Item")
Reply = TypeVar("Reply")

Entry = tuple[Item, asyncio.Future[Reply] | None]
Entries = list[Entry[Item, Reply]]

log = structlog.get_logger("cplane")


class Batch(Generic[Item, Reply]):
    """A callable that sends its items in batches.

    One batch is in flight at a time. With `overlap`, a second batch is sent as soon as it has half as many items as the
    one in flight: callers that come again once they have their reply settle into three batches of one size, two in
    flight while the third is served.

    A caller that is cancelled stops waiting; its item is still sent. Leaving the context sends the remaining items and
    waits until no batch is in flight.

    Args:
        send: takes a list of items and returns one reply for each, in the same order. If it raises, every caller of
            that batch receives the error.
        name: name of the tasks that send, for logs and error messages.
        limit: maximum number of items in a batch.
        overlap: allow a second batch in flight.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Reply]]],
        *,
        name: str,
        limit: int = 500,
        overlap: bool = False,
    ) -> None:
        self._send = send
        self._name = name
        self._limit = limit
        self._overlap = overlap
        self._in_flight: dict[asyncio.Task[None], int] = {}
        """Tasks that send, each with the number of its items; only with `overlap`."""
        self._pending: Entries[Item, Reply] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._sender: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()  # kept: before Python 3.12 it costs a system call for each item
        self._sender = self._loop.create_task(self._run(), name=self._name)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closing = True
        self._wake.set()
        if self._sender is not None:
            await asyncio.shield(self._sender)
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    def __len__(self) -> int:
        """Number of items that wait to be sent."""
        return len(self._pending)

    async def __call__(self, item: Item) -> Reply:
        """Send `item` with the next batch and wait for its reply.

        Args:
            item: one item.

        Returns:
            The reply to this item.

        Raises:
            RuntimeError: the batch is not open, or is closed.
            Exception: any error that `send` raised for the batch of the item.
        """
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Reply]:
        """Send `item` with the next batch without waiting.

        Args:
            item: one item.

        Returns:
            A future of the reply, or of the error that `send` raised.

        Raises:
            RuntimeError: the batch is not open, or is closed.
        """
        if self._loop is None:
            raise RuntimeError(f"{self._name} is not open")
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._add(item, future)
        return future

    def post(self, item: Item) -> None:
        """Send `item` with the next batch and drop its reply; an error of `send` is logged.

        Args:
            item: one item.

        Raises:
            RuntimeError: the batch is closed.
        """
        self._add(item, None)

    def _add(self, item: Item, future: asyncio.Future[Reply] | None) -> None:
        if self._closing:
            raise RuntimeError(f"{self._name} is closed")
        self._pending.append((item, future))
        if self._may_send():
            self._wake.set()

    async def _run(self) -> None:
        while not (self._closing and not self._pending):
            await self._wake.wait()
            self._wake.clear()
            while self._pending and self._may_send():
                entries, self._pending = self._pending[: self._limit], self._pending[self._limit :]
                if self._overlap:
                    self._start(entries)
                else:
                    await self._send_batch(entries)

    def _may_send(self) -> bool:
        """Return whether the pending items may be sent now; always, unless `overlap` has a batch in flight."""
        if not self._in_flight:
            return True
        first, *more = self._in_flight.values()
        return not more and 2 * len(self._pending) >= first

    def _start(self, entries: Entries[Item, Reply]) -> None:
        sending = asyncio.create_task(self._send_batch(entries), name=f"{self._name}, one batch")
        self._in_flight[sending] = len(entries)
        sending.add_done_callback(self._on_sent)

    def _on_sent(self, sending: asyncio.Task[None]) -> None:
        del self._in_flight[sending]
        if self._pending:
            self._wake.set()

    async def _send_batch(self, entries: Entries[Item, Reply]) -> None:
        try:
            replies = await self._send([item for item, _ in entries])
            replied = list(zip(entries, replies, strict=True))
        except Exception as error:
            self._fail(entries, error)
        else:
            _resolve(replied)

    def _fail(self, entries: Entries[Item, Reply], error: Exception) -> None:
        if any(future is None for _, future in entries):
            log.error("batch_failed", batch=self._name, count=len(entries), exc_info=error)
        for _, future in entries:
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # a caller that stopped waiting must not leave "never retrieved" in the log


def _resolve(replied: list[tuple[Entry[Item, Reply], Reply]]) -> None:
    for (_, future), reply in replied:
        if future is not None and not future.done():
            future.set_result(reply)
