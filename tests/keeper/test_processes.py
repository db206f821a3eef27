"""Worker processes under their keeper: they die, hang, are stopped and replaced, and their neighbours do not notice."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cplane import ControlPlane, CplaneSettings, Handle
from cplane.errors import JobFailed
from cplane.jobs.states import AttemptState
from tests import keepers
from tests.jobs_that_harm import (
    innocent,
    innocent_transient,
    kill_itself,
    remember,
    say_pid,
    sleep_on_the_loop,
    spin_in_a_task,
)
from tests.keepers import DEADLINE_S, Keeper
from tests.programs import environment

TESTS = Path(__file__).parents[1]
LEASE_S = "3"
INNOCENTS = 3


@asynccontextmanager
async def keeper(settings: CplaneSettings, *options: str, **variables: str) -> AsyncGenerator[Keeper]:
    """Run `cplane worker` with the jobs that harm."""
    env = environment(
        settings,
        CPLANE_IMPORTS="jobs_that_harm",
        CPLANE_QUEUES="default:20",
        CPLANE_LEASE_S=LEASE_S,
        CPLANE_DRAIN_S="0",
        PYTHONPATH=str(TESTS),
    )
    async with keepers.keeper(*options, env=env | variables, cwd=TESTS) as running:
        yield running


async def with_innocents(folder: Path) -> tuple[list[Handle[int]], list[Handle[str]]]:
    """Submit innocent jobs, and wait until those with a record run."""
    handles = await innocent.submit_many([{"folder": str(folder)}] * INNOCENTS)
    transient = await innocent_transient.submit_many([{"folder": str(folder)}] * INNOCENTS)
    async with asyncio.timeout(DEADLINE_S):
        while len(list(folder.glob("started-1-*"))) < INNOCENTS:
            await asyncio.sleep(0.02)
    return handles, transient


async def all_well(folder: Path, handles: list[Handle[int]], transient: list[Handle[str]]) -> list[int]:
    """Let the innocent jobs end; all succeed. Returns the number of the attempt in which each with a record did."""
    (folder / "go").touch()
    assert [await handle.result(DEADLINE_S) for handle in transient] == ["fine"] * INNOCENTS
    return [await handle.result(DEADLINE_S) for handle in handles]


async def attempts_of(plane: ControlPlane, handle: Handle[Any]) -> list[AttemptState]:
    return [attempt.state for attempt in await plane.store.attempts(UUID(str(handle.id)))]


async def test_jobs_that_were_aboard_two_kills_run_alone_and_only_the_guilty_pays(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with keeper(settings) as running:
        handles, transient = await with_innocents(tmp_path)
        harmful = await kill_itself.submit()
        await running.until_logged("attempts_requeued", times=2)
        assert await all_well(tmp_path, handles, transient) == [3] * INNOCENTS
        async with asyncio.timeout(DEADLINE_S):
            while not (guilty := await plane.store.get(UUID(str(harmful.id)))).crashes:
                await asyncio.sleep(0.1)
        await harmful.cancel()  # else it does so twice more
    assert (guilty.suspicions, guilty.interruptions, guilty.failures) == (2, 0, 0)
    assert guilty.error_message == "its worker process was killed by SIGKILL, while 'kill_itself' was running"
    for handle in handles:
        record = await plane.store.get(UUID(str(handle.id)))
        assert (record.suspicions, record.crashes, record.interruptions) == (2, 0, 0)
    assert any("quarantine_served" in line for line in running.lines)


async def test_a_blocked_loop_loses_no_lease_however_long(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with keeper(settings) as first, keeper(settings) as second:
        handles, transient = await with_innocents(tmp_path)
        slow = await sleep_on_the_loop.submit(seconds=2 * float(LEASE_S))
        assert await slow.result(DEADLINE_S) == "awake"
        assert await all_well(tmp_path, handles, transient) == [1] * INNOCENTS
        blocked = [line for running in (first, second) for line in running.lines if "worker_blocked" in line]
        assert len(blocked) == 1
        assert f"blamed=sleep_on_the_loop {slow.id}" in blocked[0]
        assert not any("lease_lost" in line for running in (first, second) for line in running.lines)
    assert await attempts_of(plane, slow) == [AttemptState.SUCCEEDED]


async def test_a_job_whose_task_never_yields_is_killed_after_its_timeout_and_named(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with keeper(settings):
        handles, transient = await with_innocents(tmp_path)
        harmful = await spin_in_a_task.submit()
        with pytest.raises(JobFailed, match="JobTimeout") as failed:
            await harmful.result(DEADLINE_S)
        assert "'spin_in_a_task' held the event loop for" in str(failed.value)
        assert " at jobs_that_harm.py:" in str(failed.value)
        await all_well(tmp_path, handles, transient)
    assert await attempts_of(plane, harmful) == [AttemptState.TIMED_OUT]


async def test_another_process_takes_the_place_of_one_that_died(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with keeper(settings) as running:
        pid = await (await say_pid.submit()).result(DEADLINE_S)
        assert running.workers == [pid]
        os.kill(pid, signal.SIGKILL)
        assert await (await say_pid.submit()).result(DEADLINE_S) != pid


async def test_the_worker_stops_when_its_keeper_is_killed(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with keeper(settings) as running:
        pid = await (await say_pid.submit()).result(DEADLINE_S)
        running.process.kill()
        async with asyncio.timeout(DEADLINE_S):
            while runs(pid):
                await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_several_processes_run_side_by_side(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with keeper(settings, "--processes", "2") as running:
        await running.until_logged("worker_started", times=2)
        assert len(running.workers) == 2


async def test_a_process_is_replaced_after_a_number_of_jobs_and_none_is_interrupted(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with keeper(settings, "--max-jobs", "5") as running:
        handles, transient = await with_innocents(tmp_path)
        first = running.workers
        calls: list[dict[str, Any]] = [{}] * 5
        await say_pid.submit_many(calls)
        await running.until_logged("worker_retires")
        await running.until_logged("worker_started", times=2)
        assert await (await say_pid.submit()).result(DEADLINE_S) not in first
        assert set(first) < set(running.workers), "it waits for its jobs"
        assert await all_well(tmp_path, handles, transient) == [1] * INNOCENTS
        await running.until_logged("worker_stopped")


async def test_a_process_is_replaced_that_uses_too_much_memory(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with keeper(settings, "--max-memory-mb", "400") as running:
        first = await (await remember.submit(mb=500)).result(DEADLINE_S)
        assert "more than 400" in await running.until_logged("worker_retires")
        assert await (await say_pid.submit()).result(DEADLINE_S) != first


async def test_a_limit_of_memory_that_no_process_can_keep_ends_the_keeper(settings: CplaneSettings) -> None:
    async with keeper(settings, "--max-memory-mb", "10") as running:
        assert await running.until_ended() == 1
    (line,) = [line for line in running.lines if "worker_retires" in line]
    assert "before its first job, more than --max-memory-mb 10: give it more" in line
    assert sum("worker_started" in line for line in running.lines) == 1


async def test_what_stops_a_worker_at_its_start_stops_the_keeper(settings: CplaneSettings) -> None:
    env = environment(settings, CPLANE_IMPORTS="no_such_module", PYTHONPATH=str(TESTS))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cplane", "worker", env=env, cwd=TESTS, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        _, errors = await process.communicate()
    assert process.returncode != 0
    assert "no_such_module" in errors.decode()
