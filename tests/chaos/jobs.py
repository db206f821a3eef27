"""The jobs of the chaos suite.

Each logs its start and end in the journal. Imported by CPLANE_IMPORTS=tests.chaos.jobs.
"""

import asyncio
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from sqlmodel import text

from cplane import Context, job
from cplane.jobs.retry import RetryPolicy
from tests.chaos.history import FaultKind
from tests.chaos.journal import TRANSIENT, here

FAST_RETRY = RetryPolicy(retries=2, backoff_s=0.05, factor=1.0)
STEP_S = 0.05
MAX_BLOCK_S = 30.0


class IntentionalFailure(Exception):
    """Raised by jobs that fail on purpose."""


@contextmanager
def logged(ctx: Context, kind: str = "") -> Generator[None]:
    """Log the start and the end of this attempt's code."""
    run = {"record": ctx.id, "attempt": ctx.attempt}
    here().write(f"{kind}begin", **run)
    try:
        yield
    finally:
        here().write(f"{kind}end", **run)


@job
async def chaos_ok(ctx: Context, tag: str) -> dict[str, int]:
    with logged(ctx):
        return {"attempt": ctx.attempt}


@job
async def chaos_works(ctx: Context, tag: str, seconds: float) -> dict[str, int]:
    """Work for `seconds` and report progress."""
    with logged(ctx):
        steps = max(1, round(seconds / STEP_S))
        for step in range(steps):
            await ctx.progress(step, steps)
            await asyncio.sleep(STEP_S)
        return {"attempt": ctx.attempt}


@job(retries=FAST_RETRY)
async def chaos_flaky(ctx: Context, tag: str, times: int, folder: str) -> dict[str, int]:
    """Fail the first `times` times, in whichever worker."""
    with logged(ctx):
        failures = Path(folder) / f"flaky-{tag}"
        if failures.exists() and len(failures.read_text()) >= times:
            return {"attempt": ctx.attempt}
        with failures.open("a") as file:
            file.write("x")
        raise IntentionalFailure(tag)


@job(retries=FAST_RETRY)
async def chaos_fails(ctx: Context, tag: str) -> None:
    """Fail until the retries are used up."""
    with logged(ctx):
        raise IntentionalFailure(tag)


@job
async def chaos_writes(ctx: Context, tag: str) -> dict[str, int]:
    """Write a row that must exist exactly once."""
    with logged(ctx):
        async with ctx.transaction() as session:
            connection = await session.connection()
            row = {"record": ctx.id, "attempt": ctx.attempt}
            await connection.execute(
                text("INSERT INTO chaos.effects (record, attempt) VALUES (:record, :attempt)"), row
            )
        return {"attempt": ctx.attempt}


@job
async def chaos_poison(ctx: Context, tag: str) -> None:
    """End its worker process."""
    with logged(ctx):
        now = time.monotonic()
        here().write("fault", kind=FaultKind.POISON, began=now, ended=now)
        os._exit(9)


@job
async def chaos_blocks(ctx: Context, tag: str, folder: str) -> dict[str, int]:
    """Block the event loop on the first attempt until the driver creates `release_file`."""
    with logged(ctx):
        began = time.monotonic()
        while ctx.attempt == 1 and not release_file(folder).exists() and time.monotonic() < began + MAX_BLOCK_S:
            time.sleep(STEP_S)  # noqa: ASYNC251  the fault itself
        return {"attempt": ctx.attempt}


def release_file(folder: str | Path) -> Path:
    """Return the file whose existence ends every `chaos_blocks` of a scenario."""
    return Path(folder) / "release"


@job
async def chaos_overstays(ctx: Context, tag: str, folder: str) -> dict[str, int]:
    """Block the loop on the first attempt until the second has begun.

    The second attempt works until the first could record its outcome.
    """
    with logged(ctx):
        began = time.monotonic()
        second = Path(folder) / f"second-{tag}"
        if ctx.attempt == 1:
            while not second.exists() and time.monotonic() < began + MAX_BLOCK_S:
                time.sleep(STEP_S)  # noqa: ASYNC251  the fault itself
            here().write("fault", kind=FaultKind.BLOCK, began=began, ended=time.monotonic())
        else:
            second.touch()
            await asyncio.sleep(1.0)
        return {"attempt": ctx.attempt}


@job(record=False)
async def chaos_unrecorded(ctx: Context, tag: str, seconds: float) -> None:
    """Work for `seconds`, without a record."""
    with logged(ctx, TRANSIENT):
        await asyncio.sleep(seconds)


@job(record=False)
async def chaos_transient(x: int) -> int:
    """A job that a plain arq worker has too."""
    return x + 1
