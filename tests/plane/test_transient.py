"""Transient jobs (`record=False`): arq's keys in Redis alone, from submit to the kept result."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

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
from cplane.jobs.states import MAX_CRASHES
from cplane.redis.envelope import KeptResult, decode_envelope, decode_result, encode, encode_envelope
from cplane.redis.messages import Ack, AckResult, EnqueueRequest, Lease, Renewal
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id
from tests.workers import DEADLINE_S, Gate, kept_result, raw, running

AT_ONCE = RetryPolicy(retries=2, backoff_s=0, jitter=0)

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
async def transient_forgotten(*, fails: bool = False) -> int:
    if fails:
        raise ValueError("the reason")
    return 1


@job(record=False)
async def transient_fails() -> None:
    raise ValueError("the reason")


@job(record=False, retries=AT_ONCE)
async def transient_third_time(ctx: Context) -> int:
    runs.append(ctx.attempt)
    if ctx.attempt < 3:
        raise ValueError(f"not yet: {ctx.attempt}")
    return ctx.attempt


@job(record=False, retries=AT_ONCE)
async def transient_always_fails(ctx: Context) -> None:
    runs.append(ctx.attempt)
    raise ValueError(f"never: {ctx.attempt}")


@job(record=False, retries=1)
async def transient_asks_again(ctx: Context) -> int:
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
async def transient_leaves_a_file(ctx: Context) -> None:
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


async def lose_lease(plane: ControlPlane, job_id: UUID) -> None:
    """As if the lease had ended without its worker, a minute ago."""
    await raw(plane).delete(f"arq:in-progress:{job_id}")
    await raw(plane).zincrby("arq:queue", -90_000, str(job_id))


async def test_results_come_back_typed_and_leave_no_record(settings: CplaneSettings, plane: ControlPlane) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with running(settings):
        handle = await transient_add.submit(1, y=3)
        assert await handle.result(DEADLINE_S) == 4
        assert await handle.state() is State.SUCCEEDED
        box = Box(label="ünd", sides=(1, 2))
        assert await (await transient_box.submit(box, when, b"\xff\x00")).result(DEADLINE_S) == (box, when, b"\xff\x00")
        nothing: Handle[None] = await transient_nothing.submit()
        await nothing.result(DEADLINE_S)
        assert await nothing.state() is State.SUCCEEDED
    assert await plane.records() == []
    assert await plane.queue.depth("default") == 0


async def test_a_batch_runs_each_once(settings: CplaneSettings, plane: ControlPlane) -> None:
    handles = await transient_add.submit_many({"x": x} for x in range(1200))
    async with running(settings):
        results = await asyncio.gather(*(handle.result(DEADLINE_S) for handle in handles))
    assert results == [x + 2 for x in range(1200)]
    assert await plane.queue.depth("default") == 0
    assert await transient_add.submit_many([]) == []


async def test_a_result_is_pushed_to_who_waits_for_it(
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
    assert "transient_fails" in caught.value.traceback.splitlines()[1], "it begins in the job's own code"


async def test_a_failing_job_is_retried_as_its_policy_says(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        assert await (await transient_third_time.submit()).result(DEADLINE_S) == 3
        assert await (await transient_asks_again.submit()).result(DEADLINE_S) == 2
        assert runs == [1, 2, 3]
        runs.clear()
        with pytest.raises(JobFailed, match="ValueError: never: 3"):
            await (await transient_always_fails.submit()).result(DEADLINE_S)
    assert runs == [1, 2, 3]


async def test_what_a_job_has_spent_travels_in_its_envelope(settings: CplaneSettings, plane: ControlPlane) -> None:
    job_id = str(new_id())
    spent = encode_envelope("transient_always_fails", (), {}, failures=1, interruptions=1)
    await plane.queue.enqueue([EnqueueRequest("default", job_id, spent)])
    async with running(settings):
        await kept_result(plane, job_id)
    assert runs == [1, 2], "one of its two retries was spent before"


async def test_an_interruption_costs_no_retry(
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


async def test_a_job_that_outlives_its_timeout_fails(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match=r"JobTimeout: 'transient_too_slow' ran longer than 0\.05 s"):
            await (await transient_too_slow.submit()).result(DEADLINE_S)
    assert gate.left == ["cancelled"]


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(settings: CplaneSettings, plane: ControlPlane) -> None:
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


async def test_a_running_job_is_cancelled_when_its_worker_hears_of_it(
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
    assert await raw(plane).exists("arq:abort") == 0, "the next job of that id would be cancelled too"


async def test_a_cancel_that_waits_for_a_dead_worker_is_followed_by_the_next(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    handle = await transient_gate.submit()
    await plane.queue.claim("default", 1, 30)
    assert await handle.cancel() is State.RUNNING
    await lose_lease(plane, handle.id)
    async with running(settings):
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
    assert not gate.entered.is_set()


async def test_a_result_is_kept_for_as_long_as_the_job_says(settings: CplaneSettings, plane: ControlPlane) -> None:
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


async def test_a_job_without_a_record_takes_no_key(plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments, match="'transient_add' keeps no record that a key could lead to"):
        transient_add.using(key="k")
    with pytest.raises(InvalidArguments, match="keeps no record"):
        await plane.create_job("transient_add", {"x": 1}, key="k")
    assert await raw(plane).keys("arq:*") == []


async def test_a_job_waits_until_it_is_due(settings: CplaneSettings, plane: ControlPlane) -> None:
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


async def test_a_job_whose_workers_die_is_poison_after_some(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await transient_gate.submit()
    for _ in range(MAX_CRASHES):
        (lease,) = (await plane.queue.claim("default", 1, 30)).leases
        assert lease.id == str(handle.id)
        await lose_lease(plane, handle.id)
    async with running(settings):
        with pytest.raises(JobFailed, match=r"WorkerLost: its workers died or lost their leases \(3 of 3\)"):
            await handle.result(DEADLINE_S)
    assert not gate.entered.is_set()


async def test_all_that_one_claim_brought_are_kept_leased(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, wanted, all_renewed = set[str](), set[str](), asyncio.Event()
    renew = Queue.renew

    async def noting(queue: Queue, leases: Sequence[Lease], lease_s: float) -> list[Renewal]:
        answers = await renew(queue, leases, lease_s)
        renewed.update(g.id for g, answer in zip(leases, answers, strict=True) if answer is Renewal.RENEWED)
        if wanted <= renewed:
            all_renewed.set()
        return answers

    monkeypatch.setattr(Queue, "renew", noting)
    handles = [await transient_gate.submit() for _ in range(3)]
    wanted.update(str(handle.id) for handle in handles)
    async with running(settings.model_copy(update={"lease_s": 4.0})), asyncio.timeout(DEADLINE_S):
        await all_renewed.wait()
        gate.open.set()
        assert [await handle.result() for handle in handles] == ["through"] * 3
    assert gate.left == ["passed"] * 3, "each ran once"


async def test_one_worker_less_than_that_is_survived(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await transient_add.submit(1)
    for _ in range(MAX_CRASHES - 1):
        await plane.queue.claim("default", 1, 30)
        await lose_lease(plane, handle.id)
    async with running(settings):
        assert await handle.result(DEADLINE_S) == 3


async def test_workers_that_do_not_know_a_job_cost_it_nothing(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.triage.UNKNOWN_JOB_DELAY_S", 0.001)
    job_id, returns, often = str(new_id()), list[Ack](), asyncio.Event()
    ack = Queue.ack

    async def noting(queue: Queue, group: Sequence[Ack]) -> list[AckResult]:
        answers = await ack(queue, group)
        returns.extend(group)
        if len(returns) > MAX_CRASHES + 3:
            often.set()
        return answers

    monkeypatch.setattr(Queue, "ack", noting)
    await plane.queue.enqueue([EnqueueRequest("default", job_id, encode_envelope("transient_unheard_of"))])
    async with running(settings), asyncio.timeout(DEADLINE_S):
        await often.wait()
    lease = await due_again(plane)
    assert (lease.id, lease.tries) == (job_id, 1)


async def due_again(plane: ControlPlane) -> Lease:
    """What is claimed when something falls due."""
    async with asyncio.timeout(DEADLINE_S):
        while not (claim := await plane.queue.claim("default", 1, 30)).leases:
            await asyncio.sleep(0.001)
    return claim.leases[0]


async def test_a_stopping_worker_hands_its_jobs_back_and_spends_nothing(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    hasty = settings.model_copy(update={"drain_s": 0.0})
    handle = await transient_gate.submit()
    for _ in range(MAX_CRASHES + 1):
        gate.entered.clear()
        async with running(hasty):
            await gate.entered.wait()
    assert await handle.state() is State.QUEUED
    gate.open.set()
    async with running(settings):
        assert await handle.result(DEADLINE_S) == "through"


async def test_an_attempt_that_lost_its_lease_leaves_no_result(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings.model_copy(update={"lease_s": 3.0})):
        handle = await transient_gate.submit()
        await gate.entered.wait()
        await raw(plane).set(f"arq:in-progress:{handle.id}", "another", px=60_000)
        async with asyncio.timeout(DEADLINE_S):
            while gate.left != ["cancelled"]:
                await asyncio.sleep(0.01)
    assert await raw(plane).get(f"arq:in-progress:{handle.id}") == b"another"
    assert await raw(plane).exists(f"arq:result:{handle.id}") == 0


async def test_writes_are_committed_with_success_only(settings: CplaneSettings, plane: ControlPlane) -> None:
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


async def test_a_job_without_a_record_keeps_no_files_and_says_so(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match="a job without a record keeps no files") as caught:
            await (await transient_leaves_a_file.submit()).result(DEADLINE_S)
    assert caught.value.error_type == "InvalidArguments"


async def test_a_result_that_is_not_json_fails_without_a_retry(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        with pytest.raises(JobFailed, match="cannot be stored as JSON") as caught:
            await (await transient_returns_nonsense.submit()).result(DEADLINE_S)
    assert caught.value.error_type == "ResultNotSerializable"


async def test_arguments_are_checked_when_submitted_and_when_run(settings: CplaneSettings, plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments):
        await transient_add.submit("no number")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArguments, match="the limit is"):
        await plane.create_job(
            "transient_box", {"box": {"label": "x" * 1_100_000, "sides": [1, 2]}, "when": 0, "raw": ""}
        )
    job_id = new_id()
    await plane.queue.enqueue(
        [EnqueueRequest("default", str(job_id), encode_envelope("transient_add", ("no number",)))]
    )
    async with running(settings):
        failed = decode_result(await kept_result(plane, str(job_id)))
    assert not failed.s
    assert failed.r.type == "InvalidArguments"
    assert failed.t == 1


async def test_a_redis_that_is_away_is_told_at_once(settings: CplaneSettings) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    async with ControlPlane(away):
        with pytest.raises(QueueUnavailable, match="Redis did not respond while scheduling jobs"):
            await transient_add.submit(1)
        with pytest.raises(QueueUnavailable):
            await transient_add.submit_many([{"x": 1}])
        with pytest.raises(QueueUnavailable):
            await transient_add.using(at=datetime.now(UTC) + timedelta(1)).submit(1)


async def test_a_job_that_keeps_no_result_leaves_nothing_but_its_failure(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    done = await transient_forgotten.submit()
    failed = await transient_forgotten.submit(fails=True)
    with pytest.raises(InvalidTransition, match="'transient_forgotten' keeps no result that could be waited for"):
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


async def test_a_job_that_keeps_no_result_tells_of_its_cancel(plane: ControlPlane) -> None:
    handle = await transient_forgotten.submit()
    assert await handle.cancel() is State.CANCELLED
    assert await handle.state() is State.CANCELLED


@pytest_asyncio.fixture
async def blind(settings: CplaneSettings, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A plane whose Postgres is away."""
    nobody = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    async with ControlPlane(settings.model_copy(update={"database_url": nobody})) as plane:
        yield plane


async def test_without_postgres_redis_answers_for_its_jobs(settings: CplaneSettings, blind: ControlPlane) -> None:
    handle = await transient_add.submit(1)
    queued = await blind.job(handle.id)
    assert (queued.state, queued.job, queued.args) == (State.QUEUED, "transient_add", {"x": 1})
    waiting = asyncio.create_task(blind.wait(handle.id, DEADLINE_S))
    async with running(settings):
        assert (await waiting).result == 3
    for ended in (await blind.job(handle.id), await blind.wait(handle.id, DEADLINE_S)):
        assert (ended.state, ended.result) == (State.SUCCEEDED, 3)
    with pytest.raises(InvalidTransition):
        await blind.cancel(handle.id)
    assert await blind.cancel((await transient_add.submit(1)).id) is State.CANCELLED


async def test_without_postgres_nothing_is_said_of_records_and_unknown_ids(
    settings: CplaneSettings, blind: ControlPlane
) -> None:
    async with ControlPlane(settings) as seeing:
        recorded = await seeing.create_job("transient_recorded", {})
    for job_id in (recorded.id, new_id()):
        for call in (blind.job(job_id), blind.wait(job_id, DEADLINE_S), blind.cancel(job_id)):
            with pytest.raises(DatabaseUnavailable, match="Postgres did not respond"):
                await call
    assert await blind.queue.depth("default") == 1


async def test_without_both_servers_it_is_postgres_that_is_missed(settings: CplaneSettings, tmp_path: Path) -> None:
    nobody = SecretStr(f"postgresql://nobody@/nothing?host={tmp_path}")
    away = {"database_url": nobody, "redis_url": SecretStr(f"unix://{tmp_path}/nobody.sock")}
    async with ControlPlane(settings.model_copy(update=away)) as plane:
        with pytest.raises(DatabaseUnavailable):
            await plane.job(new_id())


async def test_without_postgres_a_lost_event_is_made_good(blind: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.plane.waiters.POLL_INTERVAL_S", 0.05)
    handle = await transient_add.submit(1)
    waiting = asyncio.create_task(blind.wait(handle.id, DEADLINE_S))
    while not await raw(blind).exists("cplane:events:subscribed"):
        await asyncio.sleep(0.005)
    kept = KeptResult(1, "transient_add", (), {"x": 1}, 1, True, 3, 1, 1, "arq:queue", str(handle.id))
    await blind.queue.abort("default", str(handle.id), encode(kept), 60)  # it has ended, and nobody was told
    assert (await waiting).result == 3
