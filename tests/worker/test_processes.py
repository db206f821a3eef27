"""Workers as processes: started by `arq`, stopped and killed by signals, disconnected from Postgres and Redis."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import accumulate
from pathlib import Path

import pytest
import pytest_asyncio

from cplane import ControlPlane, CplaneSettings, JobFailed, State
from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.jobs.states import AttemptState, Cause
from cplane.postgres.migrations import upgrade
from cplane.settings import load_settings
from tests.jobs_for_processes import (
    process_add,
    process_blocks_a_thread,
    process_forks,
    process_overstays,
    process_page_waits,
    process_pid,
    process_visits,
    process_waits,
)
from tests.jobs_that_block import blocks_transiently, blocks_with_children
from tests.workers import DEADLINE_S, parent_of, until_gone, until_written

TESTS = Path(__file__).parents[1]


def environment(settings: CplaneSettings, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "CPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
        "CPLANE_REDIS_URL": settings.redis_url.get_secret_value(),
        "CPLANE_ARTIFACTS_URL": settings.artifacts_url,
        "CPLANE_IMPORTS": "jobs_for_processes",
        "CPLANE_QUEUES": "default:4",
        "CPLANE_KEEPER": "0",  # the death of a process is that of its machine; tests/keeper has the other
        "PYTHONPATH": str(TESTS),
        **variables,
    }


class WorkerProcess:
    """A process that runs `arq cplane.worker.Settings`; its stderr is kept to be searched for log lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[str] = []
        self._reader = asyncio.create_task(self._read(), name="read worker output")
        self._changed = asyncio.Event()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.lines.append(line.decode())
            self._changed.set()

    async def wait_for_log(self, event: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not any(event in line for line in self.lines):
                self._changed.clear()
                await self._changed.wait()

    async def wait_exit(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await self._reader
        return code


@asynccontextmanager
async def worker_process(settings: CplaneSettings, **variables: str) -> AsyncGenerator[WorkerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings",
        env=environment(settings, **variables), cwd=TESTS, stderr=asyncio.subprocess.PIPE, process_group=0,
    )  # fmt: skip
    worker = WorkerProcess(process)
    try:
        await worker.wait_for_log("worker_started")
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await worker.wait_exit()


async def until_started(folder: Path, attempt: int) -> int:
    """Wait until this attempt has started, and return the pid of its worker."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := list(folder.glob(f"started-{attempt}-*"))):
            await asyncio.sleep(0.02)
    return int(found[0].name.rpartition("-")[2])


async def test_arq_runs_the_worker_and_sigterm_stops_it(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with worker_process(settings) as worker:
        assert await (await process_add.submit(1, 2)).result(DEADLINE_S) == 3
        assert await (await process_pid.submit()).result(DEADLINE_S) == worker.pid
        worker.process.terminate()
        assert await worker.wait_exit() == 0
    assert any("worker_stopped" in line for line in worker.lines)


async def test_a_hosts_concurrency_limit_is_never_exceeded_when_workers_are_killed(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    killed_at_ns: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        victims = [
            await stack.enter_async_context(worker_process(settings, CPLANE_LEASE_S="2", CPLANE_QUEUES="default:2"))
            for _ in range(3)
        ]
        handles = await process_visits.submit_many(
            [{"url": f"http://{'ab'[n % 2]}.test/", "folder": str(tmp_path)} for n in range(60)]
        )
        for victim in victims[:2]:
            async with asyncio.timeout(DEADLINE_S):
                while not any(len(f.read_text().split()) == 1 for f in tmp_path.glob(f"*-{victim.pid}")):
                    await asyncio.sleep(0.001)
            victim.process.kill()
            await victim.wait_exit()
            killed_at_ns[str(victim.pid)] = time.monotonic_ns()
        for handle in handles:
            await handle.result(DEADLINE_S)
    changes: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    hosts = {str(handle.id): "ab"[number % 2] for number, handle in enumerate(handles)}
    for file in tmp_path.glob("*-*-*"):
        record_id, _, pid = file.name.rsplit("-", 2)
        started_ns, *finished_ns = (int(part) for part in file.read_text().split())
        changes[hosts[record_id]] += [(started_ns, 1), (finished_ns[0] if finished_ns else killed_at_ns[pid], -1)]
    for host in "ab":
        concurrent = list(accumulate(change for _, change in sorted(changes[host])))
        assert max(concurrent) <= 2
    assert {(await plane.record(handle.id)).state for handle in handles} == {State.SUCCEEDED}


async def test_arqs_health_check_detects_the_worker(settings: CplaneSettings, plane: ControlPlane) -> None:
    async def check() -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "arq", "--check", "cplane.worker.Settings",
            env=environment(settings), cwd=TESTS, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait()

    assert await check() == 1
    async with worker_process(settings):
        await (await process_add.submit(1, 2)).result(DEADLINE_S)
        async with asyncio.timeout(DEADLINE_S):
            while not await plane.redis.exists("arq:queue:health-check"):
                await asyncio.sleep(0.02)
        assert await check() == 0


async def test_jobs_of_a_killed_worker_run_again_on_another(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_LEASE_S="2") as first:
        handle = await process_waits.submit(str(tmp_path))
        assert await until_started(tmp_path, attempt=1) == first.pid
        first.process.kill()
        await first.wait_exit()
    async with worker_process(settings, CPLANE_LEASE_S="2") as second:
        assert await until_started(tmp_path, attempt=2) == second.pid
        (tmp_path / "go").touch()
        assert await handle.result(DEADLINE_S) == 2
    attempts = await plane.attempts(handle.id)
    assert [(attempt.cause, attempt.state) for attempt in attempts] == [
        (Cause.SUBMIT, AttemptState.LOST),
        (Cause.LOST, AttemptState.SUCCEEDED),
    ]


async def test_a_frozen_worker_cannot_change_a_record_whose_lease_it_lost(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_LEASE_S="2") as frozen:
        handle = await process_waits.submit(str(tmp_path))
        await until_started(tmp_path, attempt=1)
        frozen.process.send_signal(signal.SIGSTOP)
        async with worker_process(settings, CPLANE_LEASE_S="2"):
            await until_started(tmp_path, attempt=2)
            (tmp_path / "go").touch()
            frozen.process.send_signal(signal.SIGCONT)
            assert await handle.result(DEADLINE_S) == 2
            frozen.process.terminate()
            assert await frozen.wait_exit() == 0
    record = await plane.record(handle.id)
    assert (record.state, record.result, record.attempt) == (State.SUCCEEDED, 2, 2)


async def test_a_drained_worker_releases_its_jobs_to_the_next_worker(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="0") as first:
        handle = await process_waits.submit(str(tmp_path))
        await until_started(tmp_path, attempt=1)
        first.process.terminate()
        assert await first.wait_exit() == 0
    (tmp_path / "go").touch()
    async with worker_process(settings):
        assert await handle.result(DEADLINE_S) == 2
    record = await plane.record(handle.id)
    assert (record.failures, record.crashes) == (0, 0)


async def test_a_thread_that_cannot_be_stopped_does_not_block_worker_shutdown(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="0") as worker:
        await process_blocks_a_thread.submit(str(tmp_path))
        await until_started(tmp_path, attempt=1)
        worker.process.terminate()
        assert await worker.wait_exit() == 0


async def test_a_signal_to_a_forked_child_of_a_job_does_not_stop_the_worker(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with worker_process(settings) as worker:
        assert await (await process_forks.submit()).result(DEADLINE_S) == -signal.SIGTERM
        assert await (await process_add.submit(1, 2)).result(DEADLINE_S) == 3
        worker.process.terminate()
        assert await worker.wait_exit() == 0
    assert sum("worker_stopping" in line for line in worker.lines) == 1


async def test_a_worker_with_too_many_stuck_threads_drains_and_exits_with_1(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with worker_process(settings, CPLANE_QUEUES="default:2") as worker:
        for _ in range(2):
            with pytest.raises(JobFailed, match="JobTimeout"):
                await (await process_overstays.submit()).result(DEADLINE_S)
        assert await worker.wait_exit() == 1
    assert any("2 plain jobs of the queue" in line for line in worker.lines)


async def test_sigterm_ends_a_process_that_never_returns_within_the_drain(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="0", CPLANE_IMPORTS="jobs_that_block") as worker:
        assert await (await blocks_transiently.submit(1)).result(DEADLINE_S) == 3
        handle = await blocks_with_children.submit(str(tmp_path))
        pids = await until_written(tmp_path / "pids")
        worker.process.terminate()
        assert await worker.wait_exit() == 0
    await until_gone(pids)
    assert await plane.state(handle.id) is State.QUEUED


async def test_the_processes_of_a_killed_worker_die_with_it(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_IMPORTS="jobs_that_block") as worker:
        await blocks_with_children.submit(str(tmp_path))
        pid, program = await until_written(tmp_path / "pids")
        server = parent_of(pid)
        worker.process.kill()
        await until_gone([pid, program, server])


async def test_ctrl_c_lets_a_browser_job_finish_with_its_page(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_QUEUES="browser:1") as worker:
        handle = await process_page_waits.submit(str(tmp_path))
        await until_started(tmp_path, attempt=1)
        os.killpg(worker.pid, signal.SIGINT)  # as a terminal does: Ctrl-C signals every process of the group
        await worker.wait_for_log("draining")
        (tmp_path / "go").touch()
        assert await worker.wait_exit() == 0
    record = await plane.record(handle.id)
    assert (record.state, record.result, record.attempt) == (State.SUCCEEDED, "still here", 1)


async def test_a_worker_that_stops_while_its_browser_starts_leaves_no_processes(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with worker_process(settings, CPLANE_QUEUES="browser:1") as worker:
        worker.process.terminate()
        assert await worker.wait_exit() == 0
        assert await remaining_processes(worker.pid) == []


async def remaining_processes(group: int) -> list[str]:
    """Wait until every process of a worker's process group has ended, zombies excepted; return those that remain."""
    async with asyncio.timeout(DEADLINE_S):
        while left := [
            stat.partition(")")[0]
            for path in Path("/proc").glob("[0-9]*/stat")
            if (stat := read(path))
            and stat.rpartition(")")[2].split()[2] == str(group)
            and stat.rpartition(")")[2].split()[0] != "Z"
        ]:
            await asyncio.sleep(0.05)
        return left


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has just ended
        return ""


async def test_a_second_signal_exits_immediately(settings: CplaneSettings, plane: ControlPlane, tmp_path: Path) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="600") as worker:
        await process_waits.submit(str(tmp_path))
        await until_started(tmp_path, attempt=1)
        worker.process.terminate()
        await worker.wait_for_log("draining")
        worker.process.terminate()
        assert await worker.wait_exit() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CPLANE_DATABASE_URL": ""}, "CPLANE_DATABASE_URL is not set; set it, or run `cplane dev` in this folder"),
        ({"CPLANE_IMPORTS": "no_such_module"}, "CPLANE_IMPORTS names 'no_such_module', which cannot be found"),
        ({"CPLANE_QUEUES": "default"}, "CPLANE_QUEUES: 'default' is not NAME:CONCURRENCY"),
    ],
)
async def test_an_invalid_setting_is_reported_in_one_sentence(
    settings: CplaneSettings, changes: dict[str, str], message: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings",
        env=environment(settings, **changes), cwd=TESTS, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, output = await process.communicate()
    assert process.returncode == 1
    assert message in output.decode()
    assert "Traceback" not in output.decode()


async def test_an_outdated_schema_is_reported_in_one_sentence(servers_without_tables: CplaneSettings) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings",
        env=environment(servers_without_tables), cwd=TESTS, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, output = await process.communicate()
    assert process.returncode == 1
    assert "run `cplane db upgrade`" in output.decode()
    assert "Traceback" not in output.decode()


@pytest_asyncio.fixture
async def servers_without_tables(settings: CplaneSettings) -> AsyncIterator[CplaneSettings]:
    from sqlmodel import text

    async with ControlPlane(settings) as plane, plane.database.session() as session:
        await (await session.connection()).execute(text("DROP SCHEMA cplane CASCADE"))
    yield settings


async def test_jobs_are_accepted_while_redis_is_unavailable_and_run_when_it_is_back(
    settings: CplaneSettings, tmp_path: Path
) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    redis = EmbeddedRedis(tmp_path / "redis", sockets)
    async with redis:
        url = redis.url
    embedded = load_settings(database_url=settings.database_url, redis_url=url, artifacts_url=settings.artifacts_url)
    async with ControlPlane(embedded) as plane:
        handle = await process_add.submit(20, 3)
        assert await handle.state() is State.QUEUED
        assert (await plane.ready())["redis"] is not None
        async with worker_process(embedded) as worker:
            await worker.wait_for_log("claim_failed")
            async with EmbeddedRedis(tmp_path / "redis", sockets):
                assert await handle.result(DEADLINE_S) == 23
                assert (await plane.ready())["redis"] is None
            assert await plane.state(handle.id) is State.SUCCEEDED
            assert worker.process.returncode is None, "an outage does not stop a worker"


async def test_the_result_of_a_running_job_survives_a_postgres_restart(
    settings: CplaneSettings, tmp_path: Path
) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    data = tmp_path / "postgres"
    async with EmbeddedPostgres(data, sockets) as postgres:
        url = postgres.url
        await upgrade(url)
        embedded = load_settings(database_url=url, redis_url=settings.redis_url, artifacts_url=settings.artifacts_url)
        await restart_postgres_under_a_job(embedded, tmp_path, postgres)


async def restart_postgres_under_a_job(embedded: CplaneSettings, folder: Path, postgres: EmbeddedPostgres) -> None:
    async with ControlPlane(embedded) as plane, worker_process(embedded) as worker:
        handle = await process_waits.submit(str(folder))
        await until_started(folder, attempt=1)
        await postgres.__aexit__(None, None, None)
        (folder / "go").touch()
        await worker.wait_for_log("outcomes_not_recorded")
        await postgres.__aenter__()
        assert await handle.result(DEADLINE_S) == 1
        assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.SUCCEEDED]
