"""Bad things in the queue: none stops the worker or another job, and what is no job of ours is set aside where an operator sees it."""

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
def nothing_ran() -> None:
    ran.clear()


async def until_dead_letters(plane: ControlPlane, count: int = 1) -> list[DeadLetter]:
    async with asyncio.timeout(DEADLINE_S):
        while len(entries := await plane.dead_letters.newest(limit=1000)) < count:
            await asyncio.sleep(0.01)
    return entries


async def works(plane: ControlPlane) -> None:
    """The worker still runs jobs of both kinds."""
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
        "pickle", "no msgpack", "truncated head", "truncated", "more behind it", "a list", "fields are missing", "no text", "wrong types",
        "a huge array", "deep", "no UTF-8",
    ],
)  # fmt: skip
async def test_a_payload_that_is_no_job_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane, payload: bytes, reason: str
) -> None:
    await plane.queue.enqueue([EnqueueRequest("default", "bad", payload)])
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await works(plane)
    assert (entry.queue, entry.id, entry.payload) == ("arq:queue", "bad", payload)
    assert entry.reason.startswith(reason)
    assert abs(entry.at_ms - await plane.queue.now_ms()) < 60_000
    assert await plane.queue.depth("default") == 0
    assert await raw(plane).keys("arq:*:bad") == [], "nothing is left of it in the schedule"


async def test_an_id_that_is_not_text_becomes_a_dead_letter(settings: CplaneSettings, plane: ControlPlane) -> None:
    payload = encode_envelope("dead_transient", (1,))
    for name, value in ((b"\xff\xfe", payload), (b"r\xff", record_envelope("dead_recorded"))):
        await raw(plane).set(b"arq:job:" + name, value)
        await raw(plane).zadd("arq:queue", {name: 1})
    await raw(plane).zadd("arq:queue", {b"lost \xff": 1})
    async with running(settings):
        entries = {entry.id: entry for entry in await until_dead_letters(plane, 2)}
        await works(plane)
    assert set(entries) == {"\udcff\udcfe", "r\udcff"}
    assert entries["\udcff\udcfe"].payload == payload
    assert {entry.reason for entry in entries.values()} == {"its id is not UTF-8"}
    assert await plane.queue.depth("default") == 0
    assert sorted(ran) == [1, 2]


async def test_an_id_of_text_that_is_not_ascii_is_a_job_like_any_other(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    for job_id in ("süß", "", "a b\n", "x" * 5000, "🦊"):
        await plane.queue.enqueue([EnqueueRequest("default", job_id, encode_envelope("dead_transient", (1,)))])
        async with running(settings):
            await kept_result(plane, job_id)
    assert await plane.dead_letters.newest() == []


@pytest.mark.parametrize("kind", ["list", "hash"])
@pytest.mark.parametrize("name", ["bad", "b\xff"])
async def test_a_payload_of_another_kind_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane, kind: str, name: str
) -> None:
    key, name_bytes = f"arq:job:{name}".encode("latin-1"), name.encode("latin-1")
    await (raw(plane).rpush(key, "x") if kind == "list" else raw(plane).hset(key, "x", "y"))
    await raw(plane).zadd("arq:queue", {name_bytes: 1})
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await works(plane)
    assert entry.id == name_bytes.decode(errors="surrogateescape")
    assert " holds a " in entry.reason
    assert entry.payload == b""
    assert await plane.queue.depth("default") == 0
    assert await raw(plane).exists(key) == 1, "what is not ours is not deleted"


async def foreign_key(plane: ControlPlane, prefix: str, job_id: str) -> None:
    """A key of arq's name that holds what arq never puts there."""
    if prefix == "arq:retry":
        await raw(plane).set(f"{prefix}:{job_id}", "many")
    else:
        await raw(plane).hset(f"{prefix}:{job_id}", "a", "b")


async def test_a_count_that_is_none_sets_a_transient_job_aside_with_its_payload(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await dead_transient.submit(3)
    payload = await raw(plane).get(f"arq:job:{handle.id}")
    await foreign_key(plane, "arq:retry", str(handle.id))
    async with running(settings):
        (entry,) = await until_dead_letters(plane)
        await works(plane)
    assert (entry.id, entry.payload) == (str(handle.id), payload)
    assert entry.reason == f"arq:retry:{handle.id} holds no number"
    assert await raw(plane).keys(f"*{handle.id}") == []
    assert 3 not in ran


async def test_a_count_that_is_none_is_nothing_to_a_record(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await dead_recorded.submit(3)  # its tries are counted in Postgres
    await foreign_key(plane, "arq:retry", str(handle.id))
    async with running(settings):
        assert await handle.result(DEADLINE_S) == 3
    assert await plane.dead_letters.newest() == []


async def test_what_stands_in_the_place_of_a_lease_and_is_none_gives_way(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handles = [await dead_transient.submit(3), await dead_recorded.submit(4)]
    for handle in handles:
        await foreign_key(plane, "arq:in-progress", str(handle.id))
    async with running(settings):
        assert [await handle.result(DEADLINE_S) for handle in handles] == [3, 4]
    assert await plane.dead_letters.newest() == []


@pytest.mark.parametrize("score", ["-inf", "0", "0.5", "1700000000000.25", "-3"])
async def test_a_due_time_that_is_odd_but_past_is_due(
    settings: CplaneSettings, plane: ControlPlane, score: str
) -> None:
    recorded, transient = await dead_recorded.submit(1), await dead_transient.submit(2)
    for handle in (recorded, transient):
        await raw(plane).zadd("arq:queue", {str(handle.id): score})
    async with running(settings):
        assert (await recorded.result(DEADLINE_S), await transient.result(DEADLINE_S)) == (1, 2)


@pytest.mark.parametrize("score", ["+inf", "1e300", "9007199254740993", "18446744073709551616"])
async def test_a_due_time_that_never_comes_holds_nothing_up(
    settings: CplaneSettings, plane: ControlPlane, score: str
) -> None:
    handle = await dead_transient.submit(9)
    await raw(plane).zadd("arq:queue", {str(handle.id): score})
    async with running(settings):
        await works(plane)
        assert await handle.state() is State.QUEUED
        assert await handle.cancel() is State.CANCELLED
    assert sorted(ran) == [1, 2]


async def test_an_envelope_of_a_record_with_an_id_of_none_becomes_a_dead_letter(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    known = str(new_id())
    bad = ["not a uuid", known.upper(), known.replace("-", ""), f"{{{known}}}", "'; DROP TABLE"]
    await plane.queue.enqueue([EnqueueRequest("default", each, record_envelope("dead_recorded")) for each in bad])
    async with running(settings):
        entries = await until_dead_letters(plane, len(bad))
        await works(plane)
    assert {entry.id: entry.reason for entry in entries} == {
        each: f"'{each}' is not the id of a record" for each in bad
    }


async def test_a_record_that_does_not_exist_leaves_the_queue(settings: CplaneSettings, plane: ControlPlane) -> None:
    gone = str(new_id())
    await plane.queue.enqueue([EnqueueRequest("default", gone, record_envelope("dead_recorded"))])
    async with running(settings):
        await works(plane)
        await until_queue_empty(plane)
    assert await raw(plane).keys(f"*{gone}") == []
    assert sorted(ran) == [1, 2]


async def test_a_record_of_an_unknown_job_behind_an_envelope_of_a_known_one_goes_back(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await dead_recorded.submit(7)
    async with plane.database.session() as session:
        rename = text("UPDATE cplane.jobs SET job = 'dead_unheard_of' WHERE id = :id")
        await (await session.connection()).execute(rename, {"id": handle.id})
    async with running(settings):
        await works(plane)
        attempts = await ended_attempts(plane, handle.id)
    record = await plane.record(handle.id)
    assert (record.state, record.failures, record.crashes, record.interruptions) == (State.QUEUED, 0, 0, 0)
    assert attempts == [AttemptState.RELEASED]
    assert await raw(plane).zscore("arq:queue", str(handle.id)) > await plane.queue.now_ms()
    assert 7 not in ran


async def ended_attempts(plane: ControlPlane, record_id: UUID) -> list[AttemptState]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            states = [attempt.state for attempt in await plane.attempts(record_id)]
            if states and AttemptState.RUNNING not in states:
                return states
            await asyncio.sleep(0.01)


async def test_a_heap_of_bad_things_does_not_hold_up_the_good_ones(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    await plane.queue.enqueue([EnqueueRequest("default", f"bad {n}", PICKLE, -10_000) for n in range(300)])
    for n in range(50):
        await raw(plane).rpush(f"arq:job:list {n}", "x")
    await raw(plane).zadd("arq:queue", {f"list {n}": 1 for n in range(50)} | {f"lost {n}": 2 for n in range(50)})
    async with running(settings):
        await works(plane)
        assert len(await until_dead_letters(plane, 350)) == 350
    assert len(await plane.dead_letters.newest()) == 100
    assert await plane.queue.depth("default") == 0


@pytest.mark.parametrize("prefix", ["arq:abort", "cplane:wake:default", "arq:queue@high"])
async def test_a_key_of_the_whole_queue_that_is_of_another_kind_ends_no_worker(
    settings: CplaneSettings, plane: ControlPlane, prefix: str
) -> None:
    await raw(plane).set(prefix, "foreign")
    async with running(settings) as worker:
        handle = await dead_transient_somehow(plane)
        await raw(plane).delete(prefix)
        await kept_result(plane, handle)
        assert not worker.stopping


async def dead_transient_somehow(plane: ControlPlane) -> str:
    """A job that is in the queue although its other keys may refuse."""
    job_id = str(new_id())
    await raw(plane).set(f"arq:job:{job_id}", encode_envelope("dead_transient", (1,)))
    await raw(plane).zadd("arq:queue", {job_id: 1})
    return job_id
