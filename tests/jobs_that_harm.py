"""Jobs that harm the process they run in, and innocent ones beside them; imported by CPLANE_IMPORTS=jobs_that_harm."""

import asyncio
import os
import signal
import time
from pathlib import Path

from cplane import Context, job


@job(timeout=60)
async def innocent(ctx: Context, folder: str) -> int:
    """Create a file named after the attempt and the process, then wait until the test creates the file `go`."""
    here = Path(folder)
    (here / f"started-{ctx.attempt}-{os.getpid()}-{ctx.id}").touch()
    while not (here / "go").exists():
        await asyncio.sleep(0.02)
    return ctx.attempt


@job(record=False)
async def innocent_transient(folder: str) -> str:
    while not (Path(folder) / "go").exists():
        await asyncio.sleep(0.02)
    return "fine"


@job
async def say_pid() -> int:
    return os.getpid()


@job(timeout=30)
async def sleep_on_the_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251  that is the harm
    return "awake"


@job(timeout=1, retries=0)
async def spin_in_a_task() -> None:
    async def endless() -> None:
        while True:
            pass

    await asyncio.gather(endless(), asyncio.sleep(0))


remembered: list[bytes] = []


@job
async def remember(mb: int) -> int:
    """Use memory for ever. Returns the process."""
    remembered.append(b"x" * (mb << 20))
    return os.getpid()


@job
async def kill_itself() -> None:
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
