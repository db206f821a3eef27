"""The threads of plain functions: one for each call, idle ones are reused, and those that outlive their attempt are counted."""

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

import structlog

from cplane.errors import InfrastructureError, ThreadsStuck
from cplane.keeper.manifest import ThreadTable
from cplane.worker.steps import CURRENT

STUCK_AFTER_S = 5.0
"""A thread whose attempt has ended is stuck if it still runs after this time: as long as a stopped job may clean up."""

log = structlog.get_logger("cplane")


@dataclass(slots=True, eq=False)
class Call:
    """One call of a plain function."""

    function: Callable[[], object]
    queue: str
    future: "asyncio.Future[Any]"
    seq: int
    """The attempt, as the keeper knows it; 0: there is no keeper."""
    stuck: bool = False


class JobThread:
    """A thread that runs one call at a time. It is a daemon: a call that never returns does not keep the process alive."""

    def __init__(
        self,
        number: int,
        loop: asyncio.AbstractEventLoop,
        ended: "Callable[[JobThread], None]",
        table: ThreadTable | None,
    ) -> None:
        self._number = number
        self._table = table
        self._inbox: SimpleQueue[Call | None] = SimpleQueue()
        self._loop = loop
        self._ended = ended
        self._thread = Thread(target=self._serve, name=f"cplane job {number}", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError: the system allows no more threads."""
        self._thread.start()

    def run(self, call: Call) -> None:
        """Run a call in the thread; it must be idle."""
        self._inbox.put(call)

    def close(self) -> None:
        """End the thread, when its call has ended."""
        self._inbox.put(None)

    def _serve(self) -> None:
        table, number = self._table, self._number
        if table is not None:
            table.enter(number)
        while (call := self._inbox.get()) is not None:
            if table is not None:
                table.note(number, call.seq)
            result, error = _outcome(call.function)
            if table is not None:
                table.note(number, 0)
            try:
                self._loop.call_soon_threadsafe(self._report, call.future, result, error)
            except RuntimeError:  # the loop is closed: there is nobody to report to
                return
            del call, result, error  # an idle thread keeps nothing of its last job alive

    def _report(self, future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
        """In the loop: hand over the outcome, unless its caller has stopped waiting."""
        self._ended(self)
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class JobThreads:
    """Runs plain functions in threads.

    A call never waits for a thread: its attempt has a slot, and another thread takes the place of one that is stuck.
    The deadline of an attempt therefore starts when its thread does.

    Args:
        limits: concurrency of each queue: as many stuck threads are too many.
        stuck_after_s: seconds after which a thread that outlives its attempt is stuck.
        table: where the keeper reads which thread runs what; None: there is no keeper.
    """

    def __init__(self, limits: Mapping[str, int], *, stuck_after_s: float, table: ThreadTable | None = None) -> None:
        self._table = table
        self._limits = limits
        self._stuck_after_s = stuck_after_s
        self._loop = asyncio.get_running_loop()
        self._idle: list[JobThread] = []
        self._running: dict[JobThread, Call] = {}
        self._started = 0
        self._too_many: asyncio.Future[str] = self._loop.create_future()

    @property
    def busy(self) -> bool:
        """Whether a call runs."""
        return bool(self._running)

    def stuck(self, queue: str) -> int:
        """Return how many threads of a queue are stuck."""
        return sum(call.stuck for call in self._running.values() if call.queue == queue)

    def run(self, function: Callable[[], object], queue: str) -> "asyncio.Future[Any]":
        """Call a function in a thread, in a copy of the current context.

        Args:
            function: the function.
            queue: queue of its job.

        Returns:
            A future of its result. A StopIteration arrives as a RuntimeError, as it does from a coroutine.

        Raises:
            InfrastructureError: the system allows no more threads.
        """
        thread = self._idle.pop() if self._idle else self._start()
        call = Call(partial(contextvars.copy_context().run, function), queue, self._loop.create_future(), CURRENT.get())
        self._running[thread] = call
        call.future.add_done_callback(partial(self._check, thread, call))
        thread.run(call)
        return call.future

    async def watch(self) -> None:
        """Wait until too many threads of a queue are stuck.

        Raises:
            ThreadsStuck: as many are stuck as the queue may run jobs at once.
        """
        queue = await self._too_many
        raise ThreadsStuck(
            f"{self.stuck(queue)} plain jobs of the queue '{queue}' still run after their attempts have ended, "
            "as many as it may run at once",
            hint='a process can be stopped: @job(runs_in="process")',
        )

    def close(self) -> None:
        """End the idle threads; the others end when their calls do."""
        for thread in (*self._idle, *self._running):
            thread.close()
        self._idle.clear()

    def _start(self) -> JobThread:
        self._started += 1
        thread = JobThread(self._started, self._loop, self._ended, self._table)
        try:
            thread.start()
        except RuntimeError as error:
            hint = "raise the number of tasks that the system allows the worker"
            raise InfrastructureError(f"no thread could be started: {error}", hint=hint) from error
        return thread

    def _ended(self, thread: JobThread) -> None:
        call = self._running.pop(thread)
        self._idle.append(thread)
        if call.stuck:
            log.info("stuck_thread_ended", queue=call.queue, stuck=self.stuck(call.queue))

    def _check(self, thread: JobThread, call: Call, future: "asyncio.Future[Any]") -> None:
        """A cancelled future belongs to an attempt that has ended: its thread should end soon, too."""
        if future.cancelled():
            self._loop.call_later(self._stuck_after_s, self._count, thread, call)

    def _count(self, thread: JobThread, call: Call) -> None:
        if self._running.get(thread) is not call:
            return
        call.stuck = True
        stuck, limit = self.stuck(call.queue), self._limits.get(call.queue, 1)
        log.warning("thread_stuck", queue=call.queue, stuck=stuck, limit=limit)
        if stuck >= limit and not self._too_many.done():
            self._too_many.set_result(call.queue)


def _outcome(function: Callable[[], object]) -> tuple[object, BaseException | None]:
    """Return the result of a call, or its error as a future can hold it."""
    try:
        return function(), None
    except StopIteration as error:
        stopped = RuntimeError(f"the job raised {error!r}")
        stopped.__cause__ = error
        return None, stopped
    except BaseException as error:
        return None, error
