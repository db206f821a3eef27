"""Natural batching: what gathers while one call is under way goes together in the next. No timer adds latency; load makes batches grow."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import structlog

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Entry = tuple[Item, asyncio.Future[Answer] | None]
Group = list[Entry[Item, Answer]]

log = structlog.get_logger("cplane")


class Batch(Generic[Item, Answer]):
    """A callable that sends its items in groups.

    `send` gets a list of items and answers one answer each, in order; if it raises, every caller of that group gets the error.
    One group is under way at a time. With `overlap` a second one goes as soon as it has half as many items as the one under way: where
    callers come again once they are answered, they end up in three groups of one size, two under way while the third is served.
    A caller that is cancelled stops waiting; its item is sent all the same. Leaving the context sends what is left.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Sequence[Answer]]],
        *,
        name: str,
        limit: int = 500,
        overlap: bool = False,
    ) -> None:
        self._send = send
        self._name = name
        self._limit = limit
        self._overlap = overlap
        self._under_way: dict[asyncio.Task[None], int] = {}
        self._waiting: list[tuple[Item, asyncio.Future[Answer] | None]] = []
        self._gathered = asyncio.Event()
        self._closing = False
        self._sender: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()  # asked for each item it is a call of the system, before Python 3.12
        self._sender = self._loop.create_task(self._run(), name=self._name)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._closing = True
        self._gathered.set()
        if self._sender is not None:
            await asyncio.shield(self._sender)
        if self._under_way:
            await asyncio.wait(self._under_way)

    def __len__(self) -> int:
        """How many items wait to be sent."""
        return len(self._waiting)

    async def __call__(self, item: Item) -> Answer:
        """Send `item` with the next group and wait for its answer."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Answer]:
        """Send `item` with the next group; the future carries its answer."""
        if self._loop is None:
            raise RuntimeError(f"{self._name} is not open")
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._add(item, future)
        return future

    def post(self, item: Item) -> None:
        """Send `item` with the next group; nobody waits for its answer."""
        self._add(item, None)

    def _add(self, item: Item, future: asyncio.Future[Answer] | None) -> None:
        if self._closing:
            raise RuntimeError(f"{self._name} is closed")
        self._waiting.append((item, future))
        if self._may_send():
            self._gathered.set()

    async def _run(self) -> None:
        while not (self._closing and not self._waiting):
            await self._gathered.wait()
            self._gathered.clear()
            while self._waiting and self._may_send():
                group, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                if self._overlap:
                    self._start(group)
                else:
                    await self._send_group(group)

    def _may_send(self) -> bool:
        """Whether what waits may go now; without `overlap` nothing is under way when this is asked."""
        if not self._under_way:
            return True
        first, *more = self._under_way.values()
        return not more and 2 * len(self._waiting) >= first

    def _start(self, group: Group[Item, Answer]) -> None:
        sending = asyncio.create_task(self._send_group(group), name=f"{self._name}, one group")
        self._under_way[sending] = len(group)
        sending.add_done_callback(self._ended)

    def _ended(self, sending: asyncio.Task[None]) -> None:
        del self._under_way[sending]
        if self._waiting:
            self._gathered.set()

    async def _send_group(self, group: Group[Item, Answer]) -> None:
        try:
            answers = await self._send([item for item, _ in group])
            answered = list(zip(group, answers, strict=True))
        except Exception as error:
            self._fail(group, error)
        else:
            _answer(answered)

    def _fail(self, group: Group[Item, Answer], error: Exception) -> None:
        if any(future is None for _, future in group):
            log.error("a group could not be sent", task=self._name, count=len(group), exc_info=error)
        for _, future in group:
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # a caller that stopped waiting must not leave "never retrieved" in the log


def _answer(answered: list[tuple[Entry[Item, Answer], Answer]]) -> None:
    for (_, future), answer in answered:
        if future is not None and not future.done():
            future.set_result(answer)
