"""`cplane worker` for tests: a keeper and its worker processes, and what they log."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

DEADLINE_S = 90.0
"""A process that is replaced starts Python anew, three times in some tests."""


class Keeper:
    """A running `cplane worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="read what the keeper writes")

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            self._changed.set()

    async def until_logged(self, event: str, times: int = 1) -> str:
        """Wait until lines with this event were logged, and return the last."""
        async with asyncio.timeout(DEADLINE_S):
            while len(found := [line for line in self.lines if event in line]) < times:
                self._changed.clear()
                await self._changed.wait()
        return found[times - 1]

    async def until_ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await self._reader
        return code

    async def stop(self) -> float:
        """Tell it to stop, and return how many seconds that took."""
        self.process.terminate()
        began = time.monotonic()
        assert await self.until_ended() == 0, "".join(self.lines)
        return time.monotonic() - began

    @property
    def workers(self) -> list[int]:
        """The worker processes."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in children.read_text().split()] if children.exists() else []


@asynccontextmanager
async def keeper(*options: str, env: Mapping[str, str], cwd: Path) -> AsyncGenerator[Keeper]:
    """Run `cplane worker`, once its first worker claims jobs; SIGTERM ends it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cplane", "worker", *options, env=env, cwd=cwd, stderr=asyncio.subprocess.PIPE,
        limit=2**20,
    )  # fmt: skip
    running = Keeper(process)
    try:
        await running.until_logged("worker_started")
        yield running
        if process.returncode is None:
            await running.stop()
    finally:
        if process.returncode is None:
            workers = running.workers
            process.kill()
            for pid in workers:  # one whose interpreter is held does not see that its keeper is gone
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await running.until_ended()


def load_factor() -> float:
    """How much slower than alone this machine is."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) + 1.0
