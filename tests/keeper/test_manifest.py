"""The manifest: what one side writes the other reads, whenever the writer stops."""

from collections.abc import Iterator

import pytest

from cplane.jobs.states import Priority
from cplane.keeper.manifest import (
    BUFFER_BYTES,
    MAX_LOST,
    MAX_PAYLOAD_BYTES,
    Entry,
    Manifest,
    ManifestReader,
    SharedMemory,
    Status,
    entry_lease,
)
from cplane.redis.messages import Lease


def entry(seq: int, payload: bytes = b"p", **options: object) -> Entry:
    lease = Lease("default", Priority.HIGH, f"id-{seq}", payload, 2, b"1700000000000", "token", False, ("host:a",))
    given: dict[str, object] = {
        "attempt": 1, "recorded": True, "job": "j", "timeout_s": 3.0, "in_thread": False, "retries_left": 1
    } | options  # fmt: skip
    return Entry(seq, lease, **given)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory.create()
    yield memory
    memory.close()


@pytest.fixture
def manifest(memory: SharedMemory) -> Manifest:
    return Manifest(memory)


@pytest.fixture
def reader(memory: SharedMemory) -> ManifestReader:
    return ManifestReader(memory)


def test_a_new_one_is_empty(reader: ManifestReader) -> None:
    assert (reader.status, reader.beat, reader.step, reader.finished, reader.entries()) == (
        Status.STARTING, 0.0, 0, 0, []
    )  # fmt: skip


def test_entries_are_read_as_they_were_written(manifest: Manifest, reader: ManifestReader) -> None:
    assert manifest.append([entry(1), entry(2, in_thread=True)])
    assert manifest.append([entry(3, recorded=False)])
    assert reader.entries() == [entry(1), entry(2, in_thread=True), entry(3, recorded=False)]


def test_a_snapshot_replaces_what_has_ended_and_beats(manifest: Manifest, reader: ManifestReader) -> None:
    manifest.append([entry(1), entry(2)])
    manifest.snapshot([entry(2)])
    first = reader.beat
    manifest.append([entry(3)])
    assert reader.entries() == [entry(2), entry(3)]
    manifest.snapshot([])
    assert reader.entries() == []
    assert reader.beat >= first > 0


def test_an_entry_whose_writing_was_cut_off_is_not_there(manifest: Manifest, memory: SharedMemory) -> None:
    manifest.append([entry(1)])
    length = memory.header[5]
    manifest.append([entry(2)])
    memory.header[5] = length  # the length is written last
    assert ManifestReader(memory).entries() == [entry(1)]


def test_what_does_not_fit_is_refused_until_the_next_snapshot(manifest: Manifest, reader: ManifestReader) -> None:
    big = [entry(n, b"x" * MAX_PAYLOAD_BYTES) for n in range(BUFFER_BYTES // MAX_PAYLOAD_BYTES // 2)]
    assert manifest.append(big)
    assert not manifest.append(big)
    assert reader.entries() == big
    manifest.snapshot([entry(1)])
    assert manifest.append(big)


def test_a_long_payload_is_left_out() -> None:
    lease = entry(1, b"x" * (MAX_PAYLOAD_BYTES + 1)).lease
    assert entry_lease(lease).payload == b""
    assert entry_lease(lease).id == lease.id
    short = entry(1).lease
    assert entry_lease(short) is short


def test_numbers_are_given_once(manifest: Manifest) -> None:
    assert [manifest.next_seq() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("lost", [[], [7], list(range(1, MAX_LOST + 10))])
def test_the_worker_reads_what_the_keeper_renewed(manifest: Manifest, reader: ManifestReader, lost: list[int]) -> None:
    assert manifest.renewed() == (0.0, 0, frozenset())
    reader.note_renewal(12.5, 9, lost)
    assert manifest.renewed() == (12.5, 9, frozenset(lost[:MAX_LOST]))


def test_the_keeper_learns_once_of_a_quarantine_in_which_a_job_is_due(
    manifest: Manifest, reader: ManifestReader
) -> None:
    for index in (0, 2, 2, 64):
        manifest.note_quarantined(index)
    assert [reader.take_quarantined(), reader.take_quarantined()] == [0b101, 0]
