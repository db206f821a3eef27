"""Plain functions in threads: their context, their errors, their progress, and threads that outlive their attempts."""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import pytest_asyncio
import structlog

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, job
from cplane.errors import InfrastructureError, ThreadsStuck
from cplane.worker import Worker
from cplane.worker.threads import JobThreads
from tests.workers import DEADLINE_S, running

user: ContextVar[str | None] = ContextVar("user", default=None)
released = threading.Event()


@pytest.fixture(autouse=True)
def release_threads() -> Iterator[None]:
    released.clear()
    yield
    released.set()


def traced(function: Callable[[int], Coroutine[Any, Any, int]]) -> Callable[[int], Coroutine[Any, Any, int]]:
    @functools.wraps(function)
    def wrapper(x: int) -> Coroutine[Any, Any, int]:
        return function(x)

    return wrapper


@job
def thread_logs_in(name: str) -> None:
    user.set(name)


@job
def thread_user() -> str | None:
    return user.get()


@job
def thread_takes_first(numbers: list[int]) -> int:
    return next(iter(numbers))


@job
@traced
async def thread_awaited(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


@job
def thread_reports(ctx: Context) -> None:
    ctx.progress(1, 2, "half")
    ctx.log.info("half_done", user="Ada")


@job(timeout=0.1)
def thread_sticks() -> None:
    released.wait()


@job(timeout=5)
def thread_adds(x: int, y: int) -> int:
    return x + y


@pytest_asyncio.fixture
async def worker(settings: CplaneSettings, plane: ControlPlane) -> Any:
    async with running(settings.model_copy(update={"queues": {"default": 2}})) as worker:
        yield worker


async def test_context_variables_do_not_leak_into_the_next_job(worker: Worker) -> None:
    for _ in range(4):
        await (await thread_logs_in.submit("Ada")).result(DEADLINE_S)
        assert await (await thread_user.submit()).result(DEADLINE_S) is None


async def test_a_stop_iteration_fails_its_job(worker: Worker, plane: ControlPlane) -> None:
    handle = await thread_takes_first.submit([])
    with pytest.raises(JobFailed, match="RuntimeError: the job raised StopIteration") as caught:
        await handle.result(DEADLINE_S)
    assert "next(iter(numbers))" in caught.value.traceback
    assert await (await thread_takes_first.submit([7])).result(DEADLINE_S) == 7


async def test_a_coroutine_that_a_plain_wrapper_returns_is_awaited(worker: Worker) -> None:
    assert not thread_awaited.signature.is_async
    assert await (await thread_awaited.submit(1)).result(DEADLINE_S) == 2


async def test_a_plain_job_reports_progress_and_logs(worker: Worker, plane: ControlPlane) -> None:
    handle = await thread_reports.submit()
    with structlog.testing.capture_logs() as lines:
        await handle.result(DEADLINE_S)
    record = await plane.record(handle.id)
    assert (record.progress_done, record.progress_total, record.progress_note) == (1, 2, "half")
    logged = [line for line in lines if line["event"] == "half_done"]
    assert [(line["job"], line["attempt"], line["user"]) for line in logged] == [("thread_reports", 1, "Ada")]


async def test_stuck_threads_are_replaced_and_take_no_time_from_later_jobs(worker: Worker) -> None:
    for handle in [await thread_sticks.submit() for _ in range(4)]:
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)
    handles = [await thread_adds.submit(x, 1) for x in range(4)]
    assert [await handle.result(DEADLINE_S) for handle in handles] == [1, 2, 3, 4]
    released.set()


async def test_a_worker_stops_with_an_error_when_as_many_threads_are_stuck_as_it_runs_jobs(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.STUCK_AFTER_S", 0.01)
    settings = settings.model_copy(update={"queues": {"default": 2}})
    worker = Worker(settings=settings, handle_signals=False)
    handles = [await thread_sticks.submit() for _ in range(2)]
    with pytest.raises(ThreadsStuck, match="2 plain jobs of the queue 'default' still run"):
        await asyncio.wait_for(worker.async_run(), DEADLINE_S)
    for handle in handles:
        with pytest.raises(JobFailed, match="JobTimeout"):
            await handle.result(DEADLINE_S)


async def test_only_threads_whose_callers_have_left_are_stuck() -> None:
    threads = JobThreads({"q": 2}, stuck_after_s=0)
    watching = asyncio.create_task(threads.watch())
    waiting, left = threads.run(released.wait, "q"), threads.run(released.wait, "q")
    left.cancel()
    await until(lambda: threads.stuck("q") == 1)
    assert threads.busy
    assert not watching.done()
    released.set()
    assert await waiting
    await until(lambda: not threads.busy)
    assert threads.stuck("q") == 0
    watching.cancel()
    threads.close()


async def test_a_system_without_more_threads_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(InfrastructureError, match="no thread could be started"):
        JobThreads({}, stuck_after_s=1).run(released.wait, "q")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.005)
