"""A file in shared memory in which every job writes how often it ran, and when it was submitted, started and finished.

The driver creates the file; workers and producers of every system map it. It is imported in the environment of each
peer, so it needs only the standard library. Times are CLOCK_MONOTONIC in nanoseconds, which all processes of a machine
share.

A count is incremented without a lock: a job that ran twice is missed only if two processes increment it in the same
microsecond.
"""

import fcntl
import mmap
import os
import struct
import threading
import time
from pathlib import Path

WORDS = 4
"""Words of eight bytes per slot: runs, submitted, started, finished."""

PROCESSES = 256
"""Maximum number of processes that can register."""

HEADER_WORDS = PROCESSES * 2
"""The header before the slots: pid and first start of each process that ran a job."""

VARIABLE = "BENCH_SLOTS"
"""The environment variable with the path of the file."""


class Slots:
    """The slots, for workers and producers, which write them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._lock = threading.Lock()
        self._registered = False
        os.register_at_fork(after_in_child=self._reset_after_fork)

    def submit(self, slot: int) -> None:
        """Record that the job is about to be submitted."""
        self._words[HEADER_WORDS + slot * WORDS + 1] = time.monotonic_ns()

    def begin(self, slot: int) -> None:
        """Record the start of the job; called in its first line."""
        now_ns = time.monotonic_ns()
        at = HEADER_WORDS + slot * WORDS
        words = self._words
        runs = words[at] + 1
        words[at] = runs
        if runs == 1:
            words[at + 2] = now_ns
        if not self._registered:
            self._register(now_ns)

    def end(self, slot: int) -> None:
        """Record the end of the job; called in its last line."""
        self._words[HEADER_WORDS + slot * WORDS + 3] = time.monotonic_ns()

    def has_run(self, slot: int) -> bool:
        """Return whether the job has started."""
        return self._words[HEADER_WORDS + slot * WORDS] > 0

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._registered = False

    def _register(self, now_ns: int) -> None:
        """Register this process, once, under a file lock, because several processes may register concurrently."""
        with self._lock:
            if self._registered:
                return
            with self._path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                entry = next(entry for entry in range(PROCESSES) if self._words[entry * 2] == 0)
                self._words[entry * 2] = os.getpid()
                self._words[entry * 2 + 1] = now_ns
            self._registered = True


def create(path: Path, count: int) -> None:
    """Create an empty file for `count` slots.

    Its pages are allocated now, so that the first jobs do not pay for them.
    """
    path.write_bytes(bytes((HEADER_WORDS + count * WORDS) * struct.calcsize("Q")))


def open_slots() -> Slots:
    """Open the slots of this run."""
    return Slots(Path(os.environ[VARIABLE]))
