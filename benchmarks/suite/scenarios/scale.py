"""cplane alone, with growing data: ready jobs in the queue, and records in the database.

**Queued.** Before the worker starts, N + M ready jobs are in one queue, and the background work of filling it (Redis
rewriting its log, Postgres's statistics) is done. The rate is measured over M jobs, after the first 1,000, and N jobs
are still queued at the end: "N queued" means from N to N + M, with the same M for every N, and no job is submitted
during the measurement. Then the worker stops, and submit rates are measured with N queued jobs.

**Records.** Finished records and their attempts are inserted with SQL, spread over 20 job names, 94 % succeeded,
followed by the same background work. Then a page of 50 is listed 200 times for each of four filters, with
`ControlPlane.records()` and over HTTP, and jobs are submitted and run while those records exist.
"""

import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from asyncpg import PostgresError

from benchmarks.kit.slots import VARIABLE
from benchmarks.suite.bench import Bench, Stage
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import RECORDED, System
from benchmarks.suite.tally import Tally, percentile
from benchmarks.suite.web import load, web_server
from cplane import ControlPlane
from cplane.errors import CplaneError
from cplane.jobs.states import State
from cplane.postgres.rows import RecordFilter
from cplane.settings import load_settings

NAME = "scale"
SKIPPED_JOBS = 1000
CHUNK = 100_000
SUBMITS, BULK = 1000, 5000
SUBMITTERS = 32
PAGE = 50
LISTS = 200

SEED_RECORDS = """
INSERT INTO cplane.jobs (id, job, queue, state, cause, args, result, attempt, created_at, run_at, started_at, finished_at)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(hash, 1, 3) || '8' || substr(hash, 4, 15))::uuid,
       'seed_' || i % 20, 'default', CASE WHEN i % 100 < 94 THEN 'succeeded' WHEN i % 100 < 99 THEN 'failed' ELSE 'cancelled' END,
       'submit', jsonb_build_object('slot', i), NULL, 1, at, at, at, at + interval '1 second'
FROM generate_series({first}, {last}) AS i,
     LATERAL (SELECT now() - interval '90 days' + i * interval '1 second' AS at, md5(i::text) AS hash) AS made
"""
SEED_ATTEMPTS = """
INSERT INTO cplane.attempts (job_id, attempt, worker, cause, state, started_at, finished_at)
SELECT id, 1, 'seed', 'submit', state, started_at, finished_at FROM cplane.jobs
"""


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return sum(system.ours for system in bench.systems) * bench.effort.rounds * len(_queued_sizes(bench)) + len(
        _record_sizes(bench)
    )


async def run(bench: Bench) -> None:
    """Measure the queue, then the records."""
    systems = [system for system in bench.systems if system.ours]
    for number in range(bench.effort.rounds):
        for queued in _queued_sizes(bench):
            for system in systems:
                bench.report(f"scale, round {number + 1}: {system.name} with {queued:,} queued")
                await _try(bench, system, queued_case(queued), partial(_with_queued, bench, system, queued))
    if RECORDED in systems:
        for records in _record_sizes(bench):
            bench.report(f"scale: {records:,} records")
            await _try(bench, RECORDED, record_case(records), partial(_with_records, bench, records))


def queued_case(queued: int) -> str:
    """Return the name of the case with this number of queued jobs."""
    return f"{queued:,} queued"


def record_case(records: int) -> str:
    """Return the name of the case with this number of records."""
    return f"{records:,} records"


def _queued_sizes(bench: Bench) -> tuple[int, ...]:
    if bench.effort.full:
        return (1000, 10_000, 100_000, 1_000_000)
    return (1000, 20_000) if bench.effort.quick else (1000, 10_000, 100_000)


def _record_sizes(bench: Bench) -> tuple[int, ...]:
    if bench.effort.full:
        return (10_000, 100_000, 500_000, 5_000_000)
    return (10_000, 50_000) if bench.effort.quick else (10_000, 100_000, 500_000)


def _measured(bench: Bench) -> int:
    return 60_000 if bench.effort.full else bench.effort.sized(4000, 20_000)


async def _try(bench: Bench, system: System, case: str, measure: Callable[[], Awaitable[None]]) -> None:
    try:
        await measure()
    except (Unavailable, TimeoutError, CplaneError, PostgresError) as error:
        bench.results.skip(NAME, f"{case}, throughput", system.name, str(error) or "no result in time")


# the queue


async def _with_queued(bench: Bench, system: System, queued: int) -> None:
    measured = _measured(bench)
    ready = SKIPPED_JOBS + measured + queued
    case = queued_case(queued)
    async with bench.stage(system, ready + SUBMITS + BULK) as stage:
        for first in range(0, ready, CHUNK):
            await stage.producer.order("bulk", "noop", first, min(CHUNK, ready - first))
        await bench.servers.finish_background_work()
        async with stage.workers() as workers:
            await stage.finish(SKIPPED_JOBS + measured, workers)
        per_s = stage.tally.per_s_between(SKIPPED_JOBS, measured)
        bench.results.add(NAME, f"{case}, throughput", system.name, "jobs/s", per_s, note=f"over {measured:,} jobs")
        await _submit_rates(stage, case, ready)


async def _submit_rates(stage: Stage, case: str, first: int) -> None:
    """Measure submit rates with the current number of queued jobs."""
    results, name = stage.bench.results, stage.system.name
    took_s = await stage.producer.order("concurrent", "noop", first, SUBMITS, submitters=SUBMITTERS)
    results.add(NAME, f"{case}, 32 submitters", name, "jobs/s", SUBMITS / took_s)
    took_s = await stage.producer.order("bulk", "noop", first + SUBMITS, BULK)
    results.add(NAME, f"{case}, bulk submit", name, "jobs/s", BULK / took_s)


# records


async def _with_records(bench: Bench, records: int) -> None:
    measured = _measured(bench)
    case = record_case(records)
    async with bench.stage(RECORDED, SKIPPED_JOBS + measured + SUBMITS + BULK) as stage:
        await _seed(bench, records)
        await _list_pages(bench, case)
        await _list_over_http(bench, case)
        await stage.producer.order("bulk", "noop", 0, SKIPPED_JOBS + measured)
        async with stage.workers() as workers:
            await stage.finish(SKIPPED_JOBS + measured, workers)
            outcome = await stage.tally.count_errors(SKIPPED_JOBS + measured)
        per_s = stage.tally.per_s_between(SKIPPED_JOBS, measured)
        bench.results.add(NAME, f"{case}, throughput", RECORDED.name, "jobs/s", per_s, count=outcome)
        await _submit_rates(stage, case, SKIPPED_JOBS + measured)


async def _seed(bench: Bench, records: int) -> None:
    for first in range(0, records, CHUNK):
        await bench.servers.execute(SEED_RECORDS.format(first=first, last=min(first + CHUNK, records) - 1))
    await bench.servers.execute(SEED_ATTEMPTS)
    await bench.servers.finish_background_work()


async def _list_pages(bench: Bench, case: str) -> None:
    """Measure the slowest of four filters, by median and by p99."""
    waits: list[list[float]] = []
    async with _plane(bench) as plane:
        middle = (await plane.records(limit=PAGE))[-1].id
        for where, before in (
            (RecordFilter(), None),
            (RecordFilter(state=State.CANCELLED), None),
            (RecordFilter(job="seed_7"), None),
            (RecordFilter(queue="default"), middle),
        ):
            took_ms: list[float] = []
            for _ in range(LISTS):
                began = time.perf_counter()
                assert len(await plane.records(where, before=before, limit=PAGE)) == PAGE
                took_ms.append((time.perf_counter() - began) * 1000)
            waits.append(sorted(took_ms))
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        slowest = max(percentile(ordered, part) for ordered in waits)
        note = "the slowest of four filters"
        bench.results.add(NAME, f"{case}, records() {name}", RECORDED.name, "ms", slowest, note=note)


async def _list_over_http(bench: Bench, case: str) -> None:
    tally = Tally(1)
    env = {**bench.environment(RECORDED, 256), VARIABLE: str(tally.path)}
    plan = {"method": "GET", "path": f"/api/v1/jobs?limit={PAGE}", "connections": 1, "requests": LISTS, "warm": 20}
    command = [sys.executable, "-m", "cplane", "web", "--port", "{port}"]
    try:
        async with web_server(command, env=env, cwd=RECORDED.files, log=bench.log("web")) as port:
            seen = await load(bench.folder, {**plan, "port": port})
    finally:
        tally.close()
    bench.results.add(NAME, f"{case}, GET page p50", RECORDED.name, "ms", seen.p50_ms, note=seen.other_outcomes)
    bench.results.add(NAME, f"{case}, GET page p99", RECORDED.name, "ms", seen.p99_ms)


@asynccontextmanager
async def _plane(bench: Bench) -> AsyncGenerator[ControlPlane]:
    settings = load_settings(
        database_url=bench.servers.database_url,
        redis_url=bench.servers.redis_url,
        artifacts_url=(bench.folder / "artifacts").as_uri(),
        imports=(),
    )
    async with ControlPlane(settings) as plane:
        yield plane
