"""A file in shared memory in which every job leaves a mark: how often it ran, and when it was submitted, started and finished.

The driver makes the file; workers and producers of every system map it. It is imported in the environment of each peer, so it
needs the standard library alone. Times are CLOCK_MONOTONIC in nanoseconds, which all processes of a machine share.

A count is raised without a lock: a job that ran twice would be missed only if two processes raised it in the same microsecond.
"""

import fcntl
import mmap
import os
import struct
import threading
import time
from pathlib import Path

WORDS = 4
"""Words of eight bytes a slot has: runs, submitted, started, finished."""

PROCESSES = 256
"""How many processes can sign in."""

HEADER_WORDS = PROCESSES * 2
"""Before the slots: pid and first start of each process that ran a job."""

VARIABLE = "BENCH_SLOTS"
"""The environment variable that names the file."""


class Slots:
    """The marks, as a worker or a producer writes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._lock = threading.Lock()
        self._signed_in = False
        os.register_at_fork(after_in_child=self._forget)

    def submit(self, slot: int) -> None:
        """The job is about to be submitted."""
        self._words[HEADER_WORDS + slot * WORDS + 1] = time.monotonic_ns()

    def begin(self, slot: int) -> None:
        """The first line of the job."""
        now_ns = time.monotonic_ns()
        at = HEADER_WORDS + slot * WORDS
        words = self._words
        runs = words[at] + 1
        words[at] = runs
        if runs == 1:
            words[at + 2] = now_ns
        if not self._signed_in:
            self._sign_in(now_ns)

    def end(self, slot: int) -> None:
        """The last line of the job."""
        self._words[HEADER_WORDS + slot * WORDS + 3] = time.monotonic_ns()

    def has_run(self, slot: int) -> bool:
        """Whether the job has begun."""
        return self._words[HEADER_WORDS + slot * WORDS] > 0

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._signed_in = False

    def _sign_in(self, now_ns: int) -> None:
        """Once a process: under a lock of the file, for several processes may come at once."""
        with self._lock:
            if self._signed_in:
                return
            with self._path.open("r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                entry = next(entry for entry in range(PROCESSES) if self._words[entry * 2] == 0)
                self._words[entry * 2] = os.getpid()
                self._words[entry * 2 + 1] = now_ns
            self._signed_in = True


def create(path: Path, count: int) -> None:
    """Make an empty file for `count` slots, its pages already there: the first jobs shall not pay for them."""
    path.write_bytes(bytes((HEADER_WORDS + count * WORDS) * struct.calcsize("Q")))


def open_slots() -> Slots:
    """The slots of this run."""
    return Slots(Path(os.environ[VARIABLE]))
