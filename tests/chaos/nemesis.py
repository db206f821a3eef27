"""The long run: submits jobs while it injects faults from a seeded generator, then heals everything and judges."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.checker import Violation
from tests.chaos.gateways import Action, Point, Rates, verbs
from tests.chaos.history import FaultKind, History
from tests.chaos.nursery import ChaosWorker
from tests.chaos.scenario import FAULT_TAIL_S, Scenario
from tests.chaos.worker import Plan

WORKERS = 4
MAX_PAUSE_S = 1.0
"""Between two faults."""

SUBMIT_BATCH = 50
CALLS = Rates(seed=0, error=0.002, late_error=0.002, delay=0.002)
"""Rare enough that an event of a job usually has one cause only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a long run."""

    at_s: float
    submitted: int
    fault: str


class Nemesis:
    """Submits `jobs` within `minutes` while it injects one fault after the other."""

    def __init__(self, run: Scenario, *, jobs: int, minutes: float, report: Callable[[Progress], None]) -> None:
        self._run = run
        self._jobs = jobs
        self._duration_s = minutes * 60
        self._report = report
        self._submitted = 0
        self._began = time.monotonic()

    async def work(self, final_s: float) -> tuple[list[Violation], History]:
        """Run everything, and return the violations and the history."""
        for _ in range(WORKERS):
            await self._start()
        submitting = asyncio.create_task(self._submit(), name="submit")
        while not submitting.done():
            fault = self._run.random.choice(FAULTS)
            self._report(self._progress(fault.__name__))
            await self._replace_dead()
            await fault(self)
            await asyncio.sleep(self._run.random.uniform(0, MAX_PAUSE_S))
        await submitting
        self._report(self._progress("healed; waiting until everything is final"))
        return await self._run.violations(final_s)

    def _progress(self, fault: str) -> Progress:
        return Progress(at_s=time.monotonic() - self._began, submitted=self._submitted, fault=fault)

    async def _submit(self) -> None:
        """Submit the jobs, evenly distributed over the duration."""
        while self._submitted < self._jobs:
            number = min(SUBMIT_BATCH, self._jobs - self._submitted)
            ids = await self._run.submit_all(self._run.workload.mixed(number, max_s=1.0))
            await self._run.submit_transient(self._run.workload.unrecorded(1 + number // 10, max_s=1.0))
            self._submitted += number
            for record in ids:
                if record is not None and self._run.random.random() < 0.03:
                    await self._run.cancel(record)
            due = self._began + self._duration_s * self._submitted / self._jobs
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _start(self, plan: Plan | None = None) -> None:
        seed = self._run.random.randrange(2**31)
        rates = Rates(seed=seed, error=CALLS.error, late_error=CALLS.late_error, delay=CALLS.delay)
        self._run.fork_worker(plan or Plan(rates=rates, clock_s=3600.0), proxied=self._run.random.random() < 0.5)
        await asyncio.sleep(0)

    async def _replace_dead(self) -> None:
        for _ in range(WORKERS - len(self.alive())):
            await self._start()

    def alive(self) -> list[ChaosWorker]:
        return [worker for worker in self._run.workers if worker.alive]

    def victim(self) -> ChaosWorker:
        return self._run.random.choice(self.alive())

    # faults

    async def kill(self) -> None:
        self._run.kill(self.victim())

    async def deploy(self) -> None:
        await self._run.stop(self.victim())

    async def freeze(self) -> None:
        with self._run.frozen(self.victim()):
            await asyncio.sleep(self._run.lease_s * self._run.random.uniform(0.5, 3))

    async def crash_at_a_call(self) -> None:
        verb = self._run.random.choice(sorted(verbs()))
        place = self._run.random.choice(["before", "after"])
        await self._start(Plan(point=Point(verb=verb, place=place, act=Action.EXIT)))
        await asyncio.sleep(2.0)

    async def step_a_clock(self) -> None:
        victim = self.victim()
        with self._run.fault(FaultKind.CLOCK, pid=victim.pid):
            victim.send(signal.SIGUSR1)

    async def flush_redis(self) -> None:
        with self._run.fault(FaultKind.REDIS, "flushed", after_s=FAULT_TAIL_S):
            await self._run.arena.flush_redis()

    async def restart_redis(self) -> None:
        """Restart Redis: empty, with its data, or with the data of a second ago."""
        arena = self._run.arena
        mode = self._run.random.choice(["empty", "unchanged", "older copy"])
        saved = arena.save_redis() if mode == "older copy" else None
        await asyncio.sleep(1.0)
        with self._run.fault(FaultKind.REDIS, mode, after_s=FAULT_TAIL_S):
            await arena.kill_redis()
            if mode != "unchanged":
                arena.load_redis(saved)
            await asyncio.sleep(self._run.random.uniform(0, 2))
            await arena.start_redis()

    async def restart_postgres(self) -> None:
        mode = self._run.random.choice([signal.SIGINT, signal.SIGQUIT])
        with self._run.fault(FaultKind.POSTGRES, mode.name, after_s=FAULT_TAIL_S):
            await self._run.arena.stop_postgres(mode)
            await asyncio.sleep(self._run.random.uniform(0, 2))
            await self._run.arena.start_postgres()

    async def end_sessions(self) -> None:
        with self._run.fault(FaultKind.POSTGRES, "sessions ended", after_s=FAULT_TAIL_S):
            await self._run.arena.end_sessions()

    async def cut_off(self) -> None:
        """Disturb the connection to one server for the workers behind the proxies."""
        arena, random = self._run.arena, self._run.random
        proxy = random.choice([arena.postgres_proxy, arena.redis_proxy])
        direction = random.choice([proxy.to_server, proxy.to_client])
        mode = random.choice(["blocked", "slow", "cut"])
        with self._run.fault(FaultKind.PARTITION, mode, after_s=FAULT_TAIL_S):
            proxy.refusing = mode == "cut"
            if mode == "slow":
                direction.delay_s = 0.1
            elif mode == "blocked":
                direction.hold()
            else:
                proxy.reset()
            await asyncio.sleep(self._run.random.uniform(0.5, 5))
            proxy.heal()


FAULTS: tuple[Callable[[Nemesis], Awaitable[None]], ...] = (
    Nemesis.kill,
    Nemesis.deploy,
    Nemesis.freeze,
    Nemesis.crash_at_a_call,
    Nemesis.step_a_clock,
    Nemesis.flush_redis,
    Nemesis.restart_redis,
    Nemesis.restart_postgres,
    Nemesis.end_sessions,
    Nemesis.cut_off,
)
