"""The parent of the chaos workers: one process that has imported everything and forks a worker in milliseconds.

It ends when its stdin is closed, at the end of the tests, and all its workers die with it.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cplane.dev.parent import die_with_parent
from tests.forks import ForkingProcess

ROOT = Path(__file__).parents[2]


class ChaosWorker:
    """A worker process. It is not our child: a pidfd signals its end."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self.ended_at: float | None = None
        self._ended = asyncio.Event()
        try:
            self._fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._on_end()
            return
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_end)

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def send(self, number: signal.Signals) -> bool:
        """Send a signal. Returns False if the process has ended."""
        if not self.alive:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    async def ended(self) -> None:
        await self._ended.wait()

    def _on_end(self) -> None:
        if self._ended.is_set():
            return
        self.ended_at = time.monotonic()
        self._ended.set()
        with suppress(AttributeError):  # it ended before it could be watched
            self._loop.remove_reader(self._fd)
            os.close(self._fd)


class Nursery(ForkingProcess):
    """Forks workers: `with Nursery() as nursery: nursery.fork(…)`."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CPLANE_")}
        command = [sys.executable, "-m", "tests.chaos.nursery"]
        super().__init__(command, environment | {"PYTHONPATH": str(ROOT)}, ROOT)

    def fork(self, environment: Mapping[str, str], log: Path) -> ChaosWorker:
        """Fork a worker with these additional variables, whose output goes to `log`."""
        return ChaosWorker(self.request({"environment": dict(environment), "log": str(log)}), log)


def main() -> None:
    """Fork a worker for each line of stdin, and print its pid."""
    from tests.chaos import worker

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the workers: the kernel reaps them
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited by a worker, until its clock can be set
    print(0, flush=True)  # noqa: T201  the protocol
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        bind = die_with_parent(signal.SIGKILL, None)
        pid = os.fork()
        if pid == 0:
            bind()
            _become(request, worker.main)
        print(pid, flush=True)  # noqa: T201


def _become(request: dict[str, Any], run: Any) -> None:
    """Turn this process into a worker with its own process session and output. Never returns."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    code = 1
    try:
        run()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
