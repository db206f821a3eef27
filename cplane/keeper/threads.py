"""Which thread of a blocked process holds its interpreter, as far as the system shows it (Linux).

Threads that want the interpreter's lock wait on a futex. Who holds it runs, or sleeps elsewhere.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path


class ThreadState(IntEnum):
    """What a thread does."""

    UNKNOWN = 0
    WAITS = 1
    """It waits on a futex: for a lock, which may be the interpreter's."""
    SLEEPS = 2
    """It waits for something else."""
    RUNS = 3


def thread_states(pid: int, threads: Iterable[int]) -> dict[int, ThreadState]:
    """Return what threads of a process do.

    Args:
        pid: the process.
        threads: their ids in the system; that of the main thread is `pid`.
    """
    return {thread: _state(Path(f"/proc/{pid}/task/{thread}")) for thread in threads}


def _state(folder: Path) -> ThreadState:
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        waits_in = (folder / "wchan").read_text()
    except (OSError, IndexError):
        return ThreadState.UNKNOWN
    if state == "R":
        return ThreadState.RUNS
    if waits_in in {"", "0"}:  # this system does not tell
        return ThreadState.UNKNOWN
    return ThreadState.WAITS if waits_in.startswith("futex") else ThreadState.SLEEPS


def holder(before: Mapping[int, ThreadState], now: Mapping[int, ThreadState]) -> int:
    """Return the only thread that can hold the interpreter; 0 if several can, or the system does not tell.

    Args:
        before: what the threads did when they were looked at before.
        now: what they do now.
    """
    lasting = {thread: state for thread, state in now.items() if before.get(thread) is state}
    for states in ({ThreadState.RUNS}, {ThreadState.RUNS, ThreadState.SLEEPS}):
        found = [thread for thread, state in lasting.items() if state in states]
        if len(found) == 1:
            return found[0]
    return 0
