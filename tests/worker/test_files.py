"""The files of jobs: their limits, and errors of what is stored."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, State, job
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState
from tests.workers import DEADLINE_S, running

MB = 1024 * 1024


@job(retries=3)
async def files_one(ctx: Context, size: int) -> int:
    return (await ctx.artifact("one.bin", bytes(size))).size


@job(retries=3)
async def files_streamed(ctx: Context, size: int) -> int:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // MB):
            yield bytes(MB)

    return (await ctx.artifact("one.bin", chunks())).size


@job
async def files_many(ctx: Context, names: list[str]) -> int:
    return len(await asyncio.gather(*(ctx.artifact(name, b"x") for name in names)))


@job(retries=1)
async def files_fail_after(ctx: Context, names: list[str], then: list[str]) -> int:
    for name in names if ctx.attempt == 1 else then:
        await ctx.artifact(name, b"x")
    if ctx.attempt == 1:
        raise ValueError("once more")
    return ctx.attempt


@job
async def files_of_broken_data(ctx: Context) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"half"
        raise OSError("the device is gone")

    await ctx.artifact("one.bin", chunks())


def limited(settings: CplaneSettings) -> CplaneSettings:
    return settings.model_copy(update={"artifact_max_mb": 2, "artifact_max_count": 3})


@pytest.mark.parametrize("stores", [files_one, files_streamed])
async def test_a_file_that_is_too_large_fails_the_job_for_good_and_leaves_nothing(
    settings: CplaneSettings, stores: AnyJob
) -> None:
    async with ControlPlane(limited(settings)) as plane, running(limited(settings)):
        handle = await stores.submit(3 * MB)
        with pytest.raises(
            JobFailed, match=r"'one\.bin' has 3,145,728 bytes or more, and a file may have 2,097,152"
        ) as caught:
            await handle.result(DEADLINE_S)
        assert caught.value.error_type == "ArtifactTooLarge"
        assert await (await stores.submit(2 * MB)).result(DEADLINE_S) == 2 * MB
        assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.FAILED]
        assert await plane.store.artifacts([handle.id]) == []


@pytest.mark.parametrize(
    ("names", "refused"), [(["a", "b", "c"], False), (["a", "b", "c", "a"], False), (["a", "b", "c", "d"], True)]
)
async def test_a_job_may_store_a_number_of_files_each_name_counted_once(
    settings: CplaneSettings, names: list[str], refused: bool
) -> None:
    async with ControlPlane(limited(settings)) as plane, running(limited(settings)):
        handle = await files_many.submit(names)
        if refused:
            with pytest.raises(JobFailed, match="'d' is one file more than the 3 that a job may store") as caught:
                await handle.result(DEADLINE_S)
            assert caught.value.error_type == "TooManyArtifacts"
        else:
            assert await handle.result(DEADLINE_S) == len(names)
        assert len(await plane.store.artifacts([handle.id])) <= 3


@pytest.mark.parametrize(("then", "state"), [(["c", "b", "a"], State.SUCCEEDED), (["a", "b", "d"], State.FAILED)])
async def test_files_of_earlier_attempts_count_by_their_names(
    settings: CplaneSettings, then: list[str], state: State
) -> None:
    async with ControlPlane(limited(settings)) as plane, running(limited(settings)):
        handle = await files_fail_after.submit(["a", "b", "c"], then)
        async with asyncio.timeout(DEADLINE_S):
            record = await plane.wait(handle.id)
    assert (record.state, record.attempt) == (state, 2)
    assert record.error_type == (None if state is State.SUCCEEDED else "TooManyArtifacts")


async def test_an_error_of_the_data_of_a_file_is_the_jobs_own(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings):
        handle = await files_of_broken_data.submit()
        with pytest.raises(JobFailed, match="the device is gone") as caught:
            await handle.result(DEADLINE_S)
    assert caught.value.error_type == "OSError"
    assert (await plane.record(handle.id)).attempt == 1
