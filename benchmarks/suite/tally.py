"""The driver's side of the slots: waits until jobs are done, counts lost and doubled ones, and computes rates and waits."""

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

MEMORY = Path("/dev/shm")  # noqa: S108  shared memory is what it is for
PREFIX = "bench-slots-"
LOOK_S = 0.05
STALL_S = 15.0
"""Without a new job for so long, what is missing counts as lost."""

START_S = 90.0
"""How long the first job may take: workers start slowly on a busy machine."""

SETTLE_S = 0.3
"""After the last job, how long a job may come that should not."""


@dataclass(frozen=True, slots=True)
class Count:
    """What became of the jobs of a run."""

    lost: int
    doubled: int


class Tally:
    """A file of slots, made empty; removed by `close`."""

    def __init__(self, count: int) -> None:
        handle, name = mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY)
        self.path = Path(name)
        self.count = count
        create(self.path, count)
        self._file = open(handle, "rb", buffering=0, closefd=True)  # noqa: PTH123, SIM115  it is closed by close()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    async def wait(self, count: int, *, first: int = 0, deadline_s: float = 300.0) -> None:
        """Until `count` jobs from slot `first` on have ended, or nothing moves any more."""
        at, end = first, first + count
        moved = began = time.monotonic()
        while at < end:
            reached = self._advance(at, end)
            now = time.monotonic()
            if reached > at:
                at, moved = reached, now
            elif now - moved > STALL_S and not self._moving(at, end, now - began):
                return
            if now - began > deadline_s:
                return
            await asyncio.sleep(LOOK_S)

    async def settle(self, count: int, *, first: int = 0) -> Count:
        """After a moment for what should not come: how many of the jobs never ran, and how many ran twice."""
        await asyncio.sleep(SETTLE_S)
        runs = [slot[0] for slot in self._slots(first, count)]
        return Count(lost=runs.count(0), doubled=sum(1 for times in runs if times > 1))

    def per_s(self, count: int, *, first: int = 0) -> float:
        """Jobs a second, from when every process ran its first job to the last end; over the whole run if that leaves less than half."""
        ends = sorted(slot[3] for slot in self._slots(first, count) if slot[3])
        if len(ends) < 2:
            return 0.0
        together = [end for end in ends if end >= max(self._first_starts(), default=0)]
        window = together if len(together) >= len(ends) / 2 else ends
        return (len(window) - 1) / max((window[-1] - window[0]) / 1e9, 1e-9)

    def per_s_between(self, skip: int, count: int) -> float:
        """Jobs a second over `count` ends in their order, after the first `skip`."""
        ends = sorted(slot[3] for slot in self._slots(0, self.count) if slot[3])[skip : skip + count]
        return (len(ends) - 1) / max((ends[-1] - ends[0]) / 1e9, 1e-9) if len(ends) > 1 else 0.0

    def waits_ms(self, count: int, *, first: int = 0) -> list[float]:
        """Milliseconds from just before the submit to the first line of the job, sorted."""
        slots = self._slots(first, count)
        return sorted((slot[2] - slot[1]) / 1e6 for slot in slots if slot[1] and slot[2])

    def _advance(self, at: int, end: int) -> int:
        """The first slot from `at` on whose job has not ended."""
        while at < end:
            step = min(4096, end - at)
            for slot in self._slots(at, step):
                if not slot[3]:
                    return at
                at += 1
        return at

    def _moving(self, at: int, end: int, waited_s: float) -> bool:
        """Whether a job somewhere behind has ended lately, or may still begin: one lost job does not end the wait for the others."""
        if not self._first_starts():
            return waited_s < START_S
        newest = max((slot[3] for slot in self._slots(at, end - at)), default=0)
        return time.monotonic_ns() - newest < STALL_S * 1e9

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
    """The value below which `part` of the sorted values lie."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def median(values: list[float]) -> float:
    """The middle of the rounds."""
    return statistics.median(values) if values else float("nan")
