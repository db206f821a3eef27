"""SIGTERM and SIGINT: the first stops a worker in good order, the second ends it at once."""

import asyncio
import os
import signal
from typing import Protocol

import structlog

from cplane.runtime.forks import detach_forked_children

log = structlog.get_logger("cplane")


class Stoppable(Protocol):
    """What the signals stop."""

    def stop(self) -> None:
        """Stop in good order."""
        ...


class Signals:
    """Handles the signals of the process while the block runs.

    Args:
        worker: what is stopped.
        is_kept: whether a keeper passes signals on. A second one is then the same again, as where a service manager
            signals both; the keeper ends a worker that is to end at once.
    """

    def __init__(self, worker: Stoppable, *, is_kept: bool = False) -> None:
        self._worker = worker
        self._is_kept = is_kept
        self._signalled = False
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        detach_forked_children()
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._handle, signum)

    def __exit__(self, *_: object) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(signum)

    def _handle(self, signum: signal.Signals) -> None:
        if self._signalled and self._is_kept:
            return
        if self._signalled:
            log.warning(
                "worker_exits_now", signal=signum.name, hint="running jobs start elsewhere when their leases end"
            )
            os._exit(128 + signum)
        self._signalled = True
        log.info("worker_stopping", signal=signum.name)
        self._worker.stop()
