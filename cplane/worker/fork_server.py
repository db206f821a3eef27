"""The worker's side of its fork server (`child.py`): starts it, asks it for processes, and hears how they end."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import structlog

from cplane.errors import InfrastructureError

START_TIMEOUT_S = 60.0
"""What the server gets to import the jobs."""

KILLED_WITHIN_S = 2.0
"""How long a killed process is waited for. One that hangs in the kernel ends later."""

BOOT = (
    "import json, socket, sys; sys.path[:] = json.loads(sys.argv[2]); from cplane.worker.child import main; "
    "main(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:])"
)

log = structlog.get_logger("cplane")


class ForkedProcess:
    """A process that the server has forked.

    Attributes:
        pid: its id, which is its process group's, too.
        ended: a future of its status as `os.waitpid` returns it; None: the server ended, and this process with it.
        calls: how many calls it was given.
    """

    def __init__(
        self, server: "ForkServer", pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.calls = 0
        self.reader = reader
        self.writer = writer
        self._server = server

    def close(self) -> None:
        """Let an idle process end by itself."""
        self.writer.close()

    async def kill(self) -> None:
        """Kill the process and its group, and wait until it has ended."""
        self.writer.transport.abort()
        self._server.kill(self.pid)
        await asyncio.wait([self.ended], timeout=KILLED_WITHIN_S)


class ForkServer:
    """A running fork server. It ends with the worker, and takes its processes along."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._processes: dict[int, ForkedProcess] = {}
        self._starting: deque[asyncio.Future[int]] = deque()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_ready = False
        self._reading = asyncio.create_task(self._read(), name="read from the fork server")

    @classmethod
    async def start(cls, imports: Sequence[str]) -> Self:
        """Start a server that imports the modules of jobs.

        Raises:
            InfrastructureError: it could not be started, or could not import them.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", BOOT, str(theirs.fileno()), json.dumps(sys.path), *imports,
                    stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                )  # fmt: skip
            except BaseException as error:
                ours.close()
                if not isinstance(error, OSError):
                    raise
                raise InfrastructureError(f"no process could be started: {error}") from error
        server = cls(process, ours)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(server._ready)
        except TimeoutError:
            await server.close()
            raise InfrastructureError(f"the fork server was not ready within {START_TIMEOUT_S:g} s") from None
        except BaseException:
            await server.close()
            raise
        return server

    @property
    def running(self) -> bool:
        """Whether it can be asked for processes."""
        return not self._reading.done()

    async def fork(self) -> ForkedProcess:
        """Start a process.

        Raises:
            InfrastructureError: there is no server any more, or the system allows no more processes.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = await self._start(theirs)
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
        process = self._processes[pid] = ForkedProcess(self, pid, reader, writer)
        return process

    def kill(self, pid: int) -> None:
        """Kill a process, unless it has ended."""
        with suppress(OSError):  # no server, no processes
            self._control.send(f"kill {pid}\n".encode())

    async def close(self) -> None:
        """End the server and all of its processes."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)  # it kills them with their groups
        try:
            async with asyncio.timeout(KILLED_WITHIN_S if self._is_ready else 0):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._reading])

    async def _start(self, connection: socket.socket) -> int:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._control, [b"start\n"], [connection.fileno()])
        except OSError as error:
            raise InfrastructureError(f"no process could be started: {error}") from error
        self._starting.append(started)
        return await started

    async def _read(self) -> None:
        """Read what the server says, to its end."""
        loop, unread = asyncio.get_running_loop(), b""
        try:
            with suppress(OSError):
                while data := await loop.sock_recv(self._control, 65_536):
                    *lines, unread = (unread + data).split(b"\n")
                    for line in lines:
                        self._note(line.decode(errors="replace"))
        finally:
            self._control.close()
            self._abandon()

    def _note(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        if verb == "ready":
            if int(rest) > 1:
                hint = "a module starts threads when it is imported; they and their locks are lost in processes"
                log.warning("fork_server_has_threads", threads=int(rest), hint=hint)
            self._is_ready = True
            self._ready.set_result(None)
        elif verb == "started":
            self._starting.popleft().set_result(int(rest))
        elif verb == "ended":
            pid, status = map(int, rest.split())
            if (process := self._processes.pop(pid, None)) is not None:
                process.ended.set_result(status)
        elif not self._ready.done():
            self._ready.set_exception(InfrastructureError(f"the fork server cannot import the jobs: {rest}"))
        else:
            self._starting.popleft().set_exception(InfrastructureError(f"no process could be forked: {rest}"))

    def _abandon(self) -> None:
        """The server has ended: its processes have, too."""
        error = InfrastructureError("the fork server of the worker has ended")
        if not self._ready.done():
            self._ready.set_exception(error)
        for starting in self._starting:
            if not starting.done():
                starting.set_exception(error)
        for process in self._processes.values():
            process.ended.set_result(None)
        self._processes.clear()


def describe_end(status: int) -> str:
    """Return how a process ended, in words, from its status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with {os.waitstatus_to_exitcode(status)}"
