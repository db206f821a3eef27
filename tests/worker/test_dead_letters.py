"""Malformed queue entries: none stops the worker or another job, and each becomes a dead letter for the operator."""

import asyncio
from uuid import UUID

import msgspec
import pytest
from sqlmodel import text

from cplane import ControlPlane, CplaneSettings, State, job
from cplane.jobs.states import AttemptState
from cplane.redis.dead_letters import DeadLetter
from cplane.redis.envelope import encode_envelope, record_envelope
from cplane.redis.messages import EnqueueRequest
from cplane.runtime.ids import new_id
from tests.workers import DEADLINE_S, kept_result, raw, running, until_queue_empty

PICKLE = b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00\x8c\x0bposix.system\x94."

ran: list[int] = []


@job
async def dead_recorded(x: int) -> int:
    ran.append(x)
    return x


@job(record=False)
async def dead_transient(x: int) -> int:
    ran.append(x)
    return x


@pytest.fixture(autouse=True)
def clear_ran() -> None:
    ran.clear()


async def until_dead_letters(plane: ControlPlane, count: int = 1) -> list[DeadLetter]:
    async with asyncio.timeout(DEADLINE_S):
        while len(entries := await plane.dead_letters.newest(limit=1000)) < count:
            await asyncio.sleep(0.01)
    return entries


async def assert_worker_runs_jobs(plane: ControlPlane) -> None:
    """Assert that the worker still runs recorded and transient jobs."""
    recorded, transient = await dead_recorded.submit(1), await dead_transient.submit(2)
    assert (await recorded.result(DEADLINE_S), await transient.result(DEADLINE_S)) == (1, 2)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (PICKLE, "the payload is a pickle; an arq client needs cplane's serializer"),
        (b"\xc1", "the payload is not arq's job dict as msgpack"),
        (b"\x85\xa1t", "the payload is not arq's job dict as msgpack"),
        (encode_envelope("dead_transient", (1,))[:-3], "the payload is not arq's job dict as msgpack"),
        (encode_envelope("dead_transient", (1,)) + b"\x00", "the payload is not arq's job dict as msgpack"),
        (msgspec.msgpack.encode([1, 2]), "the payload is not arq's job dict as msgpack"),
        (msgspec.msgpack.encode({"f": "dead_transient"}), "the payload is not arq's job dict as msgpack"),
        (
            msgspec.msgpack.encode({"t": None, "f": 7, "a": [], "k": {}, "et": 0}),
            "the payload is not arq's job dict as msgpack",
        ),
        (
            msgspec.msgpack.encode({"t": None, "f": "dead_transient", "a": {}, "k": [], "et": 0}),
            "the payload is not arq's job dict as msgpack",
        ),
        (b"\xdc\xff\xff" * 3000, "the payload is not arq's job dict as msgpack"),
        (b"\x91" * 100_000, "the payload is not arq's job dict as msgpack"),
        (b"\xa2\xff\xfe", "the payload is not arq's job dict as msgpack"),
    ],
    ids=[
        "pickle", "not msgpack", "truncated head", "truncated", "trailing bytes", "a list", "missing fields", "name is not text", "wrong types",
        "a huge array", "deeply nested", "not UTF-8",
    ],
)  # fmt: skip
async def test_a_payload_that_is_not_a_job_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane, payload: bytes, reason: str
) -> None:
    await plane.queue.enqueue([EnqueueRequest("default", "bad", payload)])
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await assert_worker_runs_jobs(plane)
    assert (entry.queue, entry.id, entry.payload) == ("arq:queue", "bad", payload)
    assert entry.reason.startswith(reason)
    assert abs(entry.at_ms - await plane.queue.now_ms()) < 60_000
    assert await plane.queue.depth("default") == 0
    assert await raw(plane).keys("arq:*:bad") == [], "all its keys are deleted"


async def test_a_job_id_that_is_not_utf8_becomes_a_dead_letter(settings: CplaneSettings, plane: ControlPlane) -> None:
    payload = encode_envelope("dead_transient", (1,))
    for name, value in ((b"\xff\xfe", payload), (b"r\xff", record_envelope("dead_recorded"))):
        await raw(plane).set(b"arq:job:" + name, value)
        await raw(plane).zadd("arq:queue", {name: 1})
    await raw(plane).zadd("arq:queue", {b"lost \xff": 1})
    async with running(settings):
        entries = {entry.id: entry for entry in await until_dead_letters(plane, 2)}
        await assert_worker_runs_jobs(plane)
    assert set(entries) == {"\udcff\udcfe", "r\udcff"}
    assert entries["\udcff\udcfe"].payload == payload
    assert {entry.reason for entry in entries.values()} == {"its id is not UTF-8"}
    assert await plane.queue.depth("default") == 0
    assert sorted(ran) == [1, 2]


async def test_non_ascii_empty_and_long_job_ids_are_accepted(settings: CplaneSettings, plane: ControlPlane) -> None:
    for job_id in ("süß", "", "a b\n", "x" * 5000, "🦊"):
        await plane.queue.enqueue([EnqueueRequest("default", job_id, encode_envelope("dead_transient", (1,)))])
        async with running(settings):
            await kept_result(plane, job_id)
    assert await plane.dead_letters.newest() == []


@pytest.mark.parametrize("redis_type", ["list", "hash"])
@pytest.mark.parametrize("name", ["bad", "b\xff"])
async def test_a_payload_key_of_another_redis_type_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane, redis_type: str, name: str
) -> None:
    key, name_bytes = f"arq:job:{name}".encode("latin-1"), name.encode("latin-1")
    await (raw(plane).rpush(key, "x") if redis_type == "list" else raw(plane).hset(key, "x", "y"))
    await raw(plane).zadd("arq:queue", {name_bytes: 1})
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await assert_worker_runs_jobs(plane)
    assert entry.id == name_bytes.decode(errors="surrogateescape")
    assert " holds a " in entry.reason
    assert entry.payload == b""
    assert await plane.queue.depth("default") == 0
    assert await raw(plane).exists(key) == 1, "a key of another type is not deleted"


async def set_malformed_key(plane: ControlPlane, prefix: str, job_id: str) -> None:
    """Create a key that has arq's name and a value that arq never writes."""
    if prefix == "arq:retry":
        await raw(plane).set(f"{prefix}:{job_id}", "many")
    else:
        await raw(plane).hset(f"{prefix}:{job_id}", "a", "b")


async def test_a_malformed_try_count_makes_a_transient_job_a_dead_letter_with_its_payload(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await dead_transient.submit(3)
    payload = await raw(plane).get(f"arq:job:{handle.id}")
    await set_malformed_key(plane, "arq:retry", str(handle.id))
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await assert_worker_runs_jobs(plane)
    assert (entry.id, entry.payload) == (str(handle.id), payload)
    assert entry.reason == f"arq:retry:{handle.id} holds no number"
    assert await raw(plane).keys(f"*{handle.id}") == []
    assert 3 not in ran


async def test_a_malformed_try_count_does_not_affect_a_recorded_job(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await dead_recorded.submit(3)  # Postgres counts its attempts
    await set_malformed_key(plane, "arq:retry", str(handle.id))
    async with running(settings):
        assert await handle.result(DEADLINE_S) == 3
    assert await plane.dead_letters.newest() == []


async def test_a_malformed_lease_key_is_replaced_by_a_lease(settings: CplaneSettings, plane: ControlPlane) -> None:
    handles = [await dead_transient.submit(3), await dead_recorded.submit(4)]
    for handle in handles:
        await set_malformed_key(plane, "arq:in-progress", str(handle.id))
    async with running(settings):
        assert [await handle.result(DEADLINE_S) for handle in handles] == [3, 4]
    assert await plane.dead_letters.newest() == []


@pytest.mark.parametrize("score", ["-inf", "0", "0.5", "1700000000000.25", "-3"])
async def test_a_job_with_an_unusual_due_time_in_the_past_is_ready(
    settings: CplaneSettings, plane: ControlPlane, score: str
) -> None:
    recorded, transient = await dead_recorded.submit(1), await dead_transient.submit(2)
    for handle in (recorded, transient):
        await raw(plane).zadd("arq:queue", {str(handle.id): score})
    async with running(settings):
        assert (await recorded.result(DEADLINE_S), await transient.result(DEADLINE_S)) == (1, 2)


@pytest.mark.parametrize("score", ["+inf", "1e300", "9007199254740993", "18446744073709551616"])
async def test_a_job_with_an_unreachable_due_time_does_not_block_other_jobs(
    settings: CplaneSettings, plane: ControlPlane, score: str
) -> None:
    handle = await dead_transient.submit(9)
    await raw(plane).zadd("arq:queue", {str(handle.id): score})
    async with running(settings):
        await assert_worker_runs_jobs(plane)
        assert await handle.state() is State.QUEUED
        assert await handle.cancel() is State.CANCELLED
    assert sorted(ran) == [1, 2]


async def test_a_record_envelope_with_an_invalid_record_id_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    valid_id = str(new_id())
    bad = ["not a uuid", valid_id.upper(), valid_id.replace("-", ""), f"{{{valid_id}}}", "'; DROP TABLE"]
    await plane.queue.enqueue(
        [EnqueueRequest("default", record_id, record_envelope("dead_recorded")) for record_id in bad]
    )
    async with running(settings):
        entries = await until_dead_letters(plane, len(bad))
        await assert_worker_runs_jobs(plane)
    assert {entry.id: entry.reason for entry in entries} == {
        record_id: f"'{record_id}' is not the id of a record" for record_id in bad
    }


async def test_the_queue_entry_of_a_missing_record_is_removed(settings: CplaneSettings, plane: ControlPlane) -> None:
    missing_id = str(new_id())
    await plane.queue.enqueue([EnqueueRequest("default", missing_id, record_envelope("dead_recorded"))])
    async with running(settings):
        await assert_worker_runs_jobs(plane)
        await until_queue_empty(plane)
    assert await raw(plane).keys(f"*{missing_id}") == []
    assert sorted(ran) == [1, 2]


async def test_a_record_of_an_unknown_job_is_requeued_even_if_its_envelope_names_a_known_job(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await dead_recorded.submit(7)
    async with plane.database.session() as session:
        rename = text("UPDATE cplane.jobs SET job = 'dead_unknown' WHERE id = :id")
        await (await session.connection()).execute(rename, {"id": handle.id})
    async with running(settings):
        await assert_worker_runs_jobs(plane)
        attempts = await until_attempts_ended(plane, handle.id)
    record = await plane.record(handle.id)
    assert (record.state, record.failures, record.crashes, record.interruptions) == (State.QUEUED, 0, 0, 0)
    assert attempts == [AttemptState.RELEASED]
    assert await raw(plane).zscore("arq:queue", str(handle.id)) > await plane.queue.now_ms()
    assert 7 not in ran


async def until_attempts_ended(plane: ControlPlane, record_id: UUID) -> list[AttemptState]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            states = [attempt.state for attempt in await plane.attempts(record_id)]
            if states and AttemptState.RUNNING not in states:
                return states
            await asyncio.sleep(0.01)


async def test_many_malformed_entries_do_not_block_valid_jobs(settings: CplaneSettings, plane: ControlPlane) -> None:
    await plane.queue.enqueue([EnqueueRequest("default", f"bad {n}", PICKLE, -10_000) for n in range(300)])
    for n in range(50):
        await raw(plane).rpush(f"arq:job:list {n}", "x")
    await raw(plane).zadd("arq:queue", {f"list {n}": 1 for n in range(50)} | {f"lost {n}": 2 for n in range(50)})
    async with running(settings):
        await assert_worker_runs_jobs(plane)
        assert len(await until_dead_letters(plane, 350)) == 350
    assert len(await plane.dead_letters.newest()) == 100
    assert await plane.queue.depth("default") == 0


@pytest.mark.parametrize("key", ["arq:abort", "cplane:wake:default", "arq:queue@high"])
async def test_a_queue_key_of_another_redis_type_does_not_stop_the_worker(
    settings: CplaneSettings, plane: ControlPlane, key: str
) -> None:
    await raw(plane).set(key, "foreign")
    async with running(settings) as worker:
        job_id = await enqueue_directly(plane)
        await raw(plane).delete(key)
        await kept_result(plane, job_id)
        assert not worker.stopping


async def enqueue_directly(plane: ControlPlane) -> str:
    """Put a job into the queue with raw commands, which work even if the queue's other keys have the wrong type."""
    job_id = str(new_id())
    await raw(plane).set(f"arq:job:{job_id}", encode_envelope("dead_transient", (1,)))
    await raw(plane).zadd("arq:queue", {job_id: 1})
    return job_id
