"""The manifest: which attempts a worker process has aboard, in memory that it shares with its keeper.

The worker writes it and never waits for it. The keeper reads it while the worker is blocked, and after its death. An
entry is written before the attempt's code runs. Entries of attempts that have ended stay for up to a second: leases are
fenced, so whatever is done with such an entry changes nothing.

The file has a header of 64-bit numbers and two buffers. Attempts that start are appended to the active buffer; twice a
second the attempts that still run are written to the other one, which then becomes the active one.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import count
from threading import get_ident, get_native_id
from typing import NamedTuple

import msgspec

from cplane.redis.messages import Lease

HEADER_BYTES = 8192
BUFFER_BYTES = 8 * 2**20
"""Of each buffer. Only what is used of it takes memory: 27,000 jobs per second write 2 MB between two snapshots."""

MAX_PAYLOAD_BYTES = 1000
"""A longer payload is left out of an entry: releasing a lease does not need it."""

MAX_LOST = 256
"""Attempts whose lost leases the keeper can name."""

LOST_AT = 64
"""Index of the first lost attempt in the header."""

THREADS_AT = 512
"""Index of the first job thread in the header: three numbers for each."""

MAX_THREADS = (HEADER_BYTES // 8 - THREADS_AT) // 3
"""Job threads that the keeper can tell apart."""

FRAME_BYTES = 4
"""Each batch of entries is preceded by its length."""


class Status(IntEnum):
    """How far a worker process is."""

    STARTING = 0
    SERVING = 1
    """It claims jobs, or drains."""
    CLOSED = 2
    """It has ended in good order, and nothing is aboard."""


class Field(IntEnum):
    """Indexes of the numbers in the header."""

    STATUS = 0
    BEAT_NS = 1
    """When the event loop turned last, in ns of the monotonic clock, which all processes share."""
    STEP = 2
    """The sequence number of the attempt whose code runs on the event loop right now; 0: none."""
    BUFFER = 3
    """Index of the active buffer."""
    GENERATION = 4
    """Number of times that the active buffer was changed."""
    LENGTHS = 5
    """And the one after it: bytes in use of each buffer."""
    FINISHED = 7
    """Jobs that have ended in this process."""
    RENEWED_NS = 8
    """When the keeper sent its last renewal; written by the keeper."""
    RENEWED_TO = 9
    """The highest sequence number in it."""
    LOST = 10
    """How many attempts of it had lost their leases; their numbers are from LOST_AT on."""
    QUARANTINED = 11
    """Which of the worker's queues have jobs that wait to run alone: bit N for the Nth queue of its hello."""
    INTERPRETER_NS = 12
    """When a thread beside the event loop ran Python last, in ns of the monotonic clock."""


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One attempt aboard."""

    seq: int
    """Its number in this process, from 1."""
    lease: Lease
    attempt: int
    """The number of the attempt."""
    recorded: bool
    """Whether it has a record in Postgres."""
    job: str
    timeout_s: float
    in_thread: bool
    """Whether its code runs in a thread, not on the event loop."""
    retries_left: int = 0
    """Retries of its own failures that it has left."""


class JobThread(NamedTuple):
    """A thread that runs a plain job."""

    native_id: int
    """Its id in the system."""
    ident: int
    """Its id in Python, which tracebacks show."""
    seq: int
    """The attempt that it runs."""


class ThreadTable:
    """The worker's side of the table of job threads.

    Args:
        header: where it is.
    """

    def __init__(self, header: "memoryview[int]") -> None:
        self._header = header

    def enter(self, number: int) -> None:
        """Write down the calling thread.

        Args:
            number: its number, from 1. Those after MAX_THREADS are left out.
        """
        if number <= MAX_THREADS:
            at = THREADS_AT + 3 * (number - 1)
            self._header[at] = get_native_id()
            self._header[at + 1] = get_ident()

    def note(self, number: int, seq: int) -> None:
        """Write down which attempt a thread runs; 0: none."""
        if number <= MAX_THREADS:
            self._header[THREADS_AT + 3 * number - 1] = seq


class SharedMemory:
    """The file that a worker process and its keeper map."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, HEADER_BYTES + 2 * BUFFER_BYTES)
        self._view = memoryview(self._map)
        self.header = self._view[:HEADER_BYTES].cast("Q")
        self.buffers = [
            self._view[start : start + BUFFER_BYTES] for start in (HEADER_BYTES, HEADER_BYTES + BUFFER_BYTES)
        ]

    @classmethod
    def create(cls) -> "SharedMemory":
        """Create an empty one, without a name in any folder."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("cplane-manifest", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, HEADER_BYTES + 2 * BUFFER_BYTES)
        return cls(fd)

    def close(self) -> None:
        """Unmap and close it."""
        for view in (self.header, *self.buffers, self._view):
            view.release()
        self._map.close()
        os.close(self.fd)


class Manifest:
    """The worker's side.

    Args:
        memory: what it shares with its keeper.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self.header = memory.header
        self._sequence = count(1)
        self._encode = msgspec.msgpack.Encoder().encode

    def next_seq(self) -> int:
        """Return the sequence number of the next attempt."""
        return next(self._sequence)

    def set_status(self, status: Status) -> None:
        """Write how far the process is."""
        self.header[Field.STATUS] = status

    def note_quarantined(self, index: int) -> None:
        """Tell the keeper that jobs of a queue wait to run alone.

        Args:
            index: which of the queues in the hello. Those after the 64th are left to other workers.
        """
        if index < 64:
            self.header[Field.QUARANTINED] |= 1 << index

    def append(self, entries: Sequence[Entry]) -> bool:
        """Write entries behind the others. Returns False if there was no room: `snapshot` makes some."""
        buffer = self.header[Field.BUFFER]
        length = self.header[Field.LENGTHS + buffer]
        length_after = self._write(buffer, length, entries)
        if length_after is None:
            return False
        self.header[Field.LENGTHS + buffer] = length_after  # last: the entries are there
        return True

    def snapshot(self, entries: Sequence[Entry]) -> None:
        """Replace all entries, and note that the event loop turned."""
        header = self.header
        buffer = 1 - header[Field.BUFFER]
        header[Field.LENGTHS + buffer] = self._write(buffer, 0, entries) or 0
        header[Field.BUFFER] = buffer
        header[Field.GENERATION] += 1
        header[Field.BEAT_NS] = time.monotonic_ns()

    def _write(self, buffer: int, at: int, entries: Sequence[Entry]) -> int | None:
        """Write a batch at a position. Returns the position behind it, or None if it does not fit."""
        encoded = self._encode(entries)
        end = at + FRAME_BYTES + len(encoded)
        if end > BUFFER_BYTES:
            return None
        view = self._memory.buffers[buffer]
        view[at : at + FRAME_BYTES] = len(encoded).to_bytes(FRAME_BYTES, "little")
        view[at + FRAME_BYTES : end] = encoded
        return end

    def renewed(self) -> tuple[float, int, frozenset[int]]:
        """Return the keeper's last renewal: when it was sent (monotonic seconds; 0: never), up to which number, and which were lost."""
        header = self.header
        lost = min(header[Field.LOST], MAX_LOST)
        return (
            header[Field.RENEWED_NS] / 1e9,
            header[Field.RENEWED_TO],
            frozenset(header[LOST_AT : LOST_AT + lost]) if lost else frozenset(),
        )


class ManifestReader:
    """The keeper's side."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._header = memory.header
        self._decode = msgspec.msgpack.Decoder(list[Entry]).decode

    @property
    def status(self) -> Status:
        """How far the process is, or was when it died."""
        return Status(self._header[Field.STATUS])

    @property
    def beat(self) -> float:
        """When its event loop turned last, in monotonic seconds; 0: it has not yet."""
        return self._header[Field.BEAT_NS] / 1e9

    @property
    def interpreter_beat(self) -> float:
        """When a thread beside its event loop ran Python last, in monotonic seconds; 0: none has yet."""
        return self._header[Field.INTERPRETER_NS] / 1e9

    @property
    def step(self) -> int:
        """The sequence number of the attempt whose code runs on its event loop; 0: none."""
        return self._header[Field.STEP]

    @property
    def finished(self) -> int:
        """Jobs that have ended in it."""
        return self._header[Field.FINISHED]

    def threads(self) -> dict[int, JobThread]:
        """Return the threads that run plain jobs, by their ids in the system."""
        numbers = list(self._header[THREADS_AT : THREADS_AT + 3 * MAX_THREADS])
        found = [JobThread(*each) for each in zip(*[iter(numbers)] * 3, strict=True)]
        return {thread.native_id: thread for thread in found if thread.seq}

    def take_quarantined(self) -> int:
        """Return which of its queues have jobs that wait to run alone, as bits, and clear them."""
        bits, self._header[Field.QUARANTINED] = self._header[Field.QUARANTINED], 0
        return bits

    def entries(self) -> list[Entry]:
        """Return what is aboard, in the order in which it started. Attempts that have just ended may be among them."""
        while True:
            generation, buffer = self._header[Field.GENERATION], self._header[Field.BUFFER]
            data = bytes(self._memory.buffers[buffer][: self._header[Field.LENGTHS + buffer]])
            if self._header[Field.GENERATION] == generation:
                return list({entry.seq: entry for batch in _frames(data) for entry in self._decode(batch)}.values())

    def note_renewal(self, sent: float, upto: int, lost: Iterable[int]) -> None:
        """Tell the worker which leases were renewed.

        Args:
            sent: when the renewal was sent, in monotonic seconds.
            upto: the highest sequence number in it.
            lost: numbers of attempts in it that no longer own their leases.
        """
        header = self._header
        numbers = list(lost)[:MAX_LOST]
        for index, seq in enumerate(numbers):
            header[LOST_AT + index] = seq
        header[Field.LOST] = len(numbers)
        header[Field.RENEWED_TO] = upto
        header[Field.RENEWED_NS] = int(sent * 1e9)


def entry_lease(lease: Lease) -> Lease:
    """Return the lease as an entry has it: without a long payload."""
    return lease if len(lease.payload) <= MAX_PAYLOAD_BYTES else msgspec.structs.replace(lease, payload=b"")


def _frames(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + FRAME_BYTES + int.from_bytes(data[at : at + FRAME_BYTES], "little")
        yield data[at + FRAME_BYTES : end]
        at = end
