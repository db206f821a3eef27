"""A process of the operating system, to be killed when it does not end by itself. Known on Linux only."""

import contextlib
import mmap
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger("cplane")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified by its id and start time: a later process of the same id is another one."""

    pid: int
    started: str
    """Its start time, in clock ticks since boot."""

    @classmethod
    def find(cls, pid: int) -> "Process | None":
        """Return the process that has this id now; None if there is none, or the system does not tell."""
        stat = _stat(pid)
        return None if stat is None else cls(pid, stat.started)

    @classmethod
    def find_by_variable(cls, variable: str) -> "Process | None":
        """Return our descendant that was started with a variable (NAME=value) in its environment. Blocks.

        Its own descendants inherit the variable; they are not returned.
        """
        found = {pid for pid in family(os.getpid()) if variable.encode() in _environment(pid)}
        first = next((pid for pid in found if (stat := _stat(pid)) is not None and stat.parent not in found), None)
        return None if first is None else cls.find(first)

    def child_of(self, ancestor: int) -> "Process | None":
        """Return the child of `ancestor` that this process descends from or is; None if it does not descend from it."""
        process: Process | None = self
        while process is not None and (stat := _stat(process.pid)) is not None:
            if stat.parent == ancestor:
                return process
            process = Process.find(stat.parent)
        return None

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in {"Z", "X"}

    @property
    def command(self) -> list[str]:
        """Its command line; empty when it has ended."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []

    def kill(self) -> None:
        """Kill the process if it still runs, with its whole process group unless that is ours."""
        if not self.alive:
            return
        log.warning("process_killed", pid=self.pid)
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(self.pid)
            if group == os.getpgrp():
                os.kill(self.pid, signal.SIGKILL)
            else:
                os.killpg(group, signal.SIGKILL)


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the memory that processes do not share, in bytes: resident minus shared; 0 where the system hides it."""
    total = 0
    for pid in pids:
        try:
            _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        except (OSError, ValueError):
            continue
        total += (int(resident) - int(shared)) * mmap.PAGESIZE
    return total


def family(ancestor: int) -> set[int]:
    """Return the ids of a process and all its descendants. Blocks."""
    parents = {pid: stat.parent for pid in _pids() if (stat := _stat(pid)) is not None}
    found, grown = {ancestor}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found


def _pids() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return []


def _environment(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):  # the system does not tell it of processes of other users
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    started: str


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(state=fields[0], parent=int(fields[1]), started=fields[19])
