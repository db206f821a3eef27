"""Plain arq on a cplane worker: arq functions, hooks, cron jobs and clients, and an arq worker on the same queue."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arq
import pytest
import pytest_asyncio
from arq import cron, func
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus
from arq.worker import Retry as ArqRetry

from cplane import ControlPlane, CplaneSettings, JobFailed, Retry, job
from cplane.errors import JobCancelled
from cplane.redis.envelope import deserialize, serialize
from cplane.redis.queue import Queue
from cplane.worker import Worker
from tests.workers import DEADLINE_S, Gate, raw, running, until_queue_empty

Ctx = dict[str, Any]

gate = Gate()
seen: list[Any] = []


async def plain_add(ctx: Ctx, x: int, y: int = 2) -> int:
    return x + y


async def plain_ctx(ctx: Ctx) -> list[str]:
    seen.append(ctx)
    return sorted(ctx)


async def plain_gate(ctx: Ctx) -> str:
    await gate.pass_through()
    return "through"


async def plain_fails(ctx: Ctx) -> None:
    seen.append(ctx["job_try"])
    raise ValueError("the reason")


async def plain_third_try(ctx: Ctx) -> int:
    seen.append(ctx["job_try"])
    if ctx["job_try"] < 3:
        raise ArqRetry(defer=0.01)
    return int(ctx["job_try"])


async def plain_raises_cplane_retry(ctx: Ctx) -> int:
    if ctx["job_try"] < 2:
        raise Retry(delay=0.01)
    return int(ctx["job_try"])


async def plain_counts(ctx: Ctx, n: int) -> int:
    seen.append(n)
    return n


async def plain_returns_nonsense(ctx: Ctx) -> object:
    return object()


async def plain_submits(ctx: Ctx) -> str:
    queued = await ctx["redis"].enqueue_job("plain_add", 3, _job_id="from inside")
    return str(queued.job_id)


@job
async def functions_recorded(x: int) -> int:
    return x + 1


FUNCTIONS = [
    plain_add,
    plain_ctx,
    plain_gate,
    plain_fails,
    func(plain_third_try, name="third", max_tries=3),
    func(plain_third_try, name="two_only", max_tries=2),
    plain_raises_cplane_retry,
    plain_counts,
    plain_returns_nonsense,
    plain_submits,
    func(plain_gate, name="hasty", timeout=0.05),
    func(plain_add, name="kept", keep_result=60),
    func(plain_add, name="kept_for_ever", keep_result_forever=True),
    func(plain_add, name="forgotten", keep_result=0),
    functions_recorded,
]


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())
    monkeypatch.setattr("cplane.worker.poller.POLL_INTERVAL_S", 0.02)  # arq's clients do not wake a sleeping worker
    seen.clear()


@pytest_asyncio.fixture
async def client(plane: ControlPlane) -> ArqRedis:
    """arq's own client, with the serializer that cplane requires of it."""
    pool: Any = plane.redis.connection_pool
    return ArqRedis(pool, job_serializer=serialize, job_deserializer=deserialize)


async def enqueue(client: ArqRedis, function: str, *args: object, **options: Any) -> ArqJob:
    queued = await client.enqueue_job(function, *args, **options)
    assert queued is not None
    return queued


async def result(queued: ArqJob) -> Any:
    return await queued.result(timeout=DEADLINE_S, poll_delay=0.01)


async def test_an_arq_client_receives_the_results_of_arq_functions(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    async with running(settings, functions=FUNCTIONS):
        assert await result(await enqueue(client, "plain_add", 1, y=3)) == 4
        assert await result(await enqueue(client, "plain_add", 1, _defer_by=0.05)) == 3
        assert await (await functions_recorded.submit(1)).result(DEADLINE_S) == 2
        queued = await enqueue(client, "plain_add", 5)
        assert await result(queued) == 7
        info = await queued.result_info()
        assert info is not None
        assert (info.function, list(info.args), info.success, info.job_try, info.queue_name) == (
            "plain_add", [5], True, 1, "arq:queue",
        )  # fmt: skip
        assert info.enqueue_time <= info.finish_time
        assert await queued.status() is JobStatus.complete
        assert len(await client.all_job_results()) == 3
    assert await plane.queue.depth("default") == 0


async def test_an_arq_client_can_call_a_cplane_job_without_creating_a_record(
    settings: CplaneSettings, client: ArqRedis
) -> None:
    async with running(settings):
        assert await result(await enqueue(client, "functions_recorded", 4)) == 5
        with pytest.raises(JobFailed, match="InvalidArguments"):
            await result(await enqueue(client, "functions_recorded", "four"))


async def test_the_ctx_of_an_arq_function_has_arqs_entries(settings: CplaneSettings, client: ArqRedis) -> None:
    async with running(settings, functions=FUNCTIONS, ctx={"mine": 7}):
        before = datetime.now(UTC)
        queued = await enqueue(client, "plain_ctx", _job_id="an id")
        names = await result(queued)
        assert {"enqueue_time", "job_id", "job_try", "mine", "redis", "score"} <= set(names)
        (ctx,) = seen
        assert (ctx["job_id"], ctx["job_try"], ctx["mine"]) == ("an id", 1, 7)
        assert isinstance(ctx["redis"], ArqRedis)
        assert abs((ctx["enqueue_time"] - before).total_seconds()) < 20
        assert abs(ctx["score"] - before.timestamp() * 1000) < 20_000
        assert await result(await enqueue(client, "plain_submits")) == "from inside"
        assert await result(ArqJob("from inside", client, _deserializer=deserialize)) == 5


async def test_a_failure_is_reported_with_its_error_type_message_and_traceback(
    settings: CplaneSettings, client: ArqRedis
) -> None:
    async with running(settings, functions=FUNCTIONS):
        with pytest.raises(JobFailed, match="job 'plain_fails' failed with ValueError: the reason") as caught:
            await result(await enqueue(client, "plain_fails"))
        assert "plain_fails" in caught.value.traceback
        with pytest.raises(JobFailed, match="JobTimeout"):
            await result(await enqueue(client, "hasty"))
        with pytest.raises(JobFailed, match="cannot be kept"):
            await result(await enqueue(client, "plain_returns_nonsense"))
    assert seen == [1], "arq retries a function only if it raises Retry"


async def test_raising_retry_reruns_a_function_up_to_max_tries(settings: CplaneSettings, client: ArqRedis) -> None:
    async with running(settings, functions=FUNCTIONS) as worker:
        assert await result(await enqueue(client, "third")) == 3
        assert seen == [1, 2, 3]
        seen.clear()
        assert await result(await enqueue(client, "plain_raises_cplane_retry")) == 2
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (2, 0, 3)


@pytest.mark.parametrize("worker_kind", ["cplane", "arq"])
async def test_raising_retry_on_the_last_try_fails_as_under_arqs_own_worker(
    settings: CplaneSettings, client: ArqRedis, worker_kind: str
) -> None:
    queued = await enqueue(client, "two_only")
    worker: Worker | arq.Worker
    if worker_kind == "cplane":
        async with running(settings, functions=FUNCTIONS) as worker:
            with pytest.raises(JobFailed):
                await result(queued)
    else:
        worker = arq.Worker(
            [func(plain_third_try, name="two_only", max_tries=2)], redis_pool=client, burst=True, poll_delay=0.01, handle_signals=False,
            job_serializer=serialize, job_deserializer=deserialize,
        )  # fmt: skip
        await worker.async_run()
    with pytest.raises(JobFailed, match="'two_only' failed with JobExecutionFailed: max 2 retries exceeded"):
        await result(queued)
    info = await queued.result_info()
    assert info is not None
    assert (info.success, info.job_try) == (False, 3)
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (0, 1, 2)
    assert seen == [1, 2]


async def test_a_function_that_used_all_its_tries_is_not_run(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    queued = await enqueue(client, "two_only")
    await client.set(f"arq:retry:{queued.job_id}", 2)
    async with running(settings, functions=FUNCTIONS):
        with pytest.raises(JobFailed, match="max 2 retries exceeded"):
            await result(queued)
    assert seen == []


async def test_keep_result_options_set_the_ttl_of_results(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    async with running(settings, functions=FUNCTIONS, keep_result=120):
        jobs = {name: await enqueue(client, name, 1) for name in ("kept", "kept_for_ever", "forgotten", "plain_add")}
        await until_queue_empty(plane)
    ttl_ms = {name: await client.pttl(f"arq:result:{queued.job_id}") for name, queued in jobs.items()}
    assert 50_000 < ttl_ms["kept"] <= 60_000
    assert ttl_ms["kept_for_ever"] == -1
    assert ttl_ms["forgotten"] == -2
    assert 110_000 < ttl_ms["plain_add"] <= 120_000


async def test_a_kept_result_prevents_enqueueing_the_same_id_as_under_arq(
    settings: CplaneSettings, client: ArqRedis
) -> None:
    async with running(settings, functions=FUNCTIONS):
        await result(await enqueue(client, "plain_add", 1, _job_id="once"))
        assert await client.enqueue_job("plain_add", 1, _job_id="once") is None


async def test_an_arq_client_reads_the_status_of_queued_and_running_jobs(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    queued = await enqueue(client, "plain_gate")
    assert await queued.status() is JobStatus.queued
    info = await queued.info()
    assert info is not None
    assert info.function == "plain_gate"
    async with running(settings, functions=FUNCTIONS):
        await gate.entered.wait()
        assert await queued.status() is JobStatus.in_progress
        gate.open.set()
        assert await result(queued) == "through"
        assert await queued.status() is JobStatus.complete


async def test_arqs_abort_cancels_running_and_queued_jobs(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.ABORT_INTERVAL_S", 0.02)
    queued_job = await enqueue(client, "plain_counts", 1)
    assert not await abort(queued_job, timeout=0)
    async with running(settings, functions=FUNCTIONS, allow_abort_jobs=True):
        with pytest.raises(JobCancelled):
            await result(queued_job)
        running_job = await enqueue(client, "plain_gate")
        await gate.entered.wait()
        await abort(running_job, timeout=0)
        with pytest.raises(JobCancelled):
            await result(running_job)
        assert await result(await enqueue(client, "plain_counts", 2)) == 2
    assert seen == [2]
    assert gate.left == ["cancelled"]
    assert await client.exists("arq:abort") == 0


async def abort(queued: ArqJob, timeout: float) -> bool:
    """Return the result of arq's `Job.abort`, or False on a timeout or on `JobCancelled`, which arq does not expect."""
    try:
        return await queued.abort(timeout=timeout, poll_delay=0.01)
    except (TimeoutError, JobCancelled):
        return False


async def test_hooks_run_in_arqs_order_and_a_raising_hook_does_not_stop_the_worker(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    calls: list[tuple[str, Any, Any]] = []
    after = asyncio.Event()

    def hook(name: str) -> Any:
        async def run(ctx: Ctx) -> None:
            calls.append((name, ctx.get("job_id"), ctx.get("job_try")))
            if name == "on_startup":
                ctx["opened"] = True
            assert ctx["opened"]
            if name == "after_job_end":
                after.set()
            raise RuntimeError(f"{name} fails")

        return run

    names = ("on_startup", "on_job_start", "on_job_end", "after_job_end", "on_shutdown")
    async with (
        running(settings, functions=FUNCTIONS, **{name: hook(name) for name in names}),
        asyncio.timeout(DEADLINE_S),
    ):
        assert await result(await enqueue(client, "plain_add", 1, _job_id="a")) == 3
        await after.wait()
        assert await (await functions_recorded.submit(1)).result(DEADLINE_S) == 2
    assert calls[0] == ("on_startup", None, None)
    assert calls[-1] == ("on_shutdown", None, None)
    assert [call for call in calls if call[1] == "a"] == [
        ("on_job_start", "a", 1), ("on_job_end", "a", 1), ("after_job_end", "a", 1),
    ]  # fmt: skip
    assert len(calls) == 8, "hooks run for recorded jobs too"


async def test_a_job_cancelled_while_its_start_hook_runs_releases_its_slot(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.attempt.CLEANUP_S", 0.05)

    async def on_job_start(ctx: Ctx) -> None:
        if not gate.entered.is_set():
            await gate.pass_through()

    one = settings.model_copy(update={"queues": {"default": 1}})
    async with running(one, functions=FUNCTIONS, on_job_start=on_job_start):
        handle = await functions_recorded.submit(1)
        await gate.entered.wait()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
        assert await (await functions_recorded.submit(1)).result(DEADLINE_S) == 2


async def test_a_stopping_worker_requeues_a_plain_function_without_using_a_try(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    queued = await enqueue(client, "plain_gate")
    for _ in range(7):  # more often than max_tries allows
        gate.entered.clear()
        async with running(settings.model_copy(update={"drain_s": 0.0}), functions=FUNCTIONS):
            await gate.entered.wait()
    gate.open.set()
    async with running(settings, functions=FUNCTIONS):
        assert await result(queued) == "through"


# cron


async def test_a_cron_job_with_run_at_startup_runs_once_across_two_workers(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async def tick(ctx: Ctx) -> None:
        seen.append(ctx["job_id"])

    jobs = [cron(tick, name="tick", hour=0, minute=0, second=0, run_at_startup=True)]
    async with running(settings, cron_jobs=jobs), running(settings, cron_jobs=[*jobs]), asyncio.timeout(DEADLINE_S):
        while not seen:
            await asyncio.sleep(0.01)
        await until_queue_empty(plane)
    assert len(seen) == 1
    assert await raw(plane).keys("arq:result:*") == [], "a cron job keeps no result by default"


async def test_a_cron_job_fires_once_per_scheduled_time_across_two_workers(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async def every_second(ctx: Ctx) -> None:
        seen.append(ctx["job_id"])

    jobs = [cron(every_second, name="every", second=set(range(60)))]
    async with running(settings, cron_jobs=jobs), running(settings, cron_jobs=[*jobs]), asyncio.timeout(DEADLINE_S):
        while len(seen) < 3:
            await asyncio.sleep(0.01)
    assert len(set(seen)) == len(seen)


# burst


async def test_a_burst_worker_exits_when_the_queue_is_empty(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    for n in range(20):
        await enqueue(client, "plain_counts", n)
    await functions_recorded.submit(1)
    await run_until_exit(settings, burst=True)
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("max_burst_jobs", [0, 1, 7])
async def test_a_burst_worker_starts_at_most_max_burst_jobs(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis, max_burst_jobs: int
) -> None:
    for n in range(20):
        await enqueue(client, "plain_counts", n)
    await run_until_exit(settings, burst=True, max_burst_jobs=max_burst_jobs)
    assert len(seen) == max_burst_jobs
    assert await plane.queue.depth("default") == 20 - max_burst_jobs


async def run_until_exit(settings: CplaneSettings, **options: Any) -> None:
    """Run a worker until it exits by itself."""
    settings = settings.model_copy(update={"queues": {"default": 4}})
    async with asyncio.timeout(DEADLINE_S):
        await Worker(FUNCTIONS, settings=settings, handle_signals=False, **options).async_run()


async def test_max_burst_jobs_has_no_effect_without_burst(settings: CplaneSettings, client: ArqRedis) -> None:
    async with running(settings, functions=FUNCTIONS, max_burst_jobs=1):
        for n in range(3):
            assert await result(await enqueue(client, "plain_counts", n)) == n


# a plain arq worker on the same queue

PLAIN_WORKER = """
import asyncio, sys
from arq.connections import RedisSettings
from arq.worker import Worker
import msgspec

async def plain_counts(ctx, n):
    await ctx["redis"].rpush("ran", f"{n} arq")
    await asyncio.sleep(0)
    return n

assert "cplane" not in sys.modules
async def main():
    worker = Worker(
        [plain_counts], redis_settings=RedisSettings.from_dsn(sys.argv[1]), poll_delay=0.01, handle_signals=False, max_jobs=4,
        job_serializer=msgspec.msgpack.encode, job_deserializer=msgspec.msgpack.decode,
    )
    await worker.async_run()

asyncio.run(main())
"""


@asynccontextmanager
async def plain_worker(settings: CplaneSettings, folder: Path) -> AsyncGenerator[None]:
    """A process that runs arq's own worker and does not import cplane."""
    program = folder / "plain_worker.py"
    program.write_text(PLAIN_WORKER)
    process = await asyncio.create_subprocess_exec(sys.executable, program, settings.redis_url.get_secret_value())
    try:
        yield
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_cplane_worker_and_an_arq_worker_share_a_queue_and_each_job_runs_once(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis, tmp_path: Path
) -> None:
    async def plain_counts(ctx: Ctx, n: int) -> int:
        await ctx["redis"].rpush("ran", f"{n} cplane")
        return n

    shared = func(plain_counts, name="plain_counts")
    count, ran = 0, list[str]()
    async with plain_worker(settings, tmp_path), running(settings, functions=[shared]):
        while {entry.split()[1] for entry in ran} != {"cplane", "arq"}:
            batch = [await enqueue(client, "plain_counts", count + n) for n in range(20)]
            count += len(batch)
            for queued in batch:
                await result(queued)
            ran = [entry.decode() for entry in await raw(plane).lrange("ran", 0, -1)]
    assert sorted(int(entry.split()[0]) for entry in ran) == list(range(count))


def test_arqs_worker_module_exports_the_cplane_worker() -> None:
    assert arq.worker.Worker is Worker
    assert arq.Worker is not Worker, "`arq.Worker` is still arq's own class"


async def test_the_queue_reports_whether_a_plain_job_is_queued_and_leased(
    client: ArqRedis, plane: ControlPlane
) -> None:
    queued = await enqueue(client, "plain_add", 1)
    assert await Queue(plane.redis).presence(queued.job_id) == (True, False)
    (lease,) = (await plane.queue.claim("default", 1, 30)).leases
    assert lease.id == queued.job_id
    assert await plane.queue.presence(queued.job_id) == (True, True)
