"""Jobs in processes: each ends as itself, whatever it does to its process, and its neighbours succeed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog

from cplane import ControlPlane, CplaneSettings, Handle, JobCancelled, JobFailed, State, job
from cplane.errors import InfrastructureError
from cplane.jobs.states import AttemptState
from cplane.worker import Worker
from cplane.worker.process_pool import ProcessPool
from tests import jobs_that_block as blocking
from tests.workers import DEADLINE_S, parent_of, running, state_of, until_gone, until_written


@job
async def innocent_async() -> str:
    await asyncio.sleep(0.3)
    return "fine"


@pytest_asyncio.fixture
async def worker(settings: CplaneSettings, plane: ControlPlane) -> AsyncIterator[Worker]:
    async with running(settings.model_copy(update={"queues": {"default": 6}})) as worker:
        yield worker


async def fail(handle: Handle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await handle.result(DEADLINE_S)
    return caught.value


OFFENDERS = {
    "exit": (blocking.blocks_and_exits.using().submit, (3,), "ProcessDied", "its process exited with 3"),
    "segfault": (blocking.blocks_and_crashes.submit, (), "ProcessDied", "its process was killed by SIGSEGV"),
    "kill": (blocking.blocks_and_kills_itself.submit, (), "ProcessDied", "its process was killed by SIGKILL"),
    "memory": (blocking.blocks_and_allocates.submit, (), "MemoryLimitExceeded", "needed more than 512 MiB"),
    "regex": (blocking.blocks_in_a_regex.submit, (), "JobTimeout", "'blocks_in_a_regex' ran longer than 2 s"),
    "sys.exit": (blocking.blocks_and_leaves.submit, ("sys.exit",), "RuntimeError", "the job raised SystemExit(3)"),
    "interrupt": (blocking.blocks_and_leaves.submit, ("interrupt",), "RuntimeError", "the job raised KeyboardInterr"),
    "result": (blocking.blocks_and_returns.submit, (300,), "ResultTooLarge", "314,572,802 bytes, more than 1,048,576"),
    "error": (
        blocking.blocks_and_raises_what_cannot_be_pickled.submit,
        (),
        "tests.jobs_that_block.Unpicklable",
        r"no\udce9 good",
    ),
}


@pytest.mark.parametrize("name", OFFENDERS)
async def test_a_job_that_ends_badly_ends_as_itself_beside_innocent_jobs(
    worker: Worker, plane: ControlPlane, name: str
) -> None:
    submit, args, error_type, message = OFFENDERS[name]
    innocent: list[Handle[Any]] = [await blocking.blocks_innocently.submit(0.5), await innocent_async.submit()]
    offender: Handle[Any] = await submit(*args)  # type: ignore[operator]
    error = await fail(offender)
    assert (error.error_type, message in error.error_message) == (error_type, True), error
    innocent.append(await blocking.blocks_innocently.submit(0))
    for handle in innocent:
        await handle.result(DEADLINE_S)
        assert (await plane.record(handle.id)).attempt == 1


async def test_a_dead_process_costs_one_attempt_of_its_own_job(worker: Worker, plane: ControlPlane) -> None:
    handle = await blocking.blocks_and_exits.submit(0)
    assert "its process exited with 0" in (await fail(handle)).error_message
    assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.FAILED] * 2


async def test_a_cancelled_job_is_killed_with_all_that_it_started(
    worker: Worker, plane: ControlPlane, tmp_path: Path
) -> None:
    innocent: list[Handle[Any]] = [await blocking.blocks_innocently.submit(0.5), await innocent_async.submit()]
    handle = await blocking.blocks_with_children.submit(str(tmp_path))
    pids = await until_written(tmp_path / "pids")
    await handle.cancel()
    with pytest.raises(JobCancelled):
        await handle.result(DEADLINE_S)
    await until_gone(pids)
    for innocent_handle in innocent:
        await innocent_handle.result(DEADLINE_S)


async def test_a_worker_that_stops_kills_what_has_not_ended_when_it_has_drained(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with running(settings.model_copy(update={"drain_s": 0.5})):
        innocent: list[Handle[Any]] = [await blocking.blocks_innocently.submit(0.3), await innocent_async.submit()]
        handle = await blocking.blocks_with_children.submit(str(tmp_path))
        pids = await until_written(tmp_path / "pids")
        for innocent_handle in innocent:
            await innocent_handle.result(DEADLINE_S)
    await until_gone(pids)
    assert await plane.state(handle.id) is State.QUEUED
    assert (await plane.record(handle.id)).failures == 0


async def test_a_lost_lease_kills_the_process(worker: Worker, plane: ControlPlane, tmp_path: Path) -> None:
    from cplane.worker.attempt import Stop

    await blocking.blocks_with_children.submit(str(tmp_path))
    pids = await until_written(tmp_path / "pids")
    inside: Any = worker
    for attempt in inside._lease_keeper:
        attempt.stop(Stop.LEASE_LOST)
    await until_gone(pids)


async def test_processes_are_reused_and_no_context_variable_is_left_in_them(worker: Worker) -> None:
    first = await (await blocking.blocks_innocently.submit(0)).result(DEADLINE_S)
    assert first != os.getpid()
    assert await (await blocking.blocks_innocently.submit(0)).result(DEADLINE_S) == first
    for name in ("Ada", "Grace"):
        assert await (await blocking.blocks_and_sets.submit(name)).result(DEADLINE_S) is None


async def test_a_transient_job_runs_in_a_process(worker: Worker) -> None:
    assert await (await blocking.blocks_transiently.submit(1, y=4)).result(DEADLINE_S) == 5


async def test_the_context_reports_progress_and_logs(worker: Worker, plane: ControlPlane) -> None:
    handle = await blocking.blocks_and_reports.submit("Ada")
    with structlog.testing.capture_logs() as lines:
        result = await handle.result(DEADLINE_S)
    assert result == [str(handle.id), str(handle.id), "blocks_and_reports", "1"]
    record = await plane.record(handle.id)
    assert (record.progress_done, record.progress_total, record.progress_note) == (1, 2, "half")
    [line] = [line for line in lines if line["event"] == "half_done"]
    assert (line["job"], line["attempt"], line["user"]) == ("blocks_and_reports", 1, "Ada")
    assert line["folder"] == "PosixPath('/tmp')"
    assert line["record"] == str(handle.id), "a job cannot speak for another"


async def test_what_a_plain_job_cannot_await_is_refused(worker: Worker) -> None:
    error = await fail(await blocking.blocks_and_stores.submit())
    assert (error.error_type, error.error_message.partition(" (")[0]) == (
        "UsageError",
        "ctx.artifact() has to be awaited, which a plain `def` cannot do",
    )


@pytest.mark.parametrize("error", ["ValueError", "Retry", "TooManyRequests"])
async def test_the_retry_policy_sees_the_error_itself(worker: Worker, plane: ControlPlane, error: str) -> None:
    handle = await blocking.blocks_and_is_retried.submit(error)
    assert await handle.result(DEADLINE_S) == 2
    record = await plane.record(handle.id)
    assert (record.failures, record.interruptions) == ((0, 1) if error == "TooManyRequests" else (1, 0))


async def test_an_error_that_is_not_retried_shows_the_jobs_own_code(worker: Worker, plane: ControlPlane) -> None:
    error = await fail(await blocking.blocks_and_is_retried.submit("KeyError"))
    assert error.error_type == "KeyError"
    assert error.traceback.splitlines()[1].partition(", in ")[2] == "blocks_and_is_retried"


async def test_a_job_that_a_new_process_cannot_find_is_refused(worker: Worker) -> None:
    error = await fail(await blocking.make_unfindable().submit())
    assert error.error_type == "UnknownJob"
    assert "does not find the job 'blocks_unfindably'" in error.error_message


async def test_jobs_are_interrupted_when_the_fork_server_dies_and_run_again(
    worker: Worker, plane: ControlPlane, tmp_path: Path
) -> None:
    handle = await blocking.blocks_with_children.submit(str(tmp_path))
    pid, _ = await until_written(tmp_path / "pids")
    (tmp_path / "pids").unlink()
    os.kill(parent_of(pid), 9)
    await until_gone([pid])
    await until_written(tmp_path / "pids")
    record = await plane.record(handle.id)
    assert (record.attempt, record.failures, record.interruptions) == (2, 0, 1)
    await handle.cancel()


async def test_a_pool_that_closes_while_its_server_starts_leaves_no_process() -> None:
    async with ProcessPool([], eager=True):
        await asyncio.sleep(0)
    assert [pid for pid in children_of(os.getpid()) if state_of(pid) != "Z"] == []


async def test_a_module_that_starts_threads_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starts_threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with structlog.testing.capture_logs() as lines:
        async with ProcessPool(["starts_threads"]) as pool:
            await pool.start()
    assert [line["threads"] for line in lines if line["event"] == "fork_server_has_threads"] == [2]


async def test_modules_that_cannot_be_imported_are_an_infrastructure_error() -> None:
    async with ProcessPool(["no_such_module"]) as pool:
        with pytest.raises(InfrastructureError, match=r"cannot import the jobs: InvalidSettings.*'no_such_module'"):
            await pool.start()


def children_of(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids if parent_of(pid) == parent}
    return [pid for pid, command in commands.items() if "cplane.worker.child" in command]
