"""The jobs of the chaos suite: each writes what it does into the journal. Imported by CPLANE_IMPORTS=tests.chaos.jobs."""

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

SOON = RetryPolicy(retries=2, backoff_s=0.05, factor=1.0)
STEP_S = 0.05
OVERSTAY_S = 30.0


class Unlucky(Exception):
    """What jobs raise that fail on purpose."""


@contextmanager
def told(ctx: Context, kind: str = "") -> Generator[None]:
    """Note that this attempt's code runs, and how it ended."""
    run = {"record": ctx.id, "attempt": ctx.attempt}
    here().write(f"{kind}begin", **run)
    try:
        yield
    finally:
        here().write(f"{kind}end", **run)


@job
async def chaos_ok(ctx: Context, tag: str) -> dict[str, int]:
    with told(ctx):
        return {"attempt": ctx.attempt}


@job
async def chaos_works(ctx: Context, tag: str, seconds: float) -> dict[str, int]:
    """Works for a while and tells its progress."""
    with told(ctx):
        steps = max(1, round(seconds / STEP_S))
        for step in range(steps):
            await ctx.progress(step, steps)
            await asyncio.sleep(STEP_S)
        return {"attempt": ctx.attempt}


@job(retries=SOON)
async def chaos_flaky(ctx: Context, tag: str, times: int, folder: str) -> dict[str, int]:
    """Fails `times` times, whoever runs it."""
    with told(ctx):
        failures = Path(folder) / f"flaky-{tag}"
        if failures.exists() and len(failures.read_text()) >= times:
            return {"attempt": ctx.attempt}
        with failures.open("a") as file:
            file.write("x")
        raise Unlucky(tag)


@job(retries=SOON)
async def chaos_fails(ctx: Context, tag: str) -> None:
    """Fails until its retries are spent."""
    with told(ctx):
        raise Unlucky(tag)


@job
async def chaos_writes(ctx: Context, tag: str) -> dict[str, int]:
    """Writes a row that must be there exactly once."""
    with told(ctx):
        async with ctx.transaction() as session:
            connection = await session.connection()
            row = {"record": ctx.id, "attempt": ctx.attempt}
            await connection.execute(
                text("INSERT INTO chaos.effects (record, attempt) VALUES (:record, :attempt)"), row
            )
        return {"attempt": ctx.attempt}


@job
async def chaos_poison(ctx: Context, tag: str) -> None:
    """Takes its worker along."""
    with told(ctx):
        now = time.monotonic()
        here().write("fault", kind=FaultKind.POISON, began=now, ended=now)
        os._exit(9)


@job
async def chaos_blocks(ctx: Context, tag: str, folder: str) -> dict[str, int]:
    """Holds the event loop on its first attempt, as no job should, until the driver makes `let_go_of`'s file."""
    with told(ctx):
        began = time.monotonic()
        while ctx.attempt == 1 and not let_go_of(folder).exists() and time.monotonic() < began + OVERSTAY_S:
            time.sleep(STEP_S)  # noqa: ASYNC251  the fault itself
        return {"attempt": ctx.attempt}


def let_go_of(folder: str | Path) -> Path:
    """The file that ends every `chaos_blocks` of a run."""
    return Path(folder) / "let-go"


@job
async def chaos_overstays(ctx: Context, tag: str, folder: str) -> dict[str, int]:
    """Its first attempt holds the loop until the second has begun; the second works until the first has had time to record its end."""
    with told(ctx):
        began = time.monotonic()
        second = Path(folder) / f"second-{tag}"
        if ctx.attempt == 1:
            while not second.exists() and time.monotonic() < began + OVERSTAY_S:
                time.sleep(STEP_S)  # noqa: ASYNC251  the fault itself
            here().write("fault", kind=FaultKind.BLOCK, began=began, ended=time.monotonic())
        else:
            second.touch()
            await asyncio.sleep(1.0)
        return {"attempt": ctx.attempt}


@job(record=False)
async def chaos_unrecorded(ctx: Context, tag: str, seconds: float) -> None:
    """Works for a while and leaves no record."""
    with told(ctx, TRANSIENT):
        await asyncio.sleep(seconds)


@job(record=False)
async def chaos_transient(x: int) -> int:
    """What a plain arq worker knows as well."""
    return x + 1
