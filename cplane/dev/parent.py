"""Ends a child process together with its parent, even if the parent is killed with SIGKILL."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

PR_SET_PDEATHSIG = 1
KERNEL_SIGNALS_CHILD = sys.platform == "linux"
"""Whether the kernel can signal a child when its parent dies; elsewhere a ParentWatch does."""

WATCH = 'trap "" HUP INT TERM; read -r line || kill -s "$0" "$1"'
"""A line on stdin ends the watch. The end of stdin, caused by the death of the parent, sends the signal."""


def die_with_parent(death_signal: signal.Signals, account: tuple[int, int] | None) -> Callable[[], None]:
    """Return a `preexec_fn` that changes to `account` and requests a signal when the parent dies.

    The kernel watches the thread that forks: start servers from a thread that lives as long as they do.

    Args:
        death_signal: signal that the child receives when its parent dies.
        account: uid and gid to change to; None: no change.

    Returns:
        The function to run in the forked child before exec. Without support of the kernel it only changes the account.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if KERNEL_SIGNALS_CHILD else None

    def before_exec() -> None:
        if account is not None:
            os.setgroups([])
            os.setgid(account[1])
            os.setuid(account[0])
        if prctl is not None:  # after setuid, which clears it
            prctl(PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:
                os._exit(1)

    return before_exec


class ParentWatch:
    """A small shell that outlives this process long enough to signal `pid`, for kernels that cannot do so."""

    def __init__(self, pid: int, death_signal: signal.Signals) -> None:
        self._pid = pid
        self._death_signal = death_signal
        self._pipe: int | None = None
        self._shell: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        stdin, self._pipe = os.pipe()
        command = ("/bin/sh", "-c", WATCH, self._death_signal.name.removeprefix("SIG"), str(self._pid))
        try:
            self._shell = await asyncio.create_subprocess_exec(*command, stdin=stdin, start_new_session=True)
        except BaseException:
            self._dismiss(self._pipe)
            raise
        finally:
            os.close(stdin)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._pipe is None or self._shell is None:
            return
        self._dismiss(self._pipe)
        await self._shell.wait()

    def _dismiss(self, pipe: int) -> None:
        with suppress(BrokenPipeError):
            os.write(pipe, b"dismissed\n")
        os.close(pipe)
        self._pipe = None
