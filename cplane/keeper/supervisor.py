"""The supervisor: keeps a number of worker processes running until it is told to stop."""

import asyncio
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from cplane.keeper.channel import Limits
from cplane.keeper.log import log
from cplane.keeper.process import WorkerProcess

SHORT_LIFE_S = 5.0
"""A process that lives less long is not replaced at once."""

ALONE_BACKOFF_S = 30.0
"""How long a quarantine is left alone whose process could not serve it."""

INITIAL_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class Supervisor:
    """Runs worker processes.

    Args:
        command: the program of a worker process, and its arguments.
        processes: how many of them.
        limits: when one is replaced.
    """

    def __init__(self, command: Sequence[str], processes: int, limits: Limits) -> None:
        self._command = command
        self._count = processes
        self._limits = limits
        self._stopping = asyncio.Event()
        self._running: set[WorkerProcess] = set()
        self._quarantines: dict[str, asyncio.Task[None]] = {}
        self._ever_served = False
        self._code = 0

    async def run(self) -> int:
        """Run until every process has ended for good. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop, signum)
        try:
            async with asyncio.TaskGroup() as self._group:
                for number in range(self._count):
                    self._group.create_task(self._keep_one(), name=f"keep worker {number + 1}")
        finally:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(signum)
        return self._code

    def _stop(self, signum: signal.Signals) -> None:
        self._stopping.set()
        for process in self._running:
            process.stop(signum)

    async def _keep_one(self) -> None:
        """Run one process after the other in one place."""
        backoff_s = INITIAL_BACKOFF_S
        while not self._stopping.is_set():
            process = WorkerProcess(self._command, self._limits, self._serve_quarantine)
            replaced = asyncio.create_task(self._replace(process), name="replace a worker that retires")
            again = await self._run_one(process)
            if process.retired.is_set():
                await replaced
                return
            replaced.cancel()
            if not again:
                return
            lived_s = time.monotonic() - process.started
            backoff_s = INITIAL_BACKOFF_S if lived_s >= SHORT_LIFE_S else min(backoff_s * 2, MAX_BACKOFF_S)
            if lived_s < SHORT_LIFE_S:
                log("worker_restart_delayed", retry_in_s=backoff_s, lived_s=round(lived_s, 1))
                await self._sleep(backoff_s)

    async def _sleep(self, delay_s: float) -> None:
        """Wait, but not longer than until the end is wanted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    def _serve_quarantine(self, queue: str) -> None:
        """Start a process for the jobs of a queue that run alone, if there is none yet."""
        if queue not in self._quarantines and not self._stopping.is_set():
            task = self._group.create_task(self._run_alone(queue), name=f"serve the quarantine of {queue}")
            self._quarantines[queue] = task
            task.add_done_callback(lambda _: self._quarantines.pop(queue))

    async def _run_alone(self, queue: str) -> None:
        """Run processes until nothing in the quarantine is due. A job that ends one has harmed itself alone."""
        limits = Limits(memory_mb=self._limits.memory_mb)
        while not self._stopping.is_set():
            process = WorkerProcess(self._command, limits, self._serve_quarantine, alone=queue)
            log("quarantine_served", level="info", queue=queue, hint="jobs that were aboard two crashes run alone")
            self._running.add(process)
            try:
                death = await process.run()
            finally:
                self._running.discard(process)
            await process.rescue(death)
            if process.clean and death.code == 0:
                return
            if not process.served:
                log("quarantine_not_served", level="error", queue=queue, retry_in_s=ALONE_BACKOFF_S)
            await self._sleep(INITIAL_BACKOFF_S if process.served else ALONE_BACKOFF_S)

    async def _replace(self, process: WorkerProcess) -> None:
        """Start another process as soon as this one claims no more, unless that would have to go as soon."""
        await process.retired.wait()
        if process.is_misfit:
            self._code = 1
        elif not self._stopping.is_set():
            self._group.create_task(self._keep_one(), name="keep a worker")

    async def _run_one(self, process: WorkerProcess) -> bool:
        """Run one process, and begin to clean up after it. Returns whether another takes its place."""
        self._running.add(process)
        try:
            death = await process.run()
        finally:
            self._running.discard(process)
        self._group.create_task(process.rescue(death), name="requeue what was aboard")
        self._ever_served = self._ever_served or process.served
        code = death.code if death.code >= 0 else 128 - death.code
        if self._stopping.is_set():
            if (
                process.clean and death.code > 0
            ):  # what was killed is cleaned up after, and a signal may hit it after its end
                self._code = self._code or code
            return False
        if process.clean and code == 0:
            return False  # a burst
        if not self._ever_served:
            self._code = code or 1
            return False
        return True
