"""Jobs that run in processes, for tests: good ones, and some that end badly."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cplane import Context, Retry, RetryPolicy, TooManyRequests, job

user: ContextVar[str | None] = ContextVar("user", default=None)


class Unpicklable(Exception):
    def __init__(self, text: str, payload: object) -> None:
        super().__init__(text)
        self.payload = payload

    def __reduce__(self) -> Any:
        raise TypeError("this error cannot be pickled")


@job(runs_in="process", memory_mb=512)
def blocks_innocently(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@job(runs_in="process", record=False)
def blocks_transiently(x: int, y: int = 2) -> int:
    return x + y


@job(runs_in="process", retries=1)
def blocks_and_exits(code: int) -> None:
    os._exit(code)


@job(runs_in="process")
def blocks_and_crashes() -> None:
    ctypes.string_at(0)


@job(runs_in="process")
def blocks_and_kills_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@job(runs_in="process", memory_mb=512)
def blocks_and_allocates() -> int:
    return len(bytearray(4 * 1024**3))


@job(runs_in="process", timeout=2)
def blocks_in_a_regex() -> bool:
    return re.fullmatch("(a+)+$", "a" * 40 + "!") is not None


@job(runs_in="process")
def blocks_and_leaves(how: str) -> None:
    leave: dict[str, Callable[[], object]] = {"sys.exit": lambda: sys.exit(3), "interrupt": interrupt}
    leave[how]()


def interrupt() -> None:
    raise KeyboardInterrupt


@job(runs_in="process")
def blocks_and_returns(megabytes: int) -> str:
    return "x" * (megabytes * 1024 * 1024)


@job(runs_in="process")
def blocks_and_raises_what_cannot_be_pickled() -> None:
    raise Unpicklable("no\udce9 good", payload=lambda: None)


@job(runs_in="process", timeout=60)
def blocks_with_children(folder: str) -> None:
    """Start a program that would outlive the process, write both ids to a file, and never return."""
    program = subprocess.Popen(["sleep", "3600"])
    (Path(folder) / "pids.part").write_text(f"{os.getpid()} {program.pid}")
    (Path(folder) / "pids.part").rename(Path(folder) / "pids")
    while True:
        time.sleep(1)


@job(runs_in="process")
def blocks_and_reports(ctx: Context, name: str) -> list[str]:
    ctx.progress(1, 2, "half")
    ctx.log.info("half_done", user=name, folder=Path("/tmp"), record="mine")
    return [str(ctx.id), ctx.key, ctx.job, str(ctx.attempt)]


@job(runs_in="process")
def blocks_and_stores(ctx: Context) -> None:
    _ = ctx.artifact("a.txt", b"a")


@job(runs_in="process")
def blocks_and_sets(name: str) -> str | None:
    before = user.get()
    user.set(name)
    return before


ERRORS: dict[str, type[Exception]] = {"ValueError": ValueError, "KeyError": KeyError, "Retry": Retry}


@job(runs_in="process", retries=RetryPolicy(retries=2, backoff_s=0, jitter=0, on=(ValueError,)))
def blocks_and_is_retried(ctx: Context, error: str) -> int:
    if ctx.attempt == 1 or error == "KeyError":
        raise slow_down() if error == "TooManyRequests" else ERRORS[error]
    return ctx.attempt


def slow_down() -> TooManyRequests:
    return TooManyRequests("slow down", retry_after_s=0)


def make_unfindable() -> Any:
    @job(runs_in="process")
    def blocks_unfindably() -> None: ...

    return blocks_unfindably
