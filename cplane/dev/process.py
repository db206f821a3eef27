"""One server as a child process: starts it, probes it until it is ready, stops it, and never leaves it behind."""

import asyncio
import os
import signal
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from cplane.dev.parent import KERNEL_SIGNALS_CHILD, ParentWatch, die_with_parent
from cplane.errors import InfrastructureError, ServerStartError

PROBE_INTERVAL_S = 0.01
KILL_TIMEOUT_S = 5.0
LOG_TAIL_LINES = 5
"""Lines of the log that an error contains."""

Probe = Callable[[int], Awaitable[bool]]
"""Takes the pid of the server and returns whether it is ready."""


class ServerProcess:
    """A child process in its own process session, so that Ctrl-C reaches this process only, which then stops the child.

    Args:
        name: name of the server, for messages.
        command: program and arguments.
        log: file for its output.
        stop_signal: signal that asks it to end.
        orphan_signal: signal that it receives when this process dies.
        account: uid and gid that it runs as; None: those of this process.
        keep_open: file descriptors that it inherits.
        environment: variables in addition to those of this process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        orphan_signal: signal.Signals = signal.SIGKILL,
        account: tuple[int, int] | None = None,
        keep_open: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._command = command
        self._log = log
        self._stop_signal = stop_signal
        self._orphan_signal = orphan_signal
        self._account = account
        self._keep_open = keep_open
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None
        self._resources = AsyncExitStack()

    @property
    def pid(self) -> int:
        """The pid of the child.

        Raises:
            RuntimeError: the child was not started.
        """
        return self._running().pid

    async def start(self, ready: Probe, *, timeout_s: float) -> None:
        """Start the child and wait until it is ready. A child that is not ready in time is stopped.

        Args:
            ready: the probe.
            timeout_s: maximum time until the child is ready, seconds.

        Raises:
            ServerStartError: the child could not be started, ended, or was not ready within `timeout_s`.
        """
        try:
            await self._spawn()
            async with asyncio.timeout(timeout_s):
                await self._until_ready(ready)
        except TimeoutError:
            await self.stop()
            raise self._start_error(f"was not ready within {timeout_s:g} seconds") from None
        except BaseException:
            await self.stop()
            raise

    async def run(self, stdin: bytes = b"", *, timeout_s: float) -> str:
        """Run the child until it ends.

        Args:
            stdin: input of the child.
            timeout_s: maximum run time, seconds.

        Returns:
            The output of the child: stdout and stderr.

        Raises:
            ServerStartError: the child could not be started, did not end within `timeout_s`, or its exit code is not 0.
        """
        try:
            with tempfile.TemporaryFile() as file:
                file.write(stdin)
                file.seek(0)
                await self._spawn(stdin=file.fileno())
            async with asyncio.timeout(timeout_s):
                await self._running().wait()
        except TimeoutError:
            raise self._start_error(f"did not end within {timeout_s:g} seconds") from None
        finally:
            await self.stop()
        if self._running().returncode != 0:
            raise self._start_error(self._ending())
        return self._log.read_text(errors="replace")

    async def stop(self, *, timeout_s: float = KILL_TIMEOUT_S) -> None:
        """Ask the child to end, and kill it after `timeout_s`.

        A cancellation is raised only after the child has ended.
        """
        await complete(self._stop(timeout_s), name=f"stop {self._name}")

    async def ended(self) -> InfrastructureError:
        """Wait until the child ends, and return the reason as an error."""
        await self._running().wait()
        return InfrastructureError(f"{self._name} {self._ending()}", hint=f"see {self._log}")

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"{self._name} was not started")
        return self._process

    async def _spawn(self, stdin: int = asyncio.subprocess.DEVNULL) -> None:
        try:
            with self._log.open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    env={**clean_environment(), **self._environment},
                    start_new_session=True,
                    pass_fds=self._keep_open,
                    preexec_fn=die_with_parent(self._orphan_signal, self._account),
                )
        except OSError as error:
            raise ServerStartError(f"{self._name} could not be started: {error}") from error
        if not KERNEL_SIGNALS_CHILD:
            await self._resources.enter_async_context(ParentWatch(self._process.pid, self._orphan_signal))

    async def _until_ready(self, ready: Probe) -> None:
        process = self._running()
        while not await ready(process.pid):
            if process.returncode is not None:
                raise self._start_error(self._ending())
            await asyncio.sleep(PROBE_INTERVAL_S)

    async def _stop(self, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        for stop_signal in (self._stop_signal, signal.SIGKILL):
            with suppress(ProcessLookupError):
                process.send_signal(stop_signal)
            try:
                async with asyncio.timeout(timeout_s):
                    await process.wait()
                break
            except TimeoutError:
                continue
        await self._resources.aclose()

    def _ending(self) -> str:
        code = self._running().returncode
        if code is None:
            return "is still running"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _start_error(self, problem: str) -> ServerStartError:
        with self._log.open(errors="replace") as lines:
            tail = "".join(deque(lines, LOG_TAIL_LINES)).strip()
        return ServerStartError(f"{self._name} {problem}: {tail or 'there is no output'}", hint=f"see {self._log}")


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without variables that would configure a server by accident."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))} | {"LC_ALL": "C"}


async def complete(work: Coroutine[object, object, None], *, name: str) -> None:
    """Await `work` to its end even if cancelled; the cancellation is raised afterwards.

    `work` must have its own deadlines.
    """
    task = asyncio.create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
