"""One worker process: started, watched, and cleaned up after."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress

import msgspec

from cplane.errors import InfrastructureError
from cplane.keeper.blame import Death, suspect
from cplane.keeper.channel import ALONE_VARIABLE, VARIABLE, Hello, Limits
from cplane.keeper.log import log
from cplane.keeper.manifest import Entry, ManifestReader, SharedMemory, Status
from cplane.keeper.memory import resident_mb
from cplane.keeper.threads import ThreadState, holder, thread_states
from cplane.keeper.traces import where_blocked

CHECK_INTERVAL_S = 0.5
"""How often a process is looked at."""

LATE_S = 1.5
"""A loop that has not turned for this long is blocked: three beats."""

KILL_GRACE_S = 5.0
"""How long after its own timeout an attempt may hold the event loop."""

STOP_GRACE_S = 9.0
"""How long after the drain a process may take to end: jobs that are stopped get 5 s for their `finally`."""

RESCUE_RETRIES = 10
"""Attempts to requeue what was aboard, a second apart; then the leases end by themselves."""


class WorkerProcess:
    """Runs one worker process until it ends, and says how it ended.

    Args:
        command: the program and its arguments.
        limits: when it is replaced.
        on_quarantined: is called with the name of a queue of which jobs wait to run alone.
        alone: the queue whose quarantine it serves, until nothing in it is due; None: it serves its own queues.
    """

    def __init__(
        self,
        command: Sequence[str],
        limits: Limits,
        on_quarantined: Callable[[str], None],
        *,
        alone: str | None = None,
    ) -> None:
        self._command = command
        self._limits = limits
        self._on_quarantined = on_quarantined
        self._variables = {} if alone is None else {ALONE_VARIABLE: alone}
        self._process: asyncio.subprocess.Process | None = None
        self._hello: Hello | None = None
        self._aboard: list[Entry] = []
        self._stopping = False
        self._kill_at = float("inf")
        self._killed_for = ""
        self._timed_out = False
        self._blamed = 0
        self._blocked_since = 0.0
        self._states: dict[int, ThreadState] = {}
        self._holder = 0
        self._reported = False
        self._renew_at = 0.0
        self._retiring = False
        self.retired = asyncio.Event()
        """Set when it claims no more and its replacement may start."""
        self.is_misfit = False
        """Whether no process of its kind can stay within the limit of memory."""
        self.served = False
        """Whether it has ever claimed jobs."""
        self.clean = False
        """Whether it ended in good order."""

    async def run(self) -> Death:
        """Start it, and watch it until it ends. `rescue` must follow."""
        async with AsyncExitStack() as stack:
            self._memory = SharedMemory.create()
            stack.callback(self._memory.close)
            self._manifest = ManifestReader(self._memory)
            self._traces = os.memfd_create("cplane-traces") if hasattr(os, "memfd_create") else os.open(os.devnull, 2)
            stack.callback(os.close, self._traces)
            ours, theirs = socket.socketpair()
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            stack.callback(self._writer.close)
            fds = (self._memory.fd, self._traces, theirs.fileno())
            self.started = time.monotonic()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    env={**os.environ, **self._variables, VARIABLE: ",".join(map(str, fds))},
                    pass_fds=fds,
                    start_new_session=True,
                )
            finally:
                theirs.close()
            if self._stopping:
                self._process.terminate()
            code = await self._watch(self._process)
            death = Death(
                code,
                self._manifest.step,
                blamed=self._blamed,
                killed_for=self._killed_for,
                timed_out=self._timed_out,
                stopping=self._stopping,
            )
            self._kill_group()
            self.served = self._hello is not None
            self.clean = self._manifest.status is Status.CLOSED
            self._aboard = [] if self.clean else self._manifest.entries()
            return death

    @property
    def pid(self) -> int:
        """The id of the process."""
        return 0 if self._process is None else self._process.pid

    def stop(self, signum: signal.Signals) -> None:
        """Pass on the signal to stop. A process that has not ended after its drain is killed."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signum)
        drain_s = self._hello.drain_s if self._hello is not None else 0.0
        self._kill_at = min(self._kill_at, time.monotonic() + (2.0 if self._stopping else drain_s + STOP_GRACE_S))
        self._stopping = True

    def retire(self, why: str) -> None:
        """Ask it to claim no more and to end when all of its jobs have ended."""
        if self._retiring:
            return
        self._retiring = True
        log("worker_retires", level="info", pid=self.pid, reason=why)
        self._writer.write(b"retire\n")
        self.retired.set()

    async def _watch(self, process: asyncio.subprocess.Process) -> int:
        """Look at it until it has ended. Returns its exit code. Nothing that is found in its memory ends the keeper."""
        hello = asyncio.create_task(self._read_hello(), name="read a worker's hello")
        exited = asyncio.create_task(process.wait(), name="wait for a worker process")
        try:
            while not exited.done():
                await asyncio.wait([exited], timeout=CHECK_INTERVAL_S)
                if exited.done():
                    break
                try:
                    await self._check()
                except Exception as error:
                    log("worker_not_checked", level="error", pid=self.pid, reason=repr(error))
            return exited.result()
        finally:
            hello.cancel()
            exited.cancel()

    async def _read_hello(self) -> None:
        if line := await self._reader.readline():
            self._hello = msgspec.json.decode(line, type=Hello)

    async def _check(self) -> None:
        now = time.monotonic()
        if now >= self._kill_at:
            self._kill(f"it did not end within {STOP_GRACE_S:g} s after its drain")
        if self._hello is None or self._manifest.status is not Status.SERVING:
            return
        late_s = min(LATE_S, self._hello.servers.lease_s / 4)
        if now - self._manifest.beat < late_s:
            self._blocked_since = 0.0
            self._states = {}
            self._check_limits(self._hello)
            self._check_quarantines(self._hello)
            return
        entries = self._manifest.entries()
        if not self._blocked_since:
            self._blocked_since, self._renew_at = self._manifest.beat, now
            self._holder, self._reported = 0, False
        self._look_at_threads()
        if not self._reported and now - self._blocked_since >= late_s + CHECK_INTERVAL_S:
            self._reported = True
            self._report(entries)
        if now >= self._renew_at:
            self._renew_at = now + self._hello.servers.lease_s / 3
            await self._renew(self._hello, entries)
        self._kill_if_stuck(entries, now)

    def _report(self, entries: Sequence[Entry]) -> None:
        blamed = self._suspect(entries)
        job = next((f"{entry.job} {entry.lease.id}" for entry in entries if entry.seq == blamed), None)
        log("worker_blocked", pid=self.pid, blamed=job, aboard=len(entries), hint="its leases are renewed meanwhile")

    def _look_at_threads(self) -> None:
        """Find out which of its threads holds the interpreter, if one does. That takes two looks."""
        before, self._states = self._states, thread_states(self.pid, [self.pid, *self._manifest.threads()])
        if time.monotonic() - self._manifest.interpreter_beat < LATE_S:
            self._holder = self.pid  # other threads run: the event loop is blocked by its own code
        elif found := holder(before, self._states):
            self._holder = found
        elif self._holder == self.pid:
            self._holder = 0

    def _suspect(self, entries: Sequence[Entry]) -> int:
        """Return the attempt that blocks it.

        It is the one in the thread that holds the interpreter, or whose code runs on the loop, or the only one in a thread.
        """
        thread = self._manifest.threads().get(self._holder)
        if thread is not None:
            return thread.seq
        step = self._manifest.step
        if self._holder == self.pid or any(entry.seq == step for entry in entries):
            return step
        return suspect(entries, 0)

    async def _renew(self, hello: Hello, entries: Sequence[Entry]) -> None:
        from cplane.keeper.rescue import open_rescue  # noqa: PLC0415  imported when it is needed first

        sent = time.monotonic()
        try:
            async with open_rescue(hello.servers) as rescue:
                owned = await rescue.renew(entries)
                await rescue.release_unboarded(hello, entries, dead=False)
        except InfrastructureError as error:
            log("leases_not_renewed", pid=self.pid, reason=str(error))
            self._renew_at = time.monotonic() + 1.0
            return
        except Exception as error:  # a statement that is refused would be refused again in a second
            log("leases_not_renewed", level="error", pid=self.pid, reason=repr(error))
            return
        lost = [entry.seq for entry in entries if entry.seq not in owned]
        self._manifest.note_renewal(sent, max((entry.seq for entry in entries), default=0), lost)

    def _kill_if_stuck(self, entries: Sequence[Entry], now: float) -> None:
        """Kill it when the attempt that blocks it is past its own timeout."""
        blamed = self._suspect(entries)
        timeouts = [entry.timeout_s for entry in entries if not blamed or entry.seq == blamed]
        timeout_s = max(timeouts, default=0.0)
        blocked_s = now - self._blocked_since
        if self._killed_for or blocked_s < timeout_s + KILL_GRACE_S:
            return
        self._blamed, self._timed_out = blamed, True
        entry = next((entry for entry in entries if entry.seq == blamed), None)
        what = "the interpreter" if entry is not None and entry.in_thread else "the event loop"
        ident = next((thread.ident for thread in self._manifest.threads().values() if thread.seq == blamed), 0)
        where = where_blocked(self._traces, in_thread=entry is not None and entry.in_thread, ident=ident)
        place = f" at {where}" if where else ""
        job = "a job" if entry is None else f"'{entry.job}'"
        self._kill(f"{job} held {what} for {blocked_s:.0f} s{place}, past its timeout of {timeout_s:g} s")

    def _kill(self, why: str) -> None:
        if self._killed_for:
            return
        self._killed_for = why
        if not self._blamed and self._blocked_since:
            self._blamed = self._suspect(self._manifest.entries())
        log("worker_killed", level="error", pid=self.pid, reason=why)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _check_limits(self, hello: Hello) -> None:
        if self._retiring or self._stopping:
            return
        if 0 < self._limits.memory_mb < hello.memory_mb:
            self.is_misfit = True
            used, limit = hello.memory_mb, self._limits.memory_mb
            self.retire(f"it uses {used} MiB before its first job, more than --max-memory-mb {limit}: give it more")
            return
        if self._limits.jobs and self._manifest.finished >= self._limits.jobs:
            self.retire(f"it has run {self._manifest.finished} jobs")
        elif self._limits.memory_mb and (used := resident_mb(self.pid)) > self._limits.memory_mb:
            self.retire(f"it uses {used} MiB of memory, more than {self._limits.memory_mb}")

    def _check_quarantines(self, hello: Hello) -> None:
        bits = self._manifest.take_quarantined()
        for index, queue in enumerate(hello.queues):
            if bits >> index & 1:
                self._on_quarantined(queue)

    def _kill_group(self) -> None:
        """Kill what it started and left behind."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def rescue(self, death: Death) -> None:
        """Requeue what was aboard of the process, however it ended. What cannot be done now comes back when its lease ends."""
        if self.clean or self._hello is None:
            return
        log("worker_died", level="error", pid=self.pid, process=death.described)
        for _ in range(RESCUE_RETRIES):
            try:
                await self._requeue(self._hello, death)
            except InfrastructureError as error:
                log("attempts_not_requeued", reason=str(error), hint="their leases end by themselves")
            except Exception as error:
                log("attempts_not_requeued", level="error", reason=repr(error), hint="their leases end by themselves")
                return
            else:
                return
            await asyncio.sleep(1.0)

    async def _requeue(self, hello: Hello, death: Death) -> None:
        from cplane.keeper.rescue import open_rescue  # noqa: PLC0415  imported when it is needed first

        async with open_rescue(hello.servers) as rescue:
            await rescue.requeue(self._aboard, death)
            await rescue.release_unboarded(hello, self._aboard, dead=True)
            for queue in await rescue.quarantined(hello.queues):
                self._on_quarantined(queue)
