"""SIGTERM and SIGINT: the first stops a worker in good order, the second ends it at once."""

import asyncio
import os
import signal
from typing import Protocol

import structlog

log = structlog.get_logger("cplane")


class Stoppable(Protocol):
    """What the signals stop."""

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        ...

    def stop(self) -> None:
        """Stop in good order."""
        ...


class Signals:
    """Handles the signals of the process while the block runs."""

    def __init__(self, worker: Stoppable) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._handle, signum)

    def __exit__(self, *_: object) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(signum)

    def _handle(self, signum: signal.Signals) -> None:
        if self._worker.stopping:
            log.warning(
                "worker_exits_now", signal=signum.name, hint="running jobs start elsewhere when their leases end"
            )
            os._exit(128 + signum)
        log.info("worker_stopping", signal=signum.name)
        self._worker.stop()
