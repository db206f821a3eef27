"""Worker processes under their keeper: they die, hang, are stopped and replaced, and their neighbours do not notice."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cplane import ControlPlane, CplaneSettings, Handle, State
from cplane.errors import JobFailed
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState
from tests.jobs_that_harm import (
    crash_in_a_thread,
    exit_now,
    innocent,
    innocent_transient,
    kill_itself,
    match_for_ever,
    say_pid,
    sleep_on_the_loop,
    spin_in_a_task,
)
from tests.programs import environment

TESTS = Path(__file__).parents[1]
DEADLINE_S = 90.0
"""A process that is replaced starts Python anew, three times in some tests."""

LEASE_S = "3"
INNOCENTS = 3


class Keeper:
    """A running `cplane worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="read what the keeper writes")

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            self._changed.set()

    async def until_logged(self, event: str, times: int = 1) -> str:
        """Wait until lines with this event were logged, and return the last."""
        async with asyncio.timeout(DEADLINE_S):
            while len(found := [line for line in self.lines if event in line]) < times:
                self._changed.clear()
                await self._changed.wait()
        return found[times - 1]

    async def until_ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await self._reader
        return code

    @property
    def workers(self) -> list[int]:
        """The worker processes."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def keeper(settings: CplaneSettings, *options: str, **variables: str) -> AsyncGenerator[Keeper]:
    """Run `cplane worker`, once its first worker claims jobs; SIGTERM ends it."""
    env = environment(
        settings,
        CPLANE_IMPORTS="jobs_that_harm",
        CPLANE_QUEUES="default:20",
        CPLANE_LEASE_S=LEASE_S,
        CPLANE_DRAIN_S="0",
        PYTHONPATH=str(TESTS),
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cplane", "worker", *options, env=env | variables, cwd=TESTS,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    running = Keeper(process)
    try:
        await running.until_logged("worker_started")
        yield running
        if process.returncode is None:
            process.terminate()
            assert await running.until_ended() == 0, "".join(running.lines)
    finally:
        if process.returncode is None:
            process.kill()
        await running.until_ended()


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


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (exit_now, "its worker process exited with code 3, while 'exit_now' was running"),
        (crash_in_a_thread, "its worker process was killed by SIGSEGV, while 'crash_in_a_thread' was running"),
    ],
)
async def test_a_job_that_ends_its_process_is_billed_for_it_alone(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path, job: AnyJob, message: str
) -> None:
    async with keeper(settings) as running:
        handles, transient = await with_innocents(tmp_path)
        harmful = await job.submit()
        await running.until_logged("attempts_requeued")
        await harmful.cancel()  # else it does so twice more
        await all_well(tmp_path, handles, transient)
    first, *_ = await plane.store.attempts(UUID(str(harmful.id)))
    assert (first.state, first.error_type, first.error_message) == (AttemptState.LOST, "WorkerLost", message)
    assert (await plane.store.get(UUID(str(harmful.id)))).crashes >= 1
    for handle in handles:
        record = await plane.store.get(UUID(str(handle.id)))
        assert (record.crashes, record.interruptions, record.failures) == (0, 0, 0)


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


async def test_jobs_of_a_killed_process_run_again_within_two_seconds_on_another(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with keeper(settings, CPLANE_LEASE_S="30") as first, keeper(settings, CPLANE_LEASE_S="30") as second:
        handles, transient = await with_innocents(tmp_path)
        victim = min(int(file.name.split("-")[2]) for file in tmp_path.glob("started-1-*"))
        lost = {file.name.split("-", 3)[3] for file in tmp_path.glob(f"started-1-{victim}-*")}
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        async with asyncio.timeout(DEADLINE_S):
            while len(list(tmp_path.glob("started-2-*"))) < len(lost):
                await asyncio.sleep(0.01)
        assert time.monotonic() - killed_at < 2.0 * load_factor()
        assert {file.name.split("-", 3)[3] for file in tmp_path.glob("started-2-*")} == lost
        await all_well(tmp_path, handles, transient)
        keepers = [first, second]
        assert sum("worker_died" in line for running in keepers for line in running.lines) == 1


def load_factor() -> float:
    """How much slower than alone this machine is."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) + 1.0


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


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (spin_in_a_task, "'spin_in_a_task' held the event loop for"),
        (match_for_ever, "'match_for_ever' held the interpreter for"),
    ],
)
async def test_a_job_that_never_yields_is_killed_after_its_timeout_and_named(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path, job: AnyJob, message: str
) -> None:
    async with keeper(settings):
        handles, transient = await with_innocents(tmp_path)
        harmful = await job.submit()
        with pytest.raises(JobFailed, match="JobTimeout") as failed:
            await harmful.result(DEADLINE_S)
        assert message in str(failed.value)
        assert " at jobs_that_harm.py:" in str(failed.value)
        await all_well(tmp_path, handles, transient)
    assert await attempts_of(plane, harmful) == [AttemptState.TIMED_OUT]


async def test_sigterm_ends_a_blocked_worker_too(settings: CplaneSettings, plane: ControlPlane, tmp_path: Path) -> None:
    async with keeper(settings) as running:
        handles, transient = await with_innocents(tmp_path)
        slow = await sleep_on_the_loop.submit(seconds=60)
        await running.until_logged("worker_blocked")
        running.process.terminate()
        started = time.monotonic()
        await running.until_ended()
        assert time.monotonic() - started < 10 + 3
    assert await slow.state() is State.QUEUED
    await slow.cancel()
    async with keeper(settings):
        await all_well(tmp_path, handles, transient)


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
    async with keeper(settings, "--max-memory-mb", "10") as running:
        assert "more than 10" in await running.until_logged("worker_retires")


async def test_what_stops_a_worker_at_its_start_stops_the_keeper(settings: CplaneSettings) -> None:
    env = environment(settings, CPLANE_IMPORTS="no_such_module", PYTHONPATH=str(TESTS))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cplane", "worker", env=env, cwd=TESTS, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S):
        _, errors = await process.communicate()
    assert process.returncode != 0
    assert "no_such_module" in errors.decode()
