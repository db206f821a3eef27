"""Jobs that harm the worker process they run in, each in its own way; imported by workers."""

import asyncio
import ctypes
import os
import re
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module

from cplane import Context, job

if os.environ.get("NEIGHBOURS_QUICK"):  # deadlines of built-in jobs that a quick run does not wait for
    vars(import_module("cplane.tasks.markdown"))["CONVERSION_TIMEOUT_S"] = 2.0
    vars(import_module("cplane.tasks.visit"))["RESPONSE_S"] = 2.0

GIB = 1 << 30
CHUNK_BYTES = 64 << 20

kept: list[object] = []
"""What offenders leave behind."""


@job(timeout=60)
async def block_the_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251  that is the harm
    return "awake"


@job(timeout=1)
def backtrack() -> bool:
    return re.match(r"(a+)+$", "a" * 40 + "!") is not None


@job(timeout=60)
def backtrack_for_a_minute() -> bool:
    return re.match(r"(a+)+$", "a" * 40 + "!") is not None


@job(timeout=60)
def hold_the_gil(seconds: int) -> str:
    ctypes.PyDLL(None).sleep(seconds)  # a function of a PyDLL is called with the GIL held, as a C extension's is
    return "released"


@job(timeout=1)
def hold_the_gil_for_a_minute() -> None:
    ctypes.PyDLL(None).sleep(60)


@job
async def exit_without_clean_up(ctx: Context, deaths: int) -> str:
    await asyncio.sleep(0.05)
    if ctx.attempt <= deaths:
        os._exit(3)
    return "survived"


@job
def segfault(ctx: Context, deaths: int) -> str:
    if ctx.attempt <= deaths:
        ctypes.string_at(0)
    return "survived"


@job
async def send_itself_sigkill(ctx: Context, deaths: int) -> str:
    await asyncio.sleep(0.05)
    if ctx.attempt <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@job
async def call_sys_exit() -> None:
    sys.exit("enough")


@job
def interrupt_from_the_keyboard() -> None:
    raise KeyboardInterrupt


@job
async def allocate_4_gb() -> int:
    chunks = list[bytes]()
    for _ in range(4 * GIB // CHUNK_BYTES):
        chunks.append(b"x" * CHUNK_BYTES)  # written to, else it is no memory
        await asyncio.sleep(0)
    await asyncio.sleep(2.0)
    return len(chunks) * CHUNK_BYTES


@job(runs_in="process", memory_mb=512)
def allocate_4_gb_in_a_process() -> int:
    return len(b"x" * 4 * GIB)


@job
async def fork_without_exec() -> bool:
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(3600)  # noqa: ASYNC251  with every socket of the worker
    return pid > 0


@job
async def fork_and_return() -> bool:
    """Both processes return into the event loop, which knows nothing of the fork."""
    return os.fork() >= 0


@job
async def leave_50_000_tasks() -> int:
    kept.extend(asyncio.create_task(asyncio.sleep(3600)) for _ in range(50_000))
    return len(kept)


def ignore(_number: int, _frame: object) -> None:
    """Handle a signal by doing nothing."""


@job
async def take_the_signals() -> str:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore)
    return "taken"


@job
def run_a_loop_in_a_thread() -> str:
    async def say() -> str:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.1)
        return "turned"

    return asyncio.run(say())


@job
async def return_300_mb() -> str:
    return "x" * 300_000_000


@job
async def return_an_object() -> object:
    return object()


@job
async def raise_1_mb() -> None:
    raise ValueError("a long story " * 80_000)


@job(timeout=2)
def stay_in_a_thread() -> None:
    time.sleep(120)
