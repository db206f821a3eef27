"""Measures how long the event loop was blocked."""

import asyncio
import gc
import time
from types import TracebackType
from typing import Self

INTERVAL_S = 0.005


class Ticker:
    """A task that wakes up every 5 ms while its block runs, and measures how late it was."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        """The longest time that the event loop did not turn, seconds; waits for the CPU do not count."""

    async def __aenter__(self) -> Self:
        gc.freeze()  # a worker's heap is frozen too; the test suite's is large
        self._task = asyncio.create_task(self._tick(), name="tick")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        gc.unfreeze()

    async def _tick(self) -> None:
        while True:
            began, used = time.monotonic(), time.process_time()
            await asyncio.sleep(INTERVAL_S)
            blocked_s = min(time.monotonic() - began - INTERVAL_S, time.process_time() - used)
            self.longest_s = max(self.longest_s, blocked_s)
