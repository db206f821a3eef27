"""Slots: how many jobs of one queue may be claimed. All accounting of a worker's capacity is here."""

import asyncio
from types import TracebackType
from typing import Self

import msgspec

from cplane.worker.waits import Waits

MAX_UNRECORDED = 1000
"""Outcomes of one queue that may wait to be recorded before claiming pauses."""


class JobBudget:
    """How many jobs a burst worker may start (arq's `max_burst_jobs`), over all of its queues. None: any number."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._reserved = 0
        self._started = 0

    @property
    def spent(self) -> bool:
        """Whether all of them were started."""
        return self._limit is not None and self._started >= self._limit

    def reserve(self, wanted: int) -> int:
        """Reserve up to `wanted` starts. Returns how many were left."""
        allowed = wanted if self._limit is None else max(0, min(wanted, self._limit - self._reserved))
        self._reserved += allowed
        return allowed

    def start(self, reserved: int, started: int) -> None:
        """Count the starts of a reservation, and return the rest of it."""
        self._reserved -= reserved - started
        self._started += started

    def undo(self, number: int) -> None:
        """Return starts that did not happen after all."""
        self._reserved -= number
        self._started -= number


class Slots:
    """The slots of one queue.

    A slot is occupied from the claim until the job's code has ended; its outcome then waits to be recorded. Claiming pauses when every slot
    is occupied, and when too many outcomes wait.

    Args:
        concurrency: jobs of the queue that may run at once.
        budget: what a burst worker may start; shared by the queues of a worker.
    """

    def __init__(self, concurrency: int, budget: JobBudget) -> None:
        self.concurrency = concurrency
        self.waits = Waits(concurrency)
        self._budget = budget
        self._occupied = 0
        self._unrecorded = 0
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many more jobs may be claimed."""
        return min(self.concurrency - self._occupied, MAX_UNRECORDED + self.concurrency - self._unrecorded)

    @property
    def spent(self) -> bool:
        """Whether the worker's budget of starts is spent."""
        return self._budget.spent

    def expect_free(self) -> None:
        """Have `wait_freed` wait for what is freed from now on."""
        self._freed.clear()

    async def wait_freed(self) -> None:
        """Wait until something was freed since `expect_free`."""
        await self._freed.wait()

    def reserve(self, number: int) -> "Reservation":
        """Occupy up to `number` slots, as many as the budget allows, before jobs for them are claimed."""
        return Reservation(self, self._budget, self._budget.reserve(number))

    def occupy(self, number: int) -> None:
        """Count slots as occupied, and their outcomes as not recorded yet."""
        self._occupied += number
        self._unrecorded += number

    def vacate(self, number: int = 1) -> None:
        """Let others in: the code of these jobs has ended."""
        self._occupied -= number
        if not self._freed.is_set():
            self._freed.set()

    def record(self, number: int = 1) -> None:
        """Count outcomes as recorded."""
        self._unrecorded -= number
        if not self._freed.is_set():
            self._freed.set()


class Reservation:
    """Slots of one claim. Leaving the block releases those that no attempt took over."""

    __slots__ = ("_budget", "_left", "_slots")

    def __init__(self, slots: Slots, budget: JobBudget, number: int) -> None:
        self._slots = slots
        self._budget = budget
        self._left = number
        slots.occupy(number)

    def __len__(self) -> int:
        return self._left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release(self._left)

    def claimed(self, number: int) -> None:
        """Keep as many slots as jobs came, and release the others."""
        self._budget.start(self._left, number)
        self.release(self._left - number)

    def take(self) -> "Slot":
        """Hand one slot over to an attempt."""
        self._left -= 1
        return Slot(self._slots)

    def release(self, number: int) -> None:
        """Release slots whose jobs do not run here."""
        self._left -= number
        if number:
            self._slots.vacate(number)
            self._slots.record(number)

    def put_back(self, number: int) -> None:
        """Release slots whose jobs were not started after all: a burst worker may start as many again."""
        self.release(number)
        self._budget.undo(number)


class Slot(msgspec.Struct, eq=False):
    """The slot of one attempt: vacated when its job's code has ended, released when its outcome is recorded."""

    slots: Slots
    occupied: bool = True

    def vacate(self) -> None:
        """Let another job in. Repeating it changes nothing."""
        if self.occupied:
            self.occupied = False
            self.slots.vacate()

    def release(self) -> None:
        """Count the outcome as recorded; called once."""
        if self.occupied:
            self.vacate()
        self.slots.record()
