"""The processes of a worker for blocking work: each runs one call at a time, and is killed when its caller stops waiting."""

import asyncio
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import structlog

from cplane.errors import InfrastructureError, ProcessDied, TooManyRequests
from cplane.runtime.cancellation import cancel_all
from cplane.runtime.offload import RemoteError
from cplane.worker import process_messages as messages
from cplane.worker.fork_server import ForkedProcess, ForkServer, describe_end

IDLE_S = 60.0
"""How long an idle process is kept."""

MAX_IDLE = max(4, os.cpu_count() or 1)
"""Processes that are kept idle, at most."""

FUNCTION_MEMORY_MB = 1024
"""What a function of cplane may allocate: far more than it needs for a page of the largest size."""

DRAIN_S = 1.0
"""What is left to read of a process that has ended is there: its children may still hold the connection."""

Handler = Callable[[messages.Report], None]
"""Takes what a call reports."""

log = structlog.get_logger("cplane")


class ProcessPool:
    """Runs calls in processes. The fork server starts with the first call, and again if it dies.

    Args:
        imports: the modules that each process has imported.
        eager: whether to start the fork server now.
    """

    def __init__(self, imports: Sequence[str], *, eager: bool = False) -> None:
        self._imports = imports
        self._eager = eager
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()
        self._idle: list[ForkedProcess] = []
        self._starting_tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        if self._eager:
            self._track(asyncio.create_task(self._warm(), name="start the fork server"))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Kill every process."""
        self._closed = True
        await cancel_all(self._starting_tasks)
        if self._server is not None:
            await self._server.close()
        for process in self._idle:
            process.close()

    async def run(self, request: messages.Request, handle: Handler) -> Any:
        """Run a call in a process. When the caller is cancelled, the process is killed.

        Args:
            request: the call.
            handle: takes what it reports.

        Returns:
            What it returned.

        Raises:
            RemoteError: it raised an error.
            ProcessDied: its process ended under it.
            InfrastructureError: no process could be started, or all were lost because the fork server ended.
        """
        process = await self._acquire()
        reusable = False
        try:
            reply = await _call(process, messages.encode(request), handle)
            reusable = not reply.last
        finally:
            if reusable:
                self._release(process)
            else:
                await process.kill()
        if isinstance(reply, messages.Raised):
            raise _error(reply)
        return reply.value

    async def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        """Call a function of cplane in a process: see `runtime.offload`."""
        async with asyncio.timeout(None) as deadline:

            def begin(report: messages.Report) -> None:
                if isinstance(report, messages.Began):
                    deadline.reschedule(asyncio.get_running_loop().time() + timeout_s)

            request = messages.RunFunction(
                module=function.__module__, name=function.__name__, args=args, memory_mb=FUNCTION_MEMORY_MB
            )
            return await self.run(request, begin)

    async def start(self) -> ForkServer:
        """Start the fork server, unless it runs. Raises InfrastructureError."""
        async with self._starting:
            if self._closed:
                raise InfrastructureError("the worker has stopped")
            if self._server is None or not self._server.running:
                self._server = await ForkServer.start(self._imports)
            return self._server

    def _track(self, task: asyncio.Task[Any]) -> None:
        self._starting_tasks.add(task)
        task.add_done_callback(self._starting_tasks.discard)

    async def _warm(self) -> None:
        try:
            await self.start()
        except InfrastructureError as error:
            log.warning("fork_server_not_started", reason=str(error))

    async def _acquire(self) -> ForkedProcess:
        """Return an idle process, or a new one. A process that is forked for a caller who has left is kept."""
        while self._idle:
            process = self._idle.pop()
            if not process.ended.done() and not process.reader.at_eof():
                return process
        forking = asyncio.create_task(self._fork(), name="fork a process")
        self._track(forking)
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            forking.add_done_callback(self._keep)
            raise

    async def _fork(self) -> ForkedProcess:
        return await (await self.start()).fork()

    def _keep(self, forking: "asyncio.Task[ForkedProcess]") -> None:
        if not forking.cancelled() and forking.exception() is None:
            self._release(forking.result())

    def _release(self, process: ForkedProcess) -> None:
        if self._closed or len(self._idle) >= MAX_IDLE:
            process.close()
            return
        self._idle.append(process)
        asyncio.get_running_loop().call_later(IDLE_S, self._retire, process, process.calls)

    def _retire(self, process: ForkedProcess, calls: int) -> None:
        """Let a process end that has been idle since."""
        if process in self._idle and process.calls == calls:
            self._idle.remove(process)
            process.close()


async def _call(process: ForkedProcess, frame: bytes, handle: Handler) -> messages.Reply:
    """Send a call to an idle process, and read until its reply.

    Raises:
        ProcessDied, InfrastructureError: there is none.
    """
    process.calls += 1
    talking = asyncio.create_task(_talk(process, frame, handle), name=f"talk to process {process.pid}")
    try:
        await asyncio.wait((talking, process.ended), return_when=asyncio.FIRST_COMPLETED)
        if not talking.done():
            await asyncio.wait([talking], timeout=DRAIN_S)
        if talking.done() and (reply := talking.result()) is not None:
            return reply
    finally:
        talking.cancel()
        await asyncio.wait([talking])
    await asyncio.wait([process.ended], timeout=DRAIN_S)
    if not process.ended.done():
        raise ProcessDied("its process closed its connection to the worker, or wrote to it")
    status = process.ended.result()
    if status is None:
        raise InfrastructureError("the processes of the worker were lost: its fork server ended")
    raise ProcessDied(f"its process {describe_end(status)}")


async def _talk(process: ForkedProcess, frame: bytes, handle: Handler) -> messages.Reply | None:
    """Return the reply of a call; None if the process ends without one, or does not talk as it should."""
    reader, writer = process.reader, process.writer
    try:
        writer.write(frame)
        await writer.drain()
        while True:
            size = int.from_bytes(await reader.readexactly(messages.LENGTH_BYTES))
            if size > messages.MAX_REPLY_BYTES:
                return None
            message = messages.replies.decode(await reader.readexactly(size))
            if isinstance(message, messages.Returned | messages.Raised):
                return message
            handle(message)
    except (OSError, EOFError, messages.DecodeError):
        return None


def _error(raised: messages.Raised) -> Exception:
    """Return the error of a call. Errors of the infrastructure are themselves: the worker decides what they mean."""
    if not raised.is_infrastructure:
        return RemoteError(raised.type, raised.message, raised.traceback, raised.retry_in_s)
    if raised.type == TooManyRequests.__name__:
        return TooManyRequests(raised.message, retry_after_s=raised.retry_after_s)
    return InfrastructureError(f"{raised.type}: {raised.message}")
