"""32 HTTP clients submit concurrently: `cplane web` compared with the usual plain FastAPI endpoint.

In each request, the reference (benchmarks/reference) inserts and commits one row with an SQLModel AsyncSession and adds
to a Redis stream, under uvicorn with uvloop and httptools. One process each, without workers. Afterwards the accepted
requests are compared with the rows in the database.
"""

import sys
from pathlib import Path

from benchmarks.kit.slots import VARIABLE
from benchmarks.suite.bench import Bench
from benchmarks.suite.environments import REFERENCE, python
from benchmarks.suite.processes import Unavailable
from benchmarks.suite.systems import BENCHMARKS, RECORDED
from benchmarks.suite.tally import Count, Tally
from benchmarks.suite.web import load, web_server

NAME = "http"
RATE, P50, P99 = "32 clients", "32 clients, p50", "32 clients, p99"
CLIENTS = 32
WARM = 300
REQUESTS = 15_000
OURS = "cplane web"
THEIRS = "FastAPI reference"
BODY = '{"job": "noop", "args": {"slot": 0}}'


def steps(bench: Bench) -> int:
    """Return how many progress reports `run` makes."""
    return 2 * bench.effort.rounds


async def run(bench: Bench) -> None:
    """Run all rounds."""
    for number in range(bench.effort.rounds):
        for name in (OURS, THEIRS):
            bench.report(f"http, round {number + 1}: {name}")
            try:
                await _measure(bench, name)
            except (Unavailable, TimeoutError) as error:
                bench.results.skip(NAME, RATE, name, str(error) or "no result in time")


async def _measure(bench: Bench, name: str) -> None:
    ours = name == OURS
    await bench.servers.empty(await bench.template(RECORDED) if ours else None)
    plan = {
        "method": "POST",
        "path": "/api/v1/jobs",
        "body": BODY,
        "connections": CLIENTS,
        "requests": REQUESTS,
        "warm": WARM,
    }
    tally = Tally(1)
    try:
        env = {**bench.environment(RECORDED, 256), VARIABLE: str(tally.path)}
        command, cwd = _command(ours)
        async with web_server(command, env=env, cwd=cwd, log=bench.log(name)) as port:
            seen = await load(bench.folder, {**plan, "port": port})
        rows = int(
            await bench.servers.fetch("SELECT count(*) FROM cplane.jobs" if ours else "SELECT count(*) FROM job")
        )
    finally:
        tally.close()
    accepted = seen.accepted + WARM
    count = Count(lost=max(0, accepted - rows), doubled=max(0, rows - accepted))
    bench.results.add(NAME, RATE, name, "req/s", seen.per_s, count=count, note=seen.other_outcomes)
    bench.results.add(NAME, P50, name, "ms", seen.p50_ms)
    bench.results.add(NAME, P99, name, "ms", seen.p99_ms)


def _command(ours: bool) -> tuple[list[str], Path]:
    if ours:
        return [sys.executable, "-m", "cplane", "web", "--port", "{port}"], RECORDED.files
    uvicorn = [
        python(REFERENCE),
        "-m",
        "uvicorn",
        "app:app",
        "--port",
        "{port}",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    ]
    return [*uvicorn, "--no-access-log", "--log-level", "warning"], BENCHMARKS / REFERENCE
