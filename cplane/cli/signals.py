"""Turns SIGINT and SIGTERM into a graceful end of the current task."""

import asyncio
import os
import signal
from types import TracebackType
from typing import Self

from cplane.runtime.forks import detach_forked_children

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignals:
    """Cancels its block at the first signal and suppresses the CancelledError; a second signal exits immediately.

    `signum` is the signal that was received, or None.

    Example:
            with StoppedBySignals() as stop:
                await server.ended()
            print(stop.signum)
    """

    def __init__(self) -> None:
        self.signum: signal.Signals | None = None
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        detach_forked_children()
        for signum in SIGNALS:
            self._loop.add_signal_handler(signum, self._handle, signum)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        for signum in SIGNALS:
            self._loop.remove_signal_handler(signum)
        if self.signum is None or not isinstance(exc, asyncio.CancelledError) or self._task is None:
            return False
        return self._task.uncancel() == 0

    def _handle(self, signum: signal.Signals) -> None:
        if self.signum is not None:
            os._exit(128 + signum)  # child processes die with this one
        self.signum = signum
        if self._task is not None:
            self._task.cancel()
