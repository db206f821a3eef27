"""A worker runs jobs in this process, with real Postgres, Redis and Chromium."""

import asyncio
import threading
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import pytest
from playwright.async_api import BrowserContext, Page
from pydantic import BaseModel
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
from cplane.errors import BrowserError, BrowserGone, InvalidArguments, InvalidTransition
from cplane.jobs.definition import AnyJob
from cplane.jobs.registry import registry
from cplane.jobs.states import AttemptState, Cause
from cplane.postgres.models import AttemptRecord
from cplane.redis.envelope import encode_envelope, record_envelope
from cplane.redis.messages import EnqueueRequest
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id
from tests.workers import DEADLINE_S, Gate, blocked, raw, running, until_queue_empty

RETRY_IMMEDIATELY = RetryPolicy(retries=2, backoff_s=0, jitter=0)


gate = Gate()
runs: list[int] = []


class Point(BaseModel):
    x: int
    y: int = 0


@job
async def worker_add(x: int, y: int = 2) -> int:
    return x + y


@job
async def worker_mirror(point: Point, when: datetime, raw: bytes) -> tuple[Point, datetime, bytes]:
    return point, when, raw


@job
def worker_in_thread(x: int) -> str:
    assert threading.current_thread() is not threading.main_thread()
    return f"thread {x}"


@job
async def worker_gate() -> str:
    await gate.pass_through()
    return "through"


@job(record=False)
async def worker_transient_gate() -> str:
    return await worker_gate()


@job(retries=RETRY_IMMEDIATELY)
async def worker_succeeds_on_third_attempt(ctx: Context) -> int:
    runs.append(ctx.attempt)
    if ctx.attempt < 3:
        raise ValueError(f"not yet: {ctx.attempt}")
    return ctx.attempt


@job(retries=RetryPolicy(retries=5, backoff_s=0, never=(KeyError,)))
async def worker_never_retried(ctx: Context) -> None:
    runs.append(ctx.attempt)
    raise KeyError("gone")


@job(retries=1)
async def worker_raises_retry(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise Retry(delay=0)
    return ctx.attempt


@job(timeout=0.05)
async def worker_too_slow() -> None:
    await gate.pass_through()


@job
async def worker_exits() -> None:
    raise SystemExit(3)


@job
async def worker_cancels_itself() -> None:
    raise asyncio.CancelledError


@job
async def worker_returns_nonsense() -> object:
    return {"fine": 1, "bad": object()}


@job(retries=3)
async def worker_browser_gone_once(ctx: Context) -> int:
    if ctx.attempt == 1:
        raise BrowserGone("the browser ended")
    return ctx.attempt


@job
async def worker_writes(session: AsyncSession, value: str, *, fails: bool) -> None:
    await (await session.connection()).execute(text("INSERT INTO notes (value) VALUES (:value)"), {"value": value})
    if fails:
        raise ValueError("after the write")


@job
async def worker_fenced_write(ctx: Context) -> None:
    async with ctx.transaction() as session:
        await (await session.connection()).execute(text("INSERT INTO notes (value) VALUES ('fenced')"))
    await gate.pass_through()


@job
async def worker_stores_files(ctx: Context) -> str:
    await ctx.progress(1, 2, "half")
    artifact = await ctx.artifact("note.txt", f"attempt {ctx.attempt}".encode())
    return artifact.sha256


@job(browser={"isolation": "shared"})
async def worker_shared(browser_context: BrowserContext, number: int) -> list[str]:
    seen = [cookie.get("name", "") for cookie in await browser_context.cookies("http://site.test/")]
    await browser_context.add_cookies([{"name": str(number), "value": "x", "url": "http://site.test/"}])
    return sorted(seen)


@job
async def worker_submits(n: int) -> int:
    handle = await worker_add.submit(n, 1)
    return await handle.result(DEADLINE_S)


@job
async def worker_page(page: Page, ctx: Context, html: str) -> str:
    await page.set_content(html)
    await ctx.artifact("page.png", await page.screenshot())
    return await page.title()


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())
    runs.clear()


async def attempts_of(plane: ControlPlane, record_id: UUID) -> list[AttemptRecord]:
    return await plane.attempts(record_id)


async def test_results_are_returned_with_their_types(settings: CplaneSettings, plane: ControlPlane) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with running(settings):
        assert await (await worker_add.submit(1, y=3)).result() == 4
        mirrored = await (await worker_mirror.submit(Point(x=1), when, b"\xff\x00")).result()
        assert mirrored == (Point(x=1), when, b"\xff\x00")
        assert await (await worker_in_thread.submit(7)).result() == "thread 7"


async def test_many_jobs_run_once_each(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handles = await worker_add.submit_many({"x": x} for x in range(1500))
        results = await asyncio.gather(*(handle.result() for handle in handles))
    assert results == [x + 2 for x in range(1500)]
    assert {record.attempt for record in await plane.records(limit=200)} == {1}


async def test_a_failing_job_is_retried_and_every_attempt_records_its_error(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        handle = await worker_succeeds_on_third_attempt.submit()
        assert await handle.result() == 3
    attempts = await attempts_of(plane, handle.id)
    assert [(attempt.cause, attempt.state) for attempt in attempts] == [
        (Cause.SUBMIT, AttemptState.FAILED),
        (Cause.RETRY, AttemptState.FAILED),
        (Cause.RETRY, AttemptState.SUCCEEDED),
    ]
    assert attempts[0].error_type == "ValueError"
    assert attempts[0].error_message == "not yet: 1"
    assert attempts[0].error_traceback is not None
    first_frame = attempts[0].error_traceback.splitlines()[1]
    assert "worker_succeeds_on_third_attempt" in first_frame, "the traceback begins in the job's own code"


async def test_an_error_listed_in_never_fails_without_a_retry(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await worker_never_retried.submit()
        with pytest.raises(JobFailed, match="KeyError: 'gone'") as caught:
            await handle.result()
    assert caught.value.error_type == "KeyError"
    assert "worker_never_retried" in caught.value.traceback
    assert runs == [1]


async def test_a_job_that_raises_retry_runs_again(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        assert await (await worker_raises_retry.submit()).result() == 2


async def test_a_job_that_exceeds_its_timeout_fails(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await worker_too_slow.submit()
        with pytest.raises(JobFailed, match=r"longer than 0\.05 s"):
            await handle.result()
    assert [attempt.state for attempt in await attempts_of(plane, handle.id)] == [AttemptState.TIMED_OUT]
    assert gate.left == ["cancelled"]


@pytest.mark.parametrize(
    ("misbehaving", "message"),
    [
        (worker_exits, "the job raised SystemExit"),
        (worker_cancels_itself, "CancelledError"),
        (worker_returns_nonsense, "cannot be stored as JSON"),
    ],
)
async def test_a_misbehaving_job_fails_and_the_worker_keeps_running(
    settings: CplaneSettings, plane: ControlPlane, misbehaving: AnyJob, message: str
) -> None:
    async with running(settings):
        handle = await misbehaving.submit()
        with pytest.raises(JobFailed, match=message):
            await handle.result()
        assert await (await worker_add.submit(1)).result() == 3


async def test_a_browser_crash_uses_no_retry(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await worker_browser_gone_once.submit()
        assert await handle.result() == 2
    record = await plane.record(handle.id)
    assert (record.failures, record.interruptions) == (0, 1)
    assert "cplane/worker/" not in str((await attempts_of(plane, handle.id))[0].error_traceback)
    attempts = await attempts_of(plane, handle.id)
    assert [(attempt.cause, attempt.state) for attempt in attempts] == [
        (Cause.SUBMIT, AttemptState.INTERRUPTED),
        (Cause.INFRASTRUCTURE, AttemptState.SUCCEEDED),
    ]


async def test_a_queued_job_is_cancelled_immediately_and_never_runs(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await worker_gate.submit()
    assert await handle.cancel() is State.CANCELLED
    with pytest.raises(InvalidTransition, match="cancelled already"):
        await handle.cancel()
    async with running(settings) as worker:
        assert await (await worker_add.submit(1)).result() == 3
        with pytest.raises(JobCancelled):
            await handle.result()
        assert not gate.entered.is_set()
        await until_queue_empty(worker.plane)


async def test_a_running_job_is_cancelled_when_its_worker_is_notified(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        handle = await worker_gate.submit()
        await gate.entered.wait()
        assert await handle.cancel() is State.RUNNING
        with pytest.raises(JobCancelled):
            await handle.result()
    assert gate.left == ["cancelled"]
    assert [attempt.state for attempt in await attempts_of(plane, handle.id)] == [AttemptState.CANCELLED]


async def test_a_cancelled_job_can_be_replayed(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await worker_add.submit(1)
    await handle.cancel()
    await plane.retry(handle.id)
    async with running(settings):
        assert await handle.result() == 3
    assert [attempt.cause for attempt in await attempts_of(plane, handle.id)] == [Cause.REPLAY]


async def test_a_stopping_worker_requeues_its_jobs_without_counting_failures_or_crashes(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    no_drain = settings.model_copy(update={"drain_s": 0.0})
    handle = await worker_gate.submit()
    for _ in range(3):
        gate.entered.clear()
        async with running(no_drain):
            await gate.entered.wait()
    record = await plane.record(handle.id)
    assert (record.state, record.attempt, record.failures, record.crashes) == (State.QUEUED, 3, 0, 0)
    gate.open.set()
    async with running(settings):
        assert await handle.result() == "through"
    attempts = await attempts_of(plane, handle.id)
    assert [attempt.state for attempt in attempts] == [AttemptState.RELEASED] * 3 + [AttemptState.SUCCEEDED]
    assert [attempt.cause for attempt in attempts] == [Cause.SUBMIT] + [Cause.RELEASE] * 3


async def test_a_stopping_worker_lets_running_jobs_finish(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings) as worker:
        handle = await worker_gate.submit()
        await gate.entered.wait()
        worker.stop()
        gate.open.set()
    assert (await plane.record(handle.id)).state is State.SUCCEEDED


@pytest.mark.parametrize("job_under_test", [worker_gate, worker_transient_gate])
async def test_a_job_claimed_while_the_worker_stops_stays_in_the_queue(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, job_under_test: AnyJob
) -> None:
    nudge, handles = Queue.nudge, list[Handle[object]]()

    async def submit_then_nudge(queue: Queue, name: str) -> None:
        handles.append(await job_under_test.submit())
        await nudge(queue, name)

    monkeypatch.setattr(Queue, "nudge", submit_then_nudge)
    async with running(settings) as worker:
        await blocked(raw(plane), 1)
        worker.stop()
    assert not gate.entered.is_set()
    state = await plane.queue.read_job(str(handles[0].id))
    assert (state.leased, state.tries) == (False, 0)
    monkeypatch.setattr(Queue, "nudge", nudge)
    gate.open.set()
    async with running(settings):
        await until_queue_empty(plane)
    assert gate.left == ["passed"]


async def test_a_sleeping_worker_stops_even_if_redis_does_not_reply(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(queue: Queue, name: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Queue, "nudge", silent)
    monkeypatch.setattr("cplane.worker.poller.NUDGE_TIMEOUT_S", 0.05)
    async with running(settings) as worker:
        await blocked(raw(plane), 1)
        worker.stop()
    handle = await worker_add.submit(1)
    monkeypatch.undo()
    async with running(settings):
        assert await handle.result() == 3


async def test_an_attempt_that_lost_its_lease_is_cancelled_and_the_job_runs_again(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings.model_copy(update={"lease_s": 3.0})):
        handle = await worker_gate.submit()
        await gate.entered.wait()
        await expire_lease(plane, handle.id)
        while gate.left != ["cancelled"]:
            await asyncio.sleep(0.01)
        gate.open.set()
        assert await handle.result() == "through"
    record = await plane.record(handle.id)
    assert (record.attempt, record.crashes, record.suspicions) == (2, 0, 1)
    attempts = await attempts_of(plane, handle.id)
    assert [(attempt.cause, attempt.state) for attempt in attempts] == [
        (Cause.SUBMIT, AttemptState.LOST),
        (Cause.LOST, AttemptState.SUCCEEDED),
    ]


async def test_writes_of_a_job_are_committed_only_if_it_succeeds(settings: CplaneSettings, plane: ControlPlane) -> None:
    await make_notes(plane)
    async with running(settings):
        await (await worker_writes.submit("kept", fails=False)).result()
        with pytest.raises(JobFailed):
            await (await worker_writes.submit("undone", fails=True)).result()
    assert await notes(plane) == ["kept"]


async def test_writes_of_a_fenced_attempt_are_rolled_back(settings: CplaneSettings, plane: ControlPlane) -> None:
    await make_notes(plane)
    async with running(settings):
        handle = await worker_fenced_write.submit()
        await gate.entered.wait()
        await expire_lease(plane, handle.id)
        gate.open.set()
        await handle.result()
    assert await notes(plane) == ["fenced"], "written once, by the attempt that owned the record"
    assert (await plane.record(handle.id)).attempt == 2


async def test_files_and_progress_are_stored_with_the_record(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await worker_stores_files.submit()
        digest = await handle.result()
    record = await plane.record(handle.id)
    assert (record.progress_done, record.progress_total, record.progress_note) == (1, 2, "half")
    async with plane.open_artifact(handle.id, "note.txt") as (artifact, chunks):
        assert b"".join([chunk async for chunk in chunks]) == b"attempt 1"
        assert (artifact.size, artifact.sha256, artifact.media_type) == (9, digest, "text/plain")


async def test_a_job_can_submit_jobs(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        assert await (await worker_submits.submit(4)).result() == 5


async def test_jobs_with_shared_isolation_share_a_browser_context(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):
        seen = [await (await worker_shared.submit(number)).result(timeout=DEADLINE_S) for number in range(3)]
    assert seen == [[], ["0"], ["0", "1"]]


async def test_a_browser_job_gets_a_page(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        handle = await worker_page.submit("<title>hello</title>")
        assert await handle.result() == "hello"
    async with plane.open_artifact(handle.id, "page.png") as (artifact, chunks):
        assert (await anext(aiter(chunks))).startswith(b"\x89PNG")
        assert artifact.media_type == "image/png"


async def test_a_delayed_job_starts_when_it_is_due(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await worker_add.using(delay=timedelta(seconds=0.3)).submit(1)
        assert await handle.result() == 3
    record = await plane.record(handle.id)
    assert record.started_at is not None
    assert record.started_at >= record.run_at - timedelta(milliseconds=100)
    assert record.run_at - record.created_at >= timedelta(seconds=0.29)


async def test_a_job_missing_from_redis_is_scheduled_by_the_reconciler(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.RECONCILE_INTERVAL_S", 0.1)
    handle = await worker_add.submit(5)
    await cast("Awaitable[object]", plane.redis.flushdb())  # pyright: ignore[reportUnknownMemberType]
    async with running(settings):
        assert await handle.result() == 7


async def test_a_job_unknown_to_this_worker_is_requeued_with_a_delay(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    recorded, transient = str(new_id()), str(new_id())
    await plane.queue.enqueue([EnqueueRequest("default", recorded, record_envelope("worker_unknown"))])
    await plane.queue.enqueue([EnqueueRequest("default", transient, encode_envelope("worker_unknown", (1,)))])
    async with running(settings):
        assert await (await worker_add.submit(1)).result() == 3
    for job_id in (recorded, transient):
        due_ms = await plane.redis.zscore("arq:queue", job_id)
        assert due_ms is not None
        assert float(due_ms) > await plane.queue.now_ms(), "it is requeued with a delay"
        assert await plane.redis.exists(f"arq:job:{job_id}") == 1
    assert await plane.queue.depth("default") == 2
    assert await plane.dead_letters.newest() == []


async def test_an_entry_that_is_not_a_job_becomes_a_dead_letter(settings: CplaneSettings, plane: ControlPlane) -> None:
    pickle, recorded = str(new_id()), record_envelope("worker_add")
    await plane.queue.enqueue([EnqueueRequest("default", "not a uuid", recorded)])
    await plane.queue.enqueue([EnqueueRequest("default", pickle, b"\x80\x04pickle")])
    async with running(settings):
        assert await (await worker_add.submit(1)).result() == 3
        await until_queue_empty(plane)
    dead_letters = {entry.id: (entry.reason, entry.payload) for entry in await plane.dead_letters.newest()}
    assert dead_letters == {
        "not a uuid": ("'not a uuid' is not the id of a record", recorded),
        pickle: ("the payload is a pickle; an arq client needs cplane's serializer", b"\x80\x04pickle"),
    }


async def test_arguments_that_no_longer_fit_the_signature_fail_without_a_retry(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await worker_succeeds_on_third_attempt.submit()
    async with plane.database.session() as session:
        connection = await session.connection()
        await connection.execute(text("UPDATE cplane.jobs SET args = '{\"old\": 1}' WHERE id = :id"), {"id": handle.id})
    async with running(settings):
        with pytest.raises(JobFailed, match="do not fit: old"):
            await handle.result()
    assert runs == []


async def test_a_raising_hook_does_not_stop_the_worker(settings: CplaneSettings, plane: ControlPlane) -> None:
    seen: list[str] = []

    async def hook(ctx: dict[object, object]) -> None:
        seen.append(str(ctx.get("job_try", "worker")))
        raise RuntimeError("a hook that fails")

    async with running(settings, on_startup=hook, on_job_start=hook, after_job_end=hook, on_shutdown=hook):
        assert await (await worker_add.submit(1)).result() == 3
    assert seen == ["worker", "1", "1", "worker"]


async def test_a_burst_worker_exits_when_all_jobs_are_done(settings: CplaneSettings, plane: ControlPlane) -> None:
    from cplane.worker import Worker

    handles = await worker_add.submit_many({"x": x} for x in range(30))
    async with asyncio.timeout(DEADLINE_S):
        await Worker(settings=settings, handle_signals=False, burst=True).async_run()
    assert {(await plane.record(handle.id)).state for handle in handles} == {State.SUCCEEDED}


async def test_waiting_for_a_result_times_out_until_the_job_is_done(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await worker_add.submit(1)
    with pytest.raises(TimeoutError):
        await handle.result(timeout=0.05)
    async with running(settings):
        assert await handle.result() == 3
    assert await handle.result(timeout=1) == 3


def test_a_worker_with_an_unknown_import_is_refused_on_construction(settings: CplaneSettings) -> None:
    from cplane.errors import InvalidSettings
    from cplane.worker import Worker

    with pytest.raises(InvalidSettings, match="'no_such_module'"):
        Worker(settings=settings.model_copy(update={"imports": ("no_such_module",)}))


async def test_arguments_over_the_size_limit_are_refused(settings: CplaneSettings, plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments, match="the limit is 1048576"):
        await worker_page.submit("x" * 1_100_000)
    assert await plane.records() == []


def test_a_decorated_job_is_registered_under_its_name() -> None:
    assert registry.get("worker_add") is worker_add


async def expire_lease(plane: ControlPlane, record_id: UUID) -> None:
    """Expire a lease as if its worker had been frozen: reap the record, delete the Redis lease and requeue the job."""
    async with plane.database.session() as session:
        connection = await session.connection()
        await connection.execute(
            text("UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 s' WHERE id = :id"),
            {"id": record_id},
        )
    (reaped,) = await plane.store.reap(10)
    await plane.redis.delete(f"arq:in-progress:{record_id}")
    await plane.redis.zrem("arq:queue", str(record_id))
    await plane.queue.enqueue([EnqueueRequest.of_record(reaped.queue, reaped.priority, reaped.id, reaped.job, 0)])


async def make_notes(plane: ControlPlane) -> None:
    async with plane.database.session() as session:
        await (await session.connection()).execute(text("CREATE TABLE notes (value text)"))


async def notes(plane: ControlPlane) -> list[str]:
    async with plane.database.session() as session:
        return list((await (await session.connection()).execute(text("SELECT value FROM notes"))).scalars())


def test_a_cplane_error_is_described_without_cplane_frames(settings: CplaneSettings) -> None:
    from cplane.runtime.error_text import describe
    from cplane.worker.browser_pool import WorkerPages

    with pytest.raises(BrowserError) as caught:
        WorkerPages(settings).pool()
    error = caught.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # drop the frame of this test
    described = describe(error)
    assert (described.type, described.message) == ("BrowserError", "the browser is starting")
    assert described.traceback == "cplane.errors.BrowserError: the browser is starting\n"
