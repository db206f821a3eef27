"""One attempt of a job that misbehaves: it is stopped, abandoned or failed, and its worker keeps running."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from cplane import Context, ControlPlane, CplaneSettings, JobCancelled, JobFailed, RetryPolicy, State, job
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState
from cplane.redis.events import Event
from tests.workers import DEADLINE_S, Gate, running

RETRY_IMMEDIATELY = RetryPolicy(retries=1, backoff_s=0, jitter=0)


class UncancellableBody:
    """A job body that ignores cancellation until the test releases it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.released = asyncio.Event()
        self.finished = asyncio.Event()
        self.cancels = 0

    async def stay(self) -> str:
        self.entered.set()
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancels += 1
        self.finished.set()
        return "finished late"


uncancellable = UncancellableBody()
gate = Gate()
runs: list[int] = []


@job
async def attempt_add(x: int) -> int:
    return x + 1


@job(record=False)
async def attempt_transient_add(x: int) -> int:
    return x + 1


waiting = asyncio.Event()


@job(timeout=2)
async def attempt_waits() -> str:
    waiting.set()
    await asyncio.sleep(1.5)
    return "in time"


@job(timeout=2)
async def attempt_never_ends() -> None:
    await asyncio.sleep(3600)


@job
async def attempt_blocks_the_loop() -> None:
    time.sleep(2.5)  # noqa: ASYNC251  that is the point


@job(timeout=0.05)
async def attempt_ignores_its_timeout() -> str:
    return await uncancellable.stay()


@job(timeout=0.05, record=False)
async def attempt_transient_ignores_its_timeout() -> str:
    return await uncancellable.stay()


@job
async def attempt_ignores_a_cancel() -> str:
    return await uncancellable.stay()


@job(retries=RETRY_IMMEDIATELY)
async def attempt_cancels_itself(ctx: Context) -> None:
    runs.append(ctx.attempt)
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


@job(record=False, retries=RetryPolicy(retries=1, backoff_s=0, jitter=0, on=(BaseException,)))
async def attempt_transient_cancels_itself_once(ctx: Context) -> int:
    runs.append(ctx.attempt)
    if ctx.attempt == 1:
        raise asyncio.CancelledError
    return ctx.attempt


@job
async def attempt_awaits_a_cancelled_task() -> None:
    inner = asyncio.create_task(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


@job
async def attempt_exits(code: int) -> None:
    raise SystemExit(code)


@job(record=False)
async def attempt_transient_exits() -> None:
    raise KeyboardInterrupt


@job
def attempt_exits_in_a_thread() -> None:
    assert threading.current_thread() is not threading.main_thread()
    raise SystemExit(1)


@job(timeout=0.05)
async def attempt_slow_finally() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await gate.pass_through()


@job(timeout=0.05)
async def attempt_swallows_its_timeout() -> str:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "returned after the timeout"


@job(timeout=0.05)
async def attempt_raises_when_stopped() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("something else") from None


@job
async def attempt_unreadable_error() -> None:
    class Unreadable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    raise Unreadable


@job
async def attempt_long_error() -> None:
    raise ValueError("x\0" * 100_000)


@job
async def attempt_error_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


@job
async def attempt_reports_progress_often(ctx: Context, steps: int) -> int:
    for step in range(steps):
        await ctx.progress(step, steps, f"step {step}")
        if step % 1000 == 0:
            await asyncio.sleep(0)
    return steps


@pytest_asyncio.fixture(autouse=True)
async def fresh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setitem(globals(), "gate", Gate())
    monkeypatch.setitem(globals(), "uncancellable", UncancellableBody())
    monkeypatch.setattr("cplane.worker.attempt.CLEANUP_S", 0.1)
    monkeypatch.setattr("cplane.worker.runner.CLEANUP_S", 0.1)
    runs.clear()
    yield
    uncancellable.released.set()


async def assert_worker_runs_jobs(plane: ControlPlane) -> None:
    assert await (await attempt_add.submit(1)).result(DEADLINE_S) == 2
    assert await (await attempt_transient_add.submit(1)).result(DEADLINE_S) == 2
    assert await plane.queue.depth("default") in {0, 1}


def one_slot(settings: CplaneSettings) -> CplaneSettings:
    """Return settings with one slot: a slot that is not released blocks every later job."""
    return settings.model_copy(update={"queues": {"default": 1}})


@pytest.mark.parametrize("job_under_test", [attempt_ignores_its_timeout, attempt_transient_ignores_its_timeout])
async def test_a_job_that_ignores_its_timeout_is_abandoned_and_recorded_as_failed(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    async with running(one_slot(settings)):
        handle = await job_under_test.submit()
        with pytest.raises(JobFailed, match=r"JobTimeout: .* ran longer than 0\.05 s"):
            await handle.result(DEADLINE_S)
        assert not uncancellable.finished.is_set()
        await assert_worker_runs_jobs(plane)
        uncancellable.released.set()
        await uncancellable.finished.wait()
        await assert_worker_runs_jobs(plane)
        assert await handle.state() is State.FAILED, "its late return value is ignored"


async def test_time_in_which_the_loop_was_blocked_is_not_the_run_time_of_others(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings):
        innocent, endless = await attempt_waits.submit(), await attempt_never_ends.submit()
        await waiting.wait()
        await (await attempt_blocks_the_loop.submit()).result(DEADLINE_S)
        assert await innocent.result(DEADLINE_S) == "in time"
        with pytest.raises(JobFailed, match=r"JobTimeout: .* ran longer than 2 s"):
            await endless.result(DEADLINE_S)


async def test_a_job_that_ignores_a_cancel_is_abandoned_and_recorded_as_cancelled(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(one_slot(settings)):
        handle = await attempt_ignores_a_cancel.submit()
        await uncancellable.entered.wait()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
        await assert_worker_runs_jobs(plane)
        uncancellable.released.set()
        await uncancellable.finished.wait()
    assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.CANCELLED]


async def test_a_stopping_worker_abandons_and_requeues_a_job_that_ignores_cancellation(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings.model_copy(update={"drain_s": 0.0})):
        handle = await attempt_ignores_a_cancel.submit()
        await uncancellable.entered.wait()
    assert uncancellable.cancels >= 1
    assert (await plane.record(handle.id)).state is State.QUEUED
    uncancellable.released.set()
    await uncancellable.finished.wait()


async def test_a_job_that_cancels_itself_fails(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(one_slot(settings)):
        with pytest.raises(JobFailed, match="CancelledError"):
            await (await attempt_cancels_itself.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed, match="CancelledError"):
            await (await attempt_awaits_a_cancelled_task.submit()).result(DEADLINE_S)
        assert runs == [1], "a policy retries errors, and a cancellation is not an error"
        runs.clear()
        assert await (await attempt_transient_cancels_itself_once.submit()).result(DEADLINE_S) == 2
        await assert_worker_runs_jobs(plane)
    assert runs == [1, 2]


async def test_a_job_that_raises_system_exit_fails_without_stopping_the_worker(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(one_slot(settings)):
        with pytest.raises(JobFailed, match=r"RuntimeError: the job raised SystemExit\(3\)"):
            await (await attempt_exits.submit(3)).result(DEADLINE_S)
        with pytest.raises(JobFailed, match=r"the job raised KeyboardInterrupt"):
            await (await attempt_transient_exits.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed, match=r"the job raised SystemExit\(1\)"):
            await (await attempt_exits_in_a_thread.submit()).result(DEADLINE_S)
        await assert_worker_runs_jobs(plane)


async def test_the_worker_waits_for_a_slow_finally_block_that_ends(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.attempt.CLEANUP_S", DEADLINE_S)
    async with running(one_slot(settings)):
        handle = await attempt_slow_finally.submit()
        await gate.entered.wait()
        assert await handle.state() is State.RUNNING
        gate.open.set()
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)
    assert gate.left == ["passed"], "it was not cancelled a second time"
    assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.TIMED_OUT]


async def test_a_finally_block_that_does_not_end_is_cancelled_and_abandoned(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(one_slot(settings)):
        handle = await attempt_slow_finally.submit()
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)
        await assert_worker_runs_jobs(plane)
    assert gate.left == ["cancelled"]


@pytest.mark.parametrize("job_under_test", [attempt_swallows_its_timeout, attempt_raises_when_stopped])
async def test_a_timeout_fails_the_job_even_if_it_swallows_or_replaces_the_cancellation(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    async with running(one_slot(settings)):
        with pytest.raises(JobFailed, match="JobTimeout"):
            await (await job_under_test.submit()).result(DEADLINE_S)


async def test_unreadable_long_and_grouped_errors_are_recorded(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(one_slot(settings)):
        with pytest.raises(JobFailed, match="its message cannot be read"):
            await (await attempt_unreadable_error.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed) as caught:
            await (await attempt_long_error.submit()).result(DEADLINE_S)
        assert len(caught.value.traceback) < 40_000
        with pytest.raises(JobFailed, match="ExceptionGroup: several") as caught:
            await (await attempt_error_group.submit()).result(DEADLINE_S)
        assert "KeyError: 'two'" in caught.value.traceback
        await assert_worker_runs_jobs(plane)


async def test_frequent_progress_is_published_at_intervals_and_its_last_value_is_recorded(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.attempt.PROGRESS_INTERVAL_S", 3600.0)
    received: list[Event] = []
    async with running(settings):
        subscription = plane.events.follow()
        await anext(subscription)
        handle = await attempt_reports_progress_often.submit(20_000)
        async with asyncio.timeout(DEADLINE_S):
            async for events in subscription:
                received += [event for event in events if event.record_id == handle.id]
                if received and received[-1].state.final:
                    break
    assert [(event.state, event.data and event.data["done"]) for event in received if event.data or event.state.final] == [
        (State.RUNNING, 0), (State.SUCCEEDED, None),
    ]  # fmt: skip
    record = await plane.record(handle.id)
    assert (record.progress_done, record.progress_total, record.progress_note) == (19_999, 20_000, "step 19999")
