"""Transient jobs (`record=False`): only arq's keys in Redis, from submission to the kept result."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
import pytest_asyncio
from pydantic import BaseModel, SecretStr
from sqlmodel import text
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane import (
    Context,
    ControlPlane,
    CplaneSettings,
    Handle,
    JobCancelled,
    JobFailed,
    Retry,
    RetryPolicy,
    State,
    job,
)
from cplane.errors import (
    BrowserGone,
    DatabaseUnavailable,
    InvalidArguments,
    InvalidTransition,
    QueueUnavailable,
    RecordNotFound,
)
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES
from cplane.redis.envelope import (
    KeptResult,
    decode_envelope,
    decode_result,
    encode,
    encode_envelope,
    next_envelope,
)
from cplane.redis.keys import redis_name
from cplane.redis.messages import Ack, AckResult, Disposition, EnqueueRequest, Lease, Renewal
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id
from tests.workers import DEADLINE_S, Gate, kept_result, raw, running

RETRY_IMMEDIATELY = RetryPolicy(retries=2, backoff_s=0, jitter=0)

gate = Gate()
runs: list[int] = []


class Box(BaseModel):
    label: str
    sides: tuple[int, int]


@job(record=False)
async def transient_add(x: int, y: int = 2) -> int:
    return x + y


@job
async def transient_recorded() -> None: ...


@job(record=False)
async def transient_box(box: Box, when: datetime, raw: bytes) -> tuple[Box, datetime, bytes]:
    return box, when, raw


@job(record=False)
async def transient_nothing() -> None:
    runs.append(1)


@job(record=False, result_ttl=60)
async def transient_gate() -> str:
    await gate.pass_through()
    return "through"


@job(record=False, result_ttl=0)
async def transient_without_result(*, fails: bool = False) -> int:
    if fails:
        raise ValueError("the reason")
    return 1


@job(record=False)
async def transient_fails() -> None:
    raise ValueError("the reason")


@job(record=False, retries=RETRY_IMMEDIATELY)
async def transient_succeeds_on_third_attempt(ctx: Context) -> int:
    runs.append(ctx.attempt)
    if ctx.attempt < 3:
        raise ValueError(f"not yet: {ctx.attempt}")
    return ctx.attempt


@job(record=False, retries=RETRY_IMMEDIATELY)
async def transient_always_fails(ctx: Context) -> None:
    runs.append(ctx.attempt)
    raise ValueError(f"never: {ctx.attempt}")


@job(record=False, retries=1)
async def transient_raises_retry(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise Retry(delay=0)
    return ctx.attempt


@job(record=False)
async def transient_interrupted(ctx: Context) -> int:
    runs.append(ctx.attempt)
    if ctx.attempt == 1:
        raise BrowserGone("the browser ended")
    return ctx.attempt


@job(record=False, timeout=0.05)
async def transient_too_slow() -> None:
    await gate.pass_through()


@job(record=False)
async def transient_returns_nonsense() -> object:
    return {"fine": 1, "bad": object()}


@job(record=False)
async def transient_stores_a_file(ctx: Context) -> None:
    await ctx.artifact("note.txt", b"x")


@job(record=False)
async def transient_writes(session: AsyncSession, value: str, *, fails: bool) -> None:
    await (await session.connection()).execute(text("INSERT INTO notes (value) VALUES (:value)"), {"value": value})
    if fails:
        raise ValueError("after the write")


@job(record=False)
async def transient_writes_in_a_block(ctx: Context) -> str:
    async with ctx.transaction() as session:
        await (await session.connection()).execute(text("INSERT INTO notes (value) VALUES ('block')"))
    return str(ctx.key == str(ctx.id))


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())
    runs.clear()


async def expire_lease(plane: ControlPlane, job_id: UUID, queue: str = "default") -> None:
    """Expire a lease as if its worker had died a minute ago."""
    await raw(plane).delete(f"arq:in-progress:{job_id}")
    await raw(plane).zincrby(redis_name(queue), -90_000, str(job_id))


async def crash_workers(plane: ControlPlane, job_id: UUID, queue: str, number: int) -> None:
    """Let workers die that have leased the only job of a queue."""
    for _ in range(number):
        (lease,) = (await plane.queue.claim(queue, 1, 30)).leases
        assert lease.id == str(job_id)
        await expire_lease(plane, job_id, queue)


async def test_results_are_returned_with_their_types_and_no_record_is_created(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with running(settings):
        handle = await transient_add.submit(1, y=3)
        assert await handle.result(DEADLINE_S) == 4
        assert await handle.state() is State.SUCCEEDED
        box = Box(label="ünd", sides=(1, 2))
        assert await (await transient_box.submit(box, when, b"\xff\x00")).result(DEADLINE_S) == (box, when, b"\xff\x00")
        without_value: Handle[None] = await transient_nothing.submit()
        await without_value.result(DEADLINE_S)
        assert await without_value.state() is State.SUCCEEDED
    assert await plane.records() == []
    assert await plane.queue.depth("default") == 0


async def test_jobs_of_a_batch_run_once_each(settings: CplaneSettings, plane: ControlPlane) -> None:
    handles = await transient_add.submit_many({"x": x} for x in range(1200))
    async with running(settings):
        results = await asyncio.gather(*(handle.result(DEADLINE_S) for handle in handles))
    assert results == [x + 2 for x in range(1200)]
    assert await plane.queue.depth("default") == 0
    assert await transient_add.submit_many([]) == []


async def test_a_result_is_pushed_to_its_waiter(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.plane.waiters.POLL_INTERVAL_S", 3600)
    async with running(settings):
        handle = await transient_gate.submit()
        waiting = asyncio.create_task(handle.result(DEADLINE_S))
        await gate.entered.wait()
        assert await handle.state() is State.RUNNING
        while not await raw(plane).exists("cplane:events:subscribed"):
            await asyncio.sleep(0.005)
        gate.open.set()
        assert await waiting == "through"


async def test_a_failure_has_type_message_and_traceback(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await transient_fails.submit()
        with pytest.raises(JobFailed, match="job 'transient_fails' failed with ValueError: the reason") as caught:
            await handle.result(DEADLINE_S)
        assert await handle.state() is State.FAILED
    assert (caught.value.error_type, caught.value.error_message) == ("ValueError", "the reason")
    assert "transient_fails" in caught.value.traceback.splitlines()[1], "the traceback begins in the job's own code"


async def test_a_failing_job_is_retried_according_to_its_policy(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        assert await (await transient_succeeds_on_third_attempt.submit()).result(DEADLINE_S) == 3
        assert await (await transient_raises_retry.submit()).result(DEADLINE_S) == 2
        assert runs == [1, 2, 3]
        runs.clear()
        with pytest.raises(JobFailed, match="ValueError: never: 3"):
            await (await transient_always_fails.submit()).result(DEADLINE_S)
    assert runs == [1, 2, 3]


async def test_used_retries_are_counted_in_the_envelope(settings: CplaneSettings, plane: ControlPlane) -> None:
    job_id = str(new_id())
    envelope = encode_envelope("transient_always_fails", (), {}, failures=1, interruptions=1)
    await plane.queue.enqueue([EnqueueRequest("default", job_id, envelope)])
    async with running(settings):
        await kept_result(plane, job_id)
    assert runs == [1, 2], "its envelope says that one of its two retries is used"


async def test_an_interruption_uses_no_retry(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings):
        handle = await transient_interrupted.submit()
        async with asyncio.timeout(DEADLINE_S):
            while runs != [1] or await handle.state() is not State.QUEUED:
                await asyncio.sleep(0.005)
        envelope = decode_envelope(await raw(plane).get(f"arq:job:{handle.id}"))
        assert (envelope.failures, envelope.interruptions) == (0, 1)
        assert await handle.result(DEADLINE_S) == 2


async def test_a_job_that_exceeds_its_timeout_fails(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match=r"JobTimeout: 'transient_too_slow' ran longer than 0\.05 s"):
            await (await transient_too_slow.submit()).result(DEADLINE_S)
    assert gate.left == ["cancelled"]


async def test_a_queued_job_is_cancelled_immediately_and_never_runs(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await transient_gate.submit()
    assert await handle.state() is State.QUEUED
    assert await handle.cancel() is State.CANCELLED
    assert await handle.state() is State.CANCELLED
    assert await plane.queue.depth("default") == 0
    with pytest.raises(InvalidTransition, match="ended already"):
        await handle.cancel()
    async with running(settings):
        assert await (await transient_add.submit(1)).result(DEADLINE_S) == 3
        with pytest.raises(JobCancelled, match="transient_gate"):
            await handle.result(DEADLINE_S)
    assert not gate.entered.is_set()


async def test_a_running_job_is_cancelled_when_its_worker_is_notified(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        handle = await transient_gate.submit()
        await gate.entered.wait()
        assert await handle.cancel() is State.RUNNING
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
        assert await handle.state() is State.CANCELLED
    assert gate.left == ["cancelled"]
    assert await raw(plane).exists("arq:abort") == 0, "a leftover abort would cancel the next job with this id"


async def test_a_cancel_pending_on_a_dead_worker_is_executed_by_the_next_worker(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await transient_gate.submit()
    await plane.queue.claim("default", 1, 30)
    assert await handle.cancel() is State.RUNNING
    await expire_lease(plane, handle.id)
    async with running(settings):
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
    assert not gate.entered.is_set()


async def test_a_result_is_kept_for_the_result_ttl_of_its_job(settings: CplaneSettings, plane: ControlPlane) -> None:
    short, long = await transient_gate.submit(), await transient_add.submit(1)
    async with running(settings):
        gate.open.set()
        await asyncio.gather(short.result(DEADLINE_S), long.result(DEADLINE_S))
    assert 50_000 < await raw(plane).pttl(f"arq:result:{short.id}") <= 60_000
    assert 3_500_000 < await raw(plane).pttl(f"arq:result:{long.id}") <= 3_600_000
    kept = decode_result(await raw(plane).get(f"arq:result:{long.id}"))
    assert (kept.f, kept.k, kept.s, kept.r, kept.t, kept.q, kept.id) == (
        "transient_add", {"x": 1}, True, 3, 1, "arq:queue", str(long.id),
    )  # fmt: skip
    assert kept.et <= kept.st <= kept.ft
    await raw(plane).delete(f"arq:result:{long.id}")
    for call in (long.state(), long.result(DEADLINE_S)):
        with pytest.raises(RecordNotFound, match="or its result is no longer kept"):
            await call


async def test_a_transient_job_accepts_no_idempotency_key(plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments, match="'transient_add' keeps no record that a key could lead to"):
        transient_add.using(key="k")
    with pytest.raises(InvalidArguments, match="keeps no record"):
        await plane.create_job("transient_add", {"x": 1}, key="k")
    assert await raw(plane).keys("arq:*") == []


async def test_a_delayed_job_starts_when_it_is_due(settings: CplaneSettings, plane: ControlPlane) -> None:
    before = await plane.queue.now_ms()
    delayed = await transient_add.using(delay=30).submit(1)
    at = await transient_add.using(at=datetime.now(UTC) + timedelta(seconds=60)).submit(1)
    past = await transient_add.using(at=datetime.now(UTC) - timedelta(days=9)).submit(1)
    soon = await transient_add.using(delay=0.2).submit(5)
    assert 29_900 <= await raw(plane).zscore("arq:queue", str(delayed.id)) - before <= 50_000
    assert 59_000 <= await raw(plane).zscore("arq:queue", str(at.id)) - before <= 80_000
    assert await raw(plane).zscore("arq:queue", str(past.id)) <= await plane.queue.now_ms()
    async with running(settings):
        assert await past.result(DEADLINE_S) == 3
        assert await soon.result(DEADLINE_S) == 7
        kept = decode_result(await raw(plane).get(f"arq:result:{soon.id}"))
        assert kept.st - before >= 190
        assert await delayed.state() is State.QUEUED
        assert await delayed.cancel() is State.CANCELLED


async def test_a_job_fails_after_the_maximum_number_of_crashes(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await transient_gate.submit()
    await crash_workers(plane, handle.id, "default", ALONE_AFTER)
    (lease,) = (
        await plane.queue.claim("default", 1, 30)
    ).leases  # as a worker does, which finds that it must run alone
    payload = next_envelope(decode_envelope(lease.payload), suspicions=ALONE_AFTER)
    await plane.queue.ack([Ack(msgspec.structs.replace(lease, tries=0), Disposition.QUARANTINE, text=payload)])
    await crash_workers(plane, handle.id, quarantine_of("default"), MAX_CRASHES)
    async with running(settings):
        with pytest.raises(JobFailed, match=r"WorkerLost: its workers died or lost their leases \(3 of 3\)"):
            await handle.result(DEADLINE_S)
    assert not gate.entered.is_set()


async def test_the_leases_of_all_jobs_of_one_claim_are_renewed(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, expected, all_renewed = set[str](), set[str](), asyncio.Event()
    renew = Queue.renew

    async def record_renewals(queue: Queue, leases: Sequence[Lease], lease_s: float) -> list[Renewal]:
        renewals = await renew(queue, leases, lease_s)
        renewed.update(lease.id for lease, renewal in zip(leases, renewals, strict=True) if renewal is Renewal.RENEWED)
        if expected <= renewed:
            all_renewed.set()
        return renewals

    monkeypatch.setattr(Queue, "renew", record_renewals)
    handles = [await transient_gate.submit() for _ in range(3)]
    expected.update(str(handle.id) for handle in handles)
    async with running(settings.model_copy(update={"lease_s": 4.0})), asyncio.timeout(DEADLINE_S):
        await all_renewed.wait()
        gate.open.set()
        assert [await handle.result() for handle in handles] == ["through"] * 3
    assert gate.left == ["passed"] * 3, "each job ran once"


async def test_a_job_survives_one_crash_less_than_the_maximum(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await transient_add.submit(1)
    for _ in range(MAX_CRASHES - 1):
        await plane.queue.claim("default", 1, 30)
        await expire_lease(plane, handle.id)
    async with running(settings):
        assert await handle.result(DEADLINE_S) == 3


async def test_claims_by_workers_that_do_not_know_a_job_use_none_of_its_tries(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.triage.UNKNOWN_JOB_DELAY_S", 0.001)
    job_id, acks, acked_often = str(new_id()), list[Ack](), asyncio.Event()
    ack = Queue.ack

    async def record_acks(queue: Queue, batch: Sequence[Ack]) -> list[AckResult]:
        ack_results = await ack(queue, batch)
        acks.extend(batch)
        if len(acks) > MAX_CRASHES + 3:
            acked_often.set()
        return ack_results

    monkeypatch.setattr(Queue, "ack", record_acks)
    await plane.queue.enqueue([EnqueueRequest("default", job_id, encode_envelope("transient_unknown"))])
    async with running(settings), asyncio.timeout(DEADLINE_S):
        await acked_often.wait()
    lease = await claim_when_ready(plane)
    assert (lease.id, lease.tries) == (job_id, 1)


async def claim_when_ready(plane: ControlPlane) -> Lease:
    """Wait until a job is ready, and return the lease of a claim."""
    async with asyncio.timeout(DEADLINE_S):
        while not (claim := await plane.queue.claim("default", 1, 30)).leases:
            await asyncio.sleep(0.001)
    return claim.leases[0]


async def test_a_stopping_worker_requeues_its_jobs_without_counting_crashes(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    no_drain = settings.model_copy(update={"drain_s": 0.0})
    handle = await transient_gate.submit()
    for _ in range(MAX_CRASHES + 1):
        gate.entered.clear()
        async with running(no_drain):
            await gate.entered.wait()
    assert await handle.state() is State.QUEUED
    gate.open.set()
    async with running(settings):
        assert await handle.result(DEADLINE_S) == "through"


async def test_an_attempt_that_lost_its_lease_stores_no_result(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings.model_copy(update={"lease_s": 3.0})):
        handle = await transient_gate.submit()
        await gate.entered.wait()
        await raw(plane).set(f"arq:in-progress:{handle.id}", "another", px=60_000)
        async with asyncio.timeout(DEADLINE_S):
            while gate.left != ["cancelled"]:
                await asyncio.sleep(0.01)
    assert await raw(plane).get(f"arq:in-progress:{handle.id}") == b"another"
    assert await raw(plane).exists(f"arq:result:{handle.id}") == 0


async def test_writes_of_a_job_are_committed_only_if_it_succeeds(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with plane.database.session() as session:
        await (await session.connection()).execute(text("CREATE TABLE notes (value text)"))
    async with running(settings):
        await (await transient_writes.submit("kept", fails=False)).result(DEADLINE_S)
        with pytest.raises(JobFailed, match="after the write"):
            await (await transient_writes.submit("undone", fails=True)).result(DEADLINE_S)
        assert await (await transient_writes_in_a_block.submit()).result(DEADLINE_S) == "True"
    async with plane.database.session() as session:
        found = (await (await session.connection()).execute(text("SELECT value FROM notes"))).scalars()
        assert sorted(found) == ["block", "kept"]


async def test_a_transient_job_that_stores_a_file_fails_with_an_explanation(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match="a job without a record keeps no files") as caught:
            await (await transient_stores_a_file.submit()).result(DEADLINE_S)
    assert caught.value.error_type == "InvalidArguments"


async def test_a_result_that_is_not_json_fails_without_a_retry(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match="cannot be stored as JSON") as caught:
            await (await transient_returns_nonsense.submit()).result(DEADLINE_S)
    assert caught.value.error_type == "ResultNotSerializable"


async def test_arguments_are_checked_when_submitted_and_when_run(settings: CplaneSettings, plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments):
        await transient_add.submit("not a number")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArguments, match="the limit is"):
        await plane.create_job(
            "transient_box", {"box": {"label": "x" * 1_100_000, "sides": [1, 2]}, "when": 0, "raw": ""}
        )
    job_id = new_id()
    await plane.queue.enqueue(
        [EnqueueRequest("default", str(job_id), encode_envelope("transient_add", ("not a number",)))]
    )
    async with running(settings):
        failed = decode_result(await kept_result(plane, str(job_id)))
    assert not failed.s
    assert failed.r.type == "InvalidArguments"
    assert failed.t == 1


async def test_submitting_fails_immediately_if_redis_is_unavailable(settings: CplaneSettings) -> None:
    unavailable = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    async with ControlPlane(unavailable):
        with pytest.raises(QueueUnavailable, match="Redis did not respond while scheduling jobs"):
            await transient_add.submit(1)
        with pytest.raises(QueueUnavailable):
            await transient_add.submit_many([{"x": 1}])
        with pytest.raises(QueueUnavailable):
            await transient_add.using(at=datetime.now(UTC) + timedelta(1)).submit(1)


async def test_a_job_with_result_ttl_zero_keeps_only_a_failure(settings: CplaneSettings, plane: ControlPlane) -> None:
    done = await transient_without_result.submit()
    failed = await transient_without_result.submit(fails=True)
    with pytest.raises(InvalidTransition, match="'transient_without_result' keeps no result that could be waited for"):
        await done.result(DEADLINE_S)
    assert await done.state() is State.QUEUED
    async with running(settings):
        while await raw(plane).keys(f"arq:job:{done.id}") or not await raw(plane).exists(f"arq:result:{failed.id}"):
            await asyncio.sleep(0.01)
    with pytest.raises(RecordNotFound, match="its result is no longer kept"):
        await done.state()
    assert await raw(plane).keys(f"*{done.id}") == []
    assert await failed.state() is State.FAILED
    shown = await plane.job(failed.id)
    assert (shown.error_type, shown.error_message) == ("ValueError", "the reason")
    assert 3_500_000 < await raw(plane).pttl(f"arq:result:{failed.id}") <= 3_600_000


async def test_a_job_with_result_ttl_zero_keeps_its_cancellation(plane: ControlPlane) -> None:
    handle = await transient_without_result.submit()
    assert await handle.cancel() is State.CANCELLED
    assert await handle.state() is State.CANCELLED


@pytest_asyncio.fixture
async def plane_without_postgres(settings: CplaneSettings, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane whose Postgres is unavailable."""
    unreachable = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with ControlPlane(settings.model_copy(update={"database_url": unreachable})) as plane:
        yield plane


async def test_transient_jobs_are_readable_and_cancellable_without_postgres(
    settings: CplaneSettings, plane_without_postgres: ControlPlane
) -> None:
    handle = await transient_add.submit(1)
    queued = await plane_without_postgres.job(handle.id)
    assert (queued.state, queued.job, queued.args) == (State.QUEUED, "transient_add", {"x": 1})
    waiting = asyncio.create_task(plane_without_postgres.wait(handle.id, DEADLINE_S))
    async with running(settings):
        assert (await waiting).result == 3
    for finished in (
        await plane_without_postgres.job(handle.id),
        await plane_without_postgres.wait(handle.id, DEADLINE_S),
    ):
        assert (finished.state, finished.result) == (State.SUCCEEDED, 3)
    with pytest.raises(InvalidTransition):
        await plane_without_postgres.cancel(handle.id)
    assert await plane_without_postgres.cancel((await transient_add.submit(1)).id) is State.CANCELLED


async def test_recorded_and_unknown_jobs_raise_database_unavailable_without_postgres(
    settings: CplaneSettings, plane_without_postgres: ControlPlane
) -> None:
    async with ControlPlane(settings) as connected:
        recorded = await connected.create_job("transient_recorded", {})
    for job_id in (recorded.id, new_id()):
        for call in (
            plane_without_postgres.job(job_id),
            plane_without_postgres.wait(job_id, DEADLINE_S),
            plane_without_postgres.cancel(job_id),
        ):
            with pytest.raises(DatabaseUnavailable, match="Postgres did not respond"):
                await call
    assert await plane_without_postgres.queue.depth("default") == 1


async def test_without_postgres_and_redis_database_unavailable_is_raised(
    settings: CplaneSettings, tmp_path: Path
) -> None:
    unreachable = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    unavailable = {"database_url": unreachable, "redis_url": SecretStr(f"unix://{tmp_path}/nobody.sock")}
    async with ControlPlane(settings.model_copy(update=unavailable)) as plane:
        with pytest.raises(DatabaseUnavailable):
            await plane.job(new_id())


async def test_a_waiter_recovers_from_a_lost_event_without_postgres(
    plane_without_postgres: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.plane.waiters.POLL_INTERVAL_S", 0.05)
    handle = await transient_add.submit(1)
    waiting = asyncio.create_task(plane_without_postgres.wait(handle.id, DEADLINE_S))
    while not await raw(plane_without_postgres).exists("cplane:events:subscribed"):
        await asyncio.sleep(0.005)
    kept = KeptResult(1, "transient_add", (), {"x": 1}, 1, True, 3, 1, 1, "arq:queue", str(handle.id))
    # the job has ended, and no event was published
    await plane_without_postgres.queue.abort("default", str(handle.id), encode(kept), 60)
    assert (await waiting).result == 3
