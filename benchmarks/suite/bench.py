"""One benchmark run: the servers, the size, and the workers and producers of a system on empty servers."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.suite.environments import python
from benchmarks.suite.processes import Child, Producer, Unavailable, child
from benchmarks.suite.results import Results
from benchmarks.suite.servers import Servers
from benchmarks.suite.systems import System
from benchmarks.suite.tally import Tally
from cplane.postgres.migrations import upgrade

WARM_UP_TIMEOUT_S = 60.0
"""Maximum time until a worker runs its first job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """The size of a run: `rounds` of everything, `run_s` per measurement; `quick` and `full` set the job counts."""

    rounds: int
    run_s: float
    quick: bool
    full: bool

    def sized(self, quick: int, usual: int) -> int:
        """Return the number of jobs for this size of run."""
        return quick if self.quick else usual


@dataclass(slots=True)
class Bench:
    """The context of the scenarios."""

    servers: Servers
    systems: Sequence[System]
    effort: Effort
    folder: Path
    report: Callable[[str], None]
    results: Results = field(default_factory=Results)
    noop_per_s: dict[str, float] = field(default_factory=dict[str, float])
    submit_per_s: dict[str, float] = field(default_factory=dict[str, float])

    def environment(self, system: System, concurrency: int, tally: Tally | None = None) -> dict[str, str]:
        """Return the environment variables of a system's processes."""
        return {
            **system.environment(concurrency),
            "BENCH_REDIS_URL": self.servers.redis_url,
            "BENCH_DATABASE_URL": self.servers.database_url,
            "BENCH_SLOTS": str(tally.path) if tally is not None else "",
            "CPLANE_REDIS_URL": self.servers.redis_url,
            "CPLANE_DATABASE_URL": self.servers.database_url,
            "CPLANE_ARTIFACTS_URL": (self.folder / "artifacts").as_uri(),
        }

    @asynccontextmanager
    async def stage(self, system: System, count: int) -> AsyncGenerator["Stage"]:
        """Empty the servers, and provide slots for `count` jobs and a producer of this system."""
        await self.servers.empty(await self.template(system))
        async with AsyncExitStack() as stack:
            tally = Tally(count)
            stack.callback(tally.close)
            producer = Producer(
                await stack.enter_async_context(
                    child(
                        [system.python, "client.py"],
                        env=self.environment(system, system.noop_concurrency, tally),
                        cwd=system.files,
                        log=self.log(f"{system.name} producer"),
                        piped=True,
                    )
                )
            )
            await producer.ready()
            yield Stage(self, system, tally, producer)

    async def template(self, system: System) -> str | None:
        """Return the template database with the empty tables of the system."""
        return await self.servers.template(system, lambda url: self._prepare(system, url))

    def log(self, name: str) -> Path:
        """Return the file for the output of a child."""
        return self.folder / f"{name.replace(' ', '-')}.log"

    async def _prepare(self, system: System, url: str) -> None:
        """Create the tables of the system."""
        if system.ours:
            await upgrade(url)
            return
        command = [python(system.folder), "-m", "procrastinate", "--app", "app.app", "schema", "--apply"]
        tally = Tally(1)
        env = {**self.environment(system, 1, tally), "BENCH_DATABASE_URL": url}
        try:
            async with child(command, env=env, cwd=system.files, log=self.log(f"{system.name} schema")) as applied:
                if await applied.process.wait() != 0:
                    raise Unavailable(f"its schema could not be applied: {applied.last_line()}")
        finally:
            tally.close()


@dataclass(frozen=True, slots=True)
class Stage:
    """Everything that one measurement of one system needs."""

    bench: Bench
    system: System
    tally: Tally
    producer: Producer

    @asynccontextmanager
    async def workers(self, count: int = 1, *, concurrency: int | None = None) -> AsyncGenerator[list[Child]]:
        """Start `count` workers concurrently, and stop them at the end."""
        concurrency = concurrency or self.system.noop_concurrency
        env = self.bench.environment(self.system, concurrency, self.tally)
        async with AsyncExitStack() as stack:
            started: list[Child] = []
            for number in range(count):
                worker = child(
                    self.system.worker_command(concurrency, f"w{number}"),
                    env=env,
                    cwd=self.system.files,
                    log=self.bench.log(f"{self.system.name} worker {number}"),
                )
                started.append(await stack.enter_async_context(worker))
            yield started

    async def finish(self, count: int, workers: Sequence[Child], *, first: int = 0) -> None:
        """Wait for jobs. Raises Unavailable if a worker ends."""
        waiting = asyncio.ensure_future(self.tally.wait(count, first=first))
        endings = [asyncio.ensure_future(worker.process.wait()) for worker in workers]
        try:
            await asyncio.wait([waiting, *endings], return_when=asyncio.FIRST_COMPLETED)
            for worker in workers:
                worker.check()
            await waiting
        finally:
            for task in (waiting, *endings):
                task.cancel()

    async def warm(self, workers: Sequence[Child], count: int = 20) -> None:
        """Run jobs in the first `count` slots, so that the measurement starts with a warm worker."""
        await self.producer.order("single", "noop", 0, count)
        async with asyncio.timeout(WARM_UP_TIMEOUT_S):
            await self.finish(count, workers)
        await asyncio.sleep(0.5)

    async def records_open(self) -> int:
        """Return how many records of cplane have not succeeded; 0 for every other system."""
        if not (self.system.ours and self.system.database):
            return 0
        return int(await self.bench.servers.fetch("SELECT count(*) FROM cplane.jobs WHERE state <> 'succeeded'"))
