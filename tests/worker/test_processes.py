"""Workers as processes: started by `arq`, stopped and killed by signals, cut off from their servers."""

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

from cplane import ControlPlane, CplaneSettings, State
from cplane.dev.postgres import EmbeddedPostgres
from cplane.dev.redis import EmbeddedRedis
from cplane.jobs.states import AttemptState, Cause
from cplane.postgres.migrations import upgrade
from cplane.settings import load_settings
from tests.jobs_for_processes import (
    process_add,
    process_blocks_a_thread,
    process_page_waits,
    process_pid,
    process_visits,
    process_waits,
)
from tests.workers import DEADLINE_S

TESTS = Path(__file__).parents[1]


def environment(settings: CplaneSettings, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "CPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
        "CPLANE_REDIS_URL": settings.redis_url.get_secret_value(),
        "CPLANE_ARTIFACTS_URL": settings.artifacts_url,
        "CPLANE_IMPORTS": "jobs_for_processes",
        "CPLANE_QUEUES": "default:4",
        "PYTHONPATH": str(TESTS),
        **more,
    }


class WorkerProcess:
    """`arq cplane.worker.Settings`, its output kept for a failing test."""

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

    async def says(self, words: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not any(words in line for line in self.lines):
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await self._reader
        return code


@asynccontextmanager
async def worker_process(settings: CplaneSettings, **more: str) -> AsyncGenerator[WorkerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings",
        env=environment(settings, **more), cwd=TESTS, stderr=asyncio.subprocess.PIPE, process_group=0,
    )  # fmt: skip
    worker = WorkerProcess(process)
    try:
        await worker.says("worker_started")
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await worker.ended()


async def started(folder: Path, attempt: int) -> int:
    """The pid of the worker that started this attempt."""
    async with asyncio.timeout(DEADLINE_S):
        while not (found := list(folder.glob(f"started-{attempt}-*"))):
            await asyncio.sleep(0.02)
    return int(found[0].name.rpartition("-")[2])


async def test_arq_runs_the_worker_and_sigterm_ends_it(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with worker_process(settings) as worker:
        assert await (await process_add.submit(1, 2)).result(DEADLINE_S) == 3
        assert await (await process_pid.submit()).result(DEADLINE_S) == worker.pid
        worker.process.terminate()
        assert await worker.ended() == 0
    assert any("worker_stopped" in line for line in worker.lines)


async def test_workers_that_are_killed_never_let_more_jobs_onto_a_host_than_may_be(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    ends: dict[str, int] = {}
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
            await victim.ended()
            ends[str(victim.pid)] = time.monotonic_ns()
        for handle in handles:
            await handle.result(DEADLINE_S)
    steps: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    hosts = {str(handle.id): "ab"[number % 2] for number, handle in enumerate(handles)}
    for file in tmp_path.glob("*-*-*"):
        record_id, _, pid = file.name.rsplit("-", 2)
        began, *ended = (int(part) for part in file.read_text().split())
        steps[hosts[record_id]] += [(began, 1), (ended[0] if ended else ends[pid], -1)]
    for host in "ab":
        there = list(accumulate(change for _, change in sorted(steps[host])))
        assert max(there) <= 2
    assert {(await plane.record(handle.id)).state for handle in handles} == {State.SUCCEEDED}


async def test_arqs_health_check_sees_the_worker(settings: CplaneSettings, plane: ControlPlane) -> None:
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


async def test_jobs_of_a_killed_worker_start_again(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_LEASE_S="2") as first:
        handle = await process_waits.submit(str(tmp_path))
        assert await started(tmp_path, attempt=1) == first.pid
        first.process.kill()
        await first.ended()
    async with worker_process(settings, CPLANE_LEASE_S="2") as second:
        assert await started(tmp_path, attempt=2) == second.pid
        (tmp_path / "go").touch()
        assert await handle.result(DEADLINE_S) == 2
    attempts = await plane.attempts(handle.id)
    assert [(attempt.cause, attempt.state) for attempt in attempts] == [
        (Cause.SUBMIT, AttemptState.LOST),
        (Cause.LOST, AttemptState.SUCCEEDED),
    ]


async def test_a_frozen_worker_cannot_change_a_record_that_is_no_longer_its_own(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_LEASE_S="2") as frozen:
        handle = await process_waits.submit(str(tmp_path))
        await started(tmp_path, attempt=1)
        frozen.process.send_signal(signal.SIGSTOP)
        async with worker_process(settings, CPLANE_LEASE_S="2"):
            await started(tmp_path, attempt=2)
            (tmp_path / "go").touch()
            frozen.process.send_signal(signal.SIGCONT)
            assert await handle.result(DEADLINE_S) == 2
            frozen.process.terminate()
            assert await frozen.ended() == 0
    record = await plane.record(handle.id)
    assert (record.state, record.result, record.attempt) == (State.SUCCEEDED, 2, 2)


async def test_a_drained_worker_hands_its_jobs_to_the_next(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="0") as first:
        handle = await process_waits.submit(str(tmp_path))
        await started(tmp_path, attempt=1)
        first.process.terminate()
        assert await first.ended() == 0
    (tmp_path / "go").touch()
    async with worker_process(settings):
        assert await handle.result(DEADLINE_S) == 2
    record = await plane.record(handle.id)
    assert (record.failures, record.crashes) == (0, 0)


async def test_a_thread_that_cannot_be_stopped_does_not_hold_the_worker(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="0") as worker:
        await process_blocks_a_thread.submit(str(tmp_path))
        await started(tmp_path, attempt=1)
        worker.process.terminate()
        assert await worker.ended() == 0


async def test_ctrl_c_lets_a_browser_job_end_with_its_page(
    settings: CplaneSettings, plane: ControlPlane, tmp_path: Path
) -> None:
    async with worker_process(settings, CPLANE_QUEUES="browser:1") as worker:
        handle = await process_page_waits.submit(str(tmp_path))
        await started(tmp_path, attempt=1)
        os.killpg(worker.pid, signal.SIGINT)  # as a terminal does: to every process of the group
        await worker.says("draining")
        (tmp_path / "go").touch()
        assert await worker.ended() == 0
    record = await plane.record(handle.id)
    assert (record.state, record.result, record.attempt) == (State.SUCCEEDED, "still here", 1)


async def test_a_worker_that_stops_while_its_browser_starts_leaves_nothing(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with worker_process(settings, CPLANE_QUEUES="browser:1") as worker:
        worker.process.terminate()
        assert await worker.ended() == 0
        assert await processes_of_group(worker.pid) == []


async def processes_of_group(group: int) -> list[str]:
    """What is left of a worker's process group, zombies aside, once there was time to end."""
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
    except OSError:  # it has just ended
        return ""


async def test_a_second_signal_leaves_at_once(settings: CplaneSettings, plane: ControlPlane, tmp_path: Path) -> None:
    async with worker_process(settings, CPLANE_DRAIN_S="600") as worker:
        await process_waits.submit(str(tmp_path))
        await started(tmp_path, attempt=1)
        worker.process.terminate()
        await worker.says("draining")
        worker.process.terminate()
        assert await worker.ended() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"CPLANE_DATABASE_URL": ""}, "CPLANE_DATABASE_URL is not set; set it, or run `cplane dev` in this folder"),
        ({"CPLANE_IMPORTS": "no_such_module"}, "CPLANE_IMPORTS names 'no_such_module', which cannot be found"),
        ({"CPLANE_QUEUES": "default"}, "CPLANE_QUEUES: 'default' is not NAME:CONCURRENCY"),
    ],
)
async def test_a_wrong_setting_is_one_clear_sentence(
    settings: CplaneSettings, changes: dict[str, str], sentence: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings",
        env=environment(settings, **changes), cwd=TESTS, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, output = await process.communicate()
    assert process.returncode == 1
    assert sentence in output.decode()
    assert "Traceback" not in output.decode()


async def test_an_old_schema_is_one_clear_sentence(servers_without_tables: CplaneSettings) -> None:
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


async def test_redis_away_still_accepts_and_runs_when_it_is_back(settings: CplaneSettings, tmp_path: Path) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    redis = EmbeddedRedis(tmp_path / "redis", sockets)
    async with redis:
        url = redis.url
    cut_off = load_settings(database_url=settings.database_url, redis_url=url, artifacts_url=settings.artifacts_url)
    async with ControlPlane(cut_off) as plane:
        handle = await process_add.submit(20, 3)
        assert await handle.state() is State.QUEUED
        assert (await plane.ready())["redis"] is not None
        async with worker_process(cut_off) as worker:
            await worker.says("claim_failed")
            async with EmbeddedRedis(tmp_path / "redis", sockets):
                assert await handle.result(DEADLINE_S) == 23
                assert (await plane.ready())["redis"] is None
            assert await plane.state(handle.id) is State.SUCCEEDED
            assert worker.process.returncode is None, "no outage ends a worker"


async def test_postgres_restarts_under_a_running_job_and_its_result_is_kept(
    settings: CplaneSettings, tmp_path: Path
) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    data = tmp_path / "postgres"
    async with EmbeddedPostgres(data, sockets) as postgres:
        url = postgres.url
        await upgrade(url)
        cut_off = load_settings(database_url=url, redis_url=settings.redis_url, artifacts_url=settings.artifacts_url)
        await wait_for_a_job(cut_off, tmp_path, postgres)


async def wait_for_a_job(cut_off: CplaneSettings, folder: Path, postgres: EmbeddedPostgres) -> None:
    async with ControlPlane(cut_off) as plane, worker_process(cut_off) as worker:
        handle = await process_waits.submit(str(folder))
        await started(folder, attempt=1)
        await postgres.__aexit__(None, None, None)
        (folder / "go").touch()
        await worker.says("outcomes_not_recorded")
        await postgres.__aenter__()
        assert await handle.result(DEADLINE_S) == 1
        assert [attempt.state for attempt in await plane.attempts(handle.id)] == [AttemptState.SUCCEEDED]
