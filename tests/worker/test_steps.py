"""Steps: the attempt whose code runs is noted while it runs, in its own task and in those that it starts."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from cplane.worker.steps import CURRENT, STEP, Steps, TaskFactory


@pytest.fixture
def header() -> "memoryview[int]":
    return memoryview(bytearray(64)).cast("Q")


@pytest_asyncio.fixture
async def factory(header: "memoryview[int]") -> AsyncIterator[TaskFactory]:
    loop, factory = asyncio.get_running_loop(), TaskFactory(header)
    loop.set_task_factory(factory)
    yield factory
    loop.set_task_factory(None)


def followed(factory: TaskFactory, coroutine: Coroutine[Any, Any, Any], seq: int) -> "asyncio.Task[Any]":
    async def attempt() -> Any:
        CURRENT.set(seq)
        return await coroutine

    return asyncio.get_running_loop().create_task(factory.follow(attempt(), seq), name="attempt")


async def test_each_step_is_noted_and_no_other_time(header: "memoryview[int]", factory: TaskFactory) -> None:
    seen: list[int] = []

    async def job() -> str:
        seen.append(header[STEP])
        await asyncio.sleep(0)
        seen.append(header[STEP])
        return "done"

    task = followed(factory, job(), 7)
    while not task.done():
        assert header[STEP] == 0
        await asyncio.sleep(0)
    assert (task.result(), seen, header[STEP]) == ("done", [7, 7], 0)


async def test_tasks_of_a_job_are_its_own_and_those_of_others_are_not(
    header: "memoryview[int]", factory: TaskFactory
) -> None:
    seen: dict[str, int] = {}

    async def note(name: str) -> None:
        await asyncio.sleep(0)
        seen[name] = header[STEP]

    async def job() -> None:
        await asyncio.gather(note("child"), note("sibling"))

    await asyncio.gather(followed(factory, job(), 7), note("stranger"))
    assert seen == {"child": 7, "sibling": 7, "stranger": 0}


async def test_errors_and_cancellations_pass(header: "memoryview[int]", factory: TaskFactory) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await followed(factory, fails(), 7)

    cleaned: list[int] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(header[STEP])

    task = followed(factory, waits(), 8)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (cleaned, header[STEP]) == ([8], 0)


async def test_a_task_shows_its_code(factory: TaskFactory, header: "memoryview[int]") -> None:
    async def job() -> None:
        await asyncio.sleep(60)

    steps = Steps(job(), 1, header)
    task = asyncio.get_running_loop().create_task(steps)
    await asyncio.sleep(0)
    assert "job" in repr(task)
    assert [frame.f_code.co_name for frame in task.get_stack()] == ["job"]
    assert not steps.cr_running
    assert steps.cr_await is not None
    task.cancel()
    await asyncio.wait([task])


async def test_a_coroutine_that_never_began_is_closed(header: "memoryview[int]") -> None:
    async def job() -> None:
        await asyncio.sleep(60)

    steps = Steps(job(), 1, header)
    steps.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        steps.send(None)
