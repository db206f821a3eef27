"""One run of a job that does not behave: it is stopped, left behind or failed, and its worker goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from cplane import Context, ControlPlane, CplaneSettings, JobCancelled, JobFailed, RetryPolicy, State, job
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState
from cplane.redis.events import Event
from tests.workers import DEADLINE_S, Gate, running

AT_ONCE = RetryPolicy(retries=1, backoff_s=0, jitter=0)


class Stubborn:
    """A job that ignores that it was stopped, until the test lets it go."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.free = asyncio.Event()
        self.gone = asyncio.Event()
        self.cancels = 0

    async def stay(self) -> str:
        self.entered.set()
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                self.cancels += 1
        self.gone.set()
        return "after all"


stubborn = Stubborn()
gate = Gate()
runs: list[int] = []


@job
async def attempt_add(x: int) -> int:
    return x + 1


@job(record=False)
async def attempt_transient_add(x: int) -> int:
    return x + 1


@job(timeout=0.05)
async def attempt_ignores_its_timeout() -> str:
    return await stubborn.stay()


@job(timeout=0.05, record=False)
async def attempt_transient_ignores_its_timeout() -> str:
    return await stubborn.stay()


@job
async def attempt_ignores_a_cancel() -> str:
    return await stubborn.stay()


@job(retries=AT_ONCE)
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
async def attempt_cancelled_from_inside() -> None:
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
    return "as if nothing had happened"


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
async def attempt_floods(ctx: Context, steps: int) -> int:
    for step in range(steps):
        await ctx.progress(step, steps, f"step {step}")
        if step % 1000 == 0:
            await asyncio.sleep(0)
    return steps


@pytest_asyncio.fixture(autouse=True)
async def fresh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setitem(globals(), "gate", Gate())
    monkeypatch.setitem(globals(), "stubborn", Stubborn())
    monkeypatch.setattr("cplane.worker.attempt.CLEANUP_S", 0.1)
    monkeypatch.setattr("cplane.worker.runner.CLEANUP_S", 0.1)
    runs.clear()
    yield
    stubborn.free.set()


async def still_works(one_at_a_time: ControlPlane) -> None:
    assert await (await attempt_add.submit(1)).result(DEADLINE_S) == 2
    assert await (await attempt_transient_add.submit(1)).result(DEADLINE_S) == 2
    assert await one_at_a_time.queue.depth("default") in {0, 1}


def one(settings: CplaneSettings) -> CplaneSettings:
    """Room for one job: a slot that is not given back holds everything up."""
    return settings.model_copy(update={"queues": {"default": 1}})


@pytest.mark.parametrize("asked", [attempt_ignores_its_timeout, attempt_transient_ignores_its_timeout])
async def test_a_job_that_ignores_its_timeout_is_left_behind_and_recorded(
    settings: CplaneSettings, plane: ControlPlane, asked: AnyJob
) -> None:
    async with running(one(settings)):
        handle = await asked.submit()
        with pytest.raises(JobFailed, match=r"JobTimeout: .* ran longer than 0\.05 s"):
            await handle.result(DEADLINE_S)
        assert not stubborn.gone.is_set()
        await still_works(plane)
        stubborn.free.set()
        await stubborn.gone.wait()
        await still_works(plane)
        assert await handle.state() is State.FAILED, "what it returned at last counts for nothing"


async def test_a_job_that_ignores_a_cancel_is_left_behind_and_cancelled(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(one(settings)):
        handle = await attempt_ignores_a_cancel.submit()
        await stubborn.entered.wait()
        await handle.cancel()
        with pytest.raises(JobCancelled):
            await handle.result(DEADLINE_S)
        await still_works(plane)
        stubborn.free.set()
        await stubborn.gone.wait()
    assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.CANCELLED]


async def test_a_stopping_worker_leaves_a_stubborn_job_behind_and_hands_it_back(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings.model_copy(update={"drain_s": 0.0})):
        handle = await attempt_ignores_a_cancel.submit()
        await stubborn.entered.wait()
    assert stubborn.cancels >= 1
    assert (await plane.record(handle.id)).state is State.QUEUED
    stubborn.free.set()
    await stubborn.gone.wait()


async def test_a_job_that_cancels_itself_has_failed(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(one(settings)):
        with pytest.raises(JobFailed, match="CancelledError"):
            await (await attempt_cancels_itself.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed, match="CancelledError"):
            await (await attempt_cancelled_from_inside.submit()).result(DEADLINE_S)
        assert runs == [1], "a policy retries errors, and this is none"
        runs.clear()
        assert await (await attempt_transient_cancels_itself_once.submit()).result(DEADLINE_S) == 2
        await still_works(plane)
    assert runs == [1, 2]


async def test_a_job_that_leaves_takes_nobody_along(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(one(settings)):
        with pytest.raises(JobFailed, match=r"RuntimeError: the job raised SystemExit\(3\)"):
            await (await attempt_exits.submit(3)).result(DEADLINE_S)
        with pytest.raises(JobFailed, match=r"the job raised KeyboardInterrupt"):
            await (await attempt_transient_exits.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed, match=r"the job raised SystemExit\(1\)"):
            await (await attempt_exits_in_a_thread.submit()).result(DEADLINE_S)
        await still_works(plane)


async def test_a_finally_that_is_slow_but_ends_is_waited_for(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.attempt.CLEANUP_S", DEADLINE_S)
    async with running(one(settings)):
        handle = await attempt_slow_finally.submit()
        await gate.entered.wait()
        assert await handle.state() is State.RUNNING
        gate.open.set()
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)
    assert gate.left == ["passed"], "it was not cancelled a second time"
    assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.TIMED_OUT]


async def test_a_finally_that_does_not_end_is_cancelled_and_left(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(one(settings)):
        handle = await attempt_slow_finally.submit()
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)
        await still_works(plane)
    assert gate.left == ["cancelled"]


@pytest.mark.parametrize("asked", [attempt_swallows_its_timeout, attempt_raises_when_stopped])
async def test_a_timeout_stands_whatever_the_job_makes_of_it(
    settings: CplaneSettings, plane: ControlPlane, asked: AnyJob
) -> None:
    async with running(one(settings)):
        with pytest.raises(JobFailed, match="JobTimeout"):
            await (await asked.submit()).result(DEADLINE_S)


async def test_errors_that_are_hard_to_write_down_are_written_down(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(one(settings)):
        with pytest.raises(JobFailed, match="its message cannot be read"):
            await (await attempt_unreadable_error.submit()).result(DEADLINE_S)
        with pytest.raises(JobFailed) as caught:
            await (await attempt_long_error.submit()).result(DEADLINE_S)
        assert len(caught.value.traceback) < 40_000
        with pytest.raises(JobFailed, match="ExceptionGroup: several") as caught:
            await (await attempt_error_group.submit()).result(DEADLINE_S)
        assert "KeyError: 'two'" in caught.value.traceback
        await still_works(plane)


async def test_a_flood_of_progress_is_told_now_and_then_and_its_end_is_recorded(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.attempt.PROGRESS_INTERVAL_S", 3600.0)
    heard: list[Event] = []
    async with running(settings):
        following = plane.events.follow()
        await anext(following)
        handle = await attempt_floods.submit(20_000)
        async with asyncio.timeout(DEADLINE_S):
            async for events in following:
                heard += [event for event in events if event.record_id == handle.id]
                if heard and heard[-1].state.final:
                    break
    assert [(event.state, event.data and event.data["done"]) for event in heard if event.data or event.state.final] == [
        (State.RUNNING, 0), (State.SUCCEEDED, None),
    ]  # fmt: skip
    record = await plane.record(handle.id)
    assert (record.progress_done, record.progress_total, record.progress_note) == (19_999, 20_000, "step 19999")
