"""The fork server of a worker, and the processes that it forks. `fork_server.py` starts it.

The server imports the jobs and then forks a process whenever the worker asks, which takes milliseconds. It has one thread, and starts from a
fresh interpreter: its children inherit no lock, no event loop and no connection of the worker. It kills them when the worker says so, and
tells how each ended. They talk over a stream socket, in lines:

    start           with a socket, for the new process; the reply is `started PID`, or `failed REASON`
    kill PID        kill this process and its whole group; no reply
    ended PID STATUS    sent when a process has ended, with its status as `os.waitpid` returns it
    ready THREADS   sent when the jobs are imported, with the number of its threads; or `failed REASON`, and the server ends
"""

import ctypes
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from cplane.jobs.registry import load_jobs
from cplane.runtime.forks import detach_forked_children

PR_SET_PDEATHSIG = 1
MAX_LINES_BYTES = 65_536
MAX_SOCKETS = 64

OOM_SCORE_ADD = 300
"""Added to the score of a child: when the machine runs out of memory, the kernel kills a job's process before its worker."""


class ForkServer:
    """Forks processes, kills them, and reports their ends.

    Args:
        control: the socket to the worker.
        worker: the worker's process id.
    """

    def __init__(self, control: socket.socket, worker: int) -> None:
        self._control = control
        self._worker = worker
        self._children: set[int] = set()
        self._sockets: deque[int] = deque()
        self._unread = b""
        self._signals, wakeup = os.pipe()
        for end in (self._signals, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        self._wakeup = wakeup

    def run(self) -> None:
        """Serve until the worker closes its end, or dies; then kill what still runs."""
        self._send(f"ready {_thread_count()}")
        while True:
            readable, _, _ = select.select([self._control.fileno(), self._signals], [], [])
            if self._signals in readable:
                with suppress(BlockingIOError):
                    os.read(self._signals, 4096)
                self._reap()
            if os.getppid() != self._worker:  # a child that it forked may hold the connection open
                break
            if self._control.fileno() in readable and not self._serve():
                break
        for pid in self._children:
            _kill_group(pid)

    def _serve(self) -> bool:
        """Obey the lines that have arrived. Returns False at the end of the connection."""
        try:
            data, sockets, _, _ = socket.recv_fds(self._control, MAX_LINES_BYTES, MAX_SOCKETS)
        except OSError:
            return False
        self._sockets += sockets
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.decode().partition(" ")
            if verb == "start":
                self._start(self._sockets.popleft())
            elif verb == "kill" and (pid := int(argument)) in self._children:
                _kill_group(pid)
        return bool(data)

    def _start(self, connection: int) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(connection)
            self._send(f"failed {error}")
            return
        if pid == 0:
            self._run_child(connection, server)
        os.close(connection)
        self._children.add(pid)
        self._send(f"started {pid}")

    def _run_child(self, connection: int, server: int) -> None:
        """In the child: run calls until the worker closes the connection. It never returns."""
        try:
            _prepare_child(server)
            self._control.close()
            os.close(self._signals)
            os.close(self._wakeup)
            for left in self._sockets:
                os.close(left)
            from cplane.worker.child_calls import serve  # noqa: PLC0415  imported by the server already

            with socket.socket(fileno=connection) as opened:
                serve(opened)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # nothing of the server runs in its child

    def _reap(self) -> None:
        """Collect processes that have ended, with what is left of their groups, and report them."""
        for pid in list(self._children):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                continue
            _kill_group(pid)  # the id is taken as long as the process is not collected
            _, status = os.waitpid(pid, 0)
            self._children.discard(pid)
            self._send(f"ended {pid} {status}")

    def _send(self, line: str) -> None:
        with suppress(OSError):  # the worker is gone; its end is read next
            self._control.sendall(line.encode(errors="replace").replace(b"\n", b" ") + b"\n")


def main(control: socket.socket, imports: Sequence[str]) -> None:
    """Import the jobs and serve.

    Args:
        control: the socket to the worker.
        imports: the modules that define jobs.
    """
    signal.signal(signal.SIGTERM, _ignore)  # the worker decides when its processes end: it drains first
    signal.signal(signal.SIGINT, _ignore)
    worker = os.getppid()
    _die_with(worker, signal.SIGTERM)
    detach_forked_children()
    try:
        import_module("cplane.worker.child_calls")  # for the children
        load_jobs(imports, built_ins=False)
    except BaseException as error:
        control.sendall(f"failed {type(error).__name__}: {error}".encode(errors="replace").replace(b"\n", b" ") + b"\n")
        raise
    gc.collect()
    gc.freeze()  # collecting in a child would copy the pages that it shares with the server
    ForkServer(control, worker).run()


def _prepare_child(server: int) -> None:
    os.setsid()  # a new process group, to be killed with all that it starts
    _die_with(server, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _ignore)  # as in the server: a stop of the unit signals every process of it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    with suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + OOM_SCORE_ADD)))


def _thread_count() -> int:
    """Return how many threads this process has, those of C libraries included; 1 where the system hides it."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208  a path would be made for each
    return 1


def _die_with(parent: int, death_signal: signal.Signals) -> None:
    """Have the kernel signal this process when its parent dies. Elsewhere than on Linux, the end of the connection must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != parent:
            os._exit(1)


def _kill_group(pid: int) -> None:
    """Kill a process and its group; itself alone if it has not made its group yet."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ignore(_signum: int, _frame: object) -> None:
    """Do nothing. Unlike SIG_IGN, programs that the process executes do not inherit it."""
