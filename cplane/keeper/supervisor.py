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
        self._ever_served = False
        self._code = 0

    async def run(self) -> int:
        """Run until every process has ended for good. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop, signum)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._keep_one(group), name=f"keep worker {number + 1}")
        finally:
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(signum)
        return self._code

    def _stop(self, signum: signal.Signals) -> None:
        self._stopping.set()
        for process in self._running:
            process.stop(signum)

    async def _keep_one(self, group: asyncio.TaskGroup) -> None:
        """Run one process after the other in one place."""
        backoff_s = INITIAL_BACKOFF_S
        while not self._stopping.is_set():
            process = WorkerProcess(self._command, self._limits)
            replaced = asyncio.create_task(self._replace(group, process), name="replace a worker that retires")
            again = await self._run_one(group, process)
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
                with suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._stopping.wait()

    async def _replace(self, group: asyncio.TaskGroup, process: WorkerProcess) -> None:
        """Start another process as soon as this one claims no more."""
        await process.retired.wait()
        if not self._stopping.is_set():
            group.create_task(self._keep_one(group), name="keep a worker")

    async def _run_one(self, group: asyncio.TaskGroup, process: WorkerProcess) -> bool:
        """Run one process, and begin to clean up after it. Returns whether another takes its place."""
        self._running.add(process)
        try:
            death = await process.run()
        finally:
            self._running.discard(process)
        group.create_task(process.rescue(death), name="requeue what was aboard")
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
