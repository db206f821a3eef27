"""A worker's end of its keeper: what is aboard is written where the keeper reads it, and what the keeper says is obeyed.

A worker that was not started by a keeper has none of this.
"""

import asyncio
import faulthandler
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from cplane.keeper.channel import VARIABLE, Hello
from cplane.keeper.manifest import Entry, Field, Manifest, SharedMemory, Status, ThreadTable, entry_lease
from cplane.worker.attempt import Attempt
from cplane.worker.steps import TaskFactory

BEAT_INTERVAL_S = 0.5
"""How often the heartbeat is written: a third of what it takes for a blocked one."""

BLOCKED_S = 1.0
"""After this time without a beat a traceback of all threads is written, once."""


class Kept:
    """The link to the keeper.

    Args:
        fds: the file descriptors that the keeper passed: the manifest, the traces, the channel.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        memory, self._traces, channel = fds
        for fd in fds:
            os.set_inheritable(fd, False)
        self._manifest = Manifest(SharedMemory(memory))
        self._socket = socket.socket(fileno=channel)
        self._header = self._manifest.header
        self._queues: Sequence[str] = ()
        self._aboard: Callable[[], Iterable[Attempt]] = tuple
        self._finished: Callable[[], int] = int
        self._beating: asyncio.TimerHandle | None = None
        self._interval_s = BEAT_INTERVAL_S
        self.tasks = TaskFactory(self._header)
        self.threads = ThreadTable(self._header)
        if not faulthandler.is_enabled():
            faulthandler.enable(self._traces)

    @classmethod
    def of_environment(cls) -> "Kept | None":
        """Return the link to the keeper that started this process, if one did. Processes that it starts have none."""
        given = os.environ.pop(VARIABLE, None)
        return None if given is None else cls([int(fd) for fd in given.split(",")])

    def serve(self, hello: Hello, aboard: Callable[[], Iterable[Attempt]], finished: Callable[[], int]) -> None:
        """Tell the keeper that this worker serves from now on.

        Args:
            hello: what the keeper has to know.
            aboard: returns the attempts that this worker holds leases of.
            finished: returns how many have ended.
        """
        self._queues = hello.queues
        self._aboard = aboard
        self._finished = finished
        self._interval_s = min(BEAT_INTERVAL_S, hello.servers.lease_s / 10)
        self._beat()
        self._manifest.set_status(Status.SERVING)
        self._socket.send(msgspec.json.encode(hello) + b"\n")
        asyncio.get_running_loop().set_task_factory(self.tasks)

    async def obey(self, retire: Callable[[], None], stop: Callable[[], None]) -> None:
        """Do what the keeper says, until it is gone: then stop. For ever.

        Args:
            retire: claims no more, and ends when all jobs have ended.
            stop: claims no more, drains, and ends.
        """
        reader, writer = await asyncio.open_connection(sock=self._socket)
        try:
            while line := await reader.readline():
                if line == b"retire\n":
                    retire()
            stop()
            await asyncio.Event().wait()
        finally:
            writer.close()

    def report_quarantined(self, queue: str) -> None:
        """Tell the keeper that jobs of a queue wait to run alone: it starts a process for them."""
        if queue in self._queues:
            self._manifest.note_quarantined(self._queues.index(queue))

    def note_interpreter(self) -> None:
        """Say that the interpreter runs. Called in a thread of its own, which a blocked event loop does not stop."""
        self._header[Field.INTERPRETER_NS] = time.monotonic_ns()

    def board(self, attempts: Sequence[Attempt]) -> None:
        """Write down attempts before their code runs."""
        manifest = self._manifest
        next_seq = manifest.next_seq
        for attempt in attempts:
            attempt.seq = next_seq()
        if not manifest.append([_entry(attempt) for attempt in attempts]):
            manifest.snapshot([_entry(attempt) for attempt in (*self._aboard(), *attempts)])

    def trust(self, attempts: Iterable[Attempt], trusted_until: Callable[[float], float]) -> None:
        """Trust the leases that the keeper has renewed while this worker could not.

        Args:
            attempts: what this worker holds leases of.
            trusted_until: returns until when a lease holds that was requested at a time, in monotonic seconds.
        """
        sent, upto, lost = self._manifest.renewed()
        until = trusted_until(sent)
        for attempt in attempts:
            if 0 < attempt.seq <= upto and attempt.seq not in lost:
                attempt.trusted_until = max(attempt.trusted_until, until)

    def close(self) -> None:
        """Tell the keeper that this process ends in good order."""
        if self._beating is not None:
            self._beating.cancel()
        faulthandler.cancel_dump_traceback_later()
        self._manifest.snapshot([])
        self._manifest.set_status(Status.CLOSED)

    def _beat(self) -> None:
        self._manifest.snapshot([_entry(attempt) for attempt in self._aboard()])
        self._header[Field.FINISHED] = self._finished()
        with suppress(RuntimeError):  # the file was closed under us: the process is ending
            faulthandler.dump_traceback_later(BLOCKED_S, file=self._traces)
        self._beating = asyncio.get_running_loop().call_later(self._interval_s, self._beat)


def _entry(attempt: Attempt) -> Entry:
    job = attempt.job
    return Entry(
        attempt.seq,
        entry_lease(attempt.lease),
        attempt.number,
        job.is_recorded,
        job.name,
        attempt.timeout_s,
        job.in_thread,
        max(0, job.retries - attempt.failures),
    )
