"""Reads the slots: waits until jobs are done, counts lost and doubled ones, and computes rates and latencies."""

import asyncio
import os
import statistics
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from benchmarks.kit.slots import HEADER_WORDS, PROCESSES, WORDS, create

MEMORY = Path("/dev/shm")  # noqa: S108  shared memory is needed
PREFIX = "bench-slots-"
POLL_INTERVAL_S = 0.05
STALL_TIMEOUT_S = 15.0
"""If no job ends for this long, the missing jobs count as lost."""

START_TIMEOUT_S = 90.0
"""Maximum time until the first job runs: workers start slowly on a busy machine."""

EXTRA_RUN_WAIT_S = 0.3
"""How long to wait after the last job for runs that should not happen."""


@dataclass(frozen=True, slots=True)
class Count:
    """The number of jobs that were lost or ran more than once."""

    lost: int
    doubled: int


class Tally:
    """A file of slots, created empty and removed by `close`."""

    def __init__(self, count: int) -> None:
        handle, name = mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)
        self.path = Path(name)
        self.count = count
        create(self.path, count)
        self._file = open(handle, "rb", buffering=0, closefd=True)  # noqa: PTH123, SIM115  close() closes it

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    async def wait(self, count: int, *, first: int = 0, deadline_s: float = 300.0) -> None:
        """Wait until `count` jobs from slot `first` on have ended, or no job makes progress any more."""
        at, end = first, first + count
        moved = began = time.monotonic()
        while at < end:
            reached = self._advance(at, end)
            now = time.monotonic()
            if reached > at:
                at, moved = reached, now
            elif now - moved > STALL_TIMEOUT_S and not self._makes_progress(at, end, now - began):
                return
            if now - began > deadline_s:
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    async def count_errors(self, count: int, *, first: int = 0) -> Count:
        """Wait a moment for extra runs, then return how many jobs never ran and how many ran more than once."""
        await asyncio.sleep(EXTRA_RUN_WAIT_S)
        runs = [slot[0] for slot in self._slots(first, count)]
        return Count(lost=runs.count(0), doubled=sum(1 for times in runs if times > 1))

    def per_s(self, count: int, *, first: int = 0) -> float:
        """Return jobs per second, from the time at which every process had run a job to the last end.

        The whole run counts if that window has less than half of the jobs.
        """
        ends = sorted(slot[3] for slot in self._slots(first, count) if slot[3])
        if len(ends) < 2:
            return 0.0
        together = [end for end in ends if end >= max(self._first_starts(), default=0)]
        window = together if len(together) >= len(ends) / 2 else ends
        return (len(window) - 1) / max((window[-1] - window[0]) / 1e9, 1e-9)

    def per_s_between(self, skip: int, count: int) -> float:
        """Return jobs per second over `count` jobs in order of their ends, after the first `skip`."""
        ends = sorted(slot[3] for slot in self._slots(0, self.count) if slot[3])[skip : skip + count]
        return (len(ends) - 1) / max((ends[-1] - ends[0]) / 1e9, 1e-9) if len(ends) > 1 else 0.0

    def waits_ms(self, count: int, *, first: int = 0) -> list[float]:
        """Return the milliseconds from just before each submission to the first line of the job, sorted."""
        slots = self._slots(first, count)
        return sorted((slot[2] - slot[1]) / 1e6 for slot in slots if slot[1] and slot[2])

    def _advance(self, at: int, end: int) -> int:
        """Return the first slot from `at` on whose job has not ended."""
        while at < end:
            step = min(4096, end - at)
            for slot in self._slots(at, step):
                if not slot[3]:
                    return at
                at += 1
        return at

    def _makes_progress(self, at: int, end: int, waited_s: float) -> bool:
        """Return whether a later job has ended recently or may still start: one lost job does not end the wait."""
        if not self._first_starts():
            return waited_s < START_TIMEOUT_S
        newest = max((slot[3] for slot in self._slots(at, end - at)), default=0)
        return time.monotonic_ns() - newest < STALL_TIMEOUT_S * 1e9

    def _first_starts(self) -> list[int]:
        words = struct.unpack(f"{HEADER_WORDS}Q", self._read(0, HEADER_WORDS))
        return [words[entry * 2 + 1] for entry in range(PROCESSES) if words[entry * 2]]

    def _slots(self, first: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        data = self._read(HEADER_WORDS + first * WORDS, count * WORDS)
        yield from struct.iter_unpack("4Q", data)

    def _read(self, word: int, words: int) -> bytes:
        self._file.seek(word * 8)
        return self._file.read(words * 8)


def percentile(ordered: list[float], part: float) -> float:
    """Return the value below which the share `part` of the sorted values lies."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def median(values: list[float]) -> float:
    """Return the median; NaN for no values."""
    return statistics.median(values) if values else float("nan")
