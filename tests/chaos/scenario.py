"""One scenario: submits jobs, runs workers, injects faults, and lets the checker judge the history."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from cplane.errors import CplaneError, InfrastructureError, InvalidTransition, RecordNotFound
from cplane.jobs.handle import Handle
from cplane.plane.control_plane import ControlPlane
from cplane.settings import load_settings
from tests.chaos import reading
from tests.chaos.arena import Arena, until
from tests.chaos.checker import Bounds, Violation, check, summary
from tests.chaos.gateways import RandomFaults, Rates, wrapped
from tests.chaos.history import AttemptOutcome, Exit, FaultKind, History, Move, Record, Transient
from tests.chaos.jobs import release_file
from tests.chaos.journal import TRANSIENT, VARIABLE, Journal
from tests.chaos.nursery import ChaosWorker, Nursery
from tests.chaos.worker import VARIABLE as PLAN_VARIABLE
from tests.chaos.worker import Plan
from tests.chaos.workload import Call, Workload

START_S = 20.0
STOP_S = 40.0
FINAL_S = 60.0
FAULT_TAIL_S = 1.0
"""How long a fault of a server has effects after it is healed."""

MAX_KEY_TRIES = 20


class Scenario:
    """The interface of the tests: submits jobs, starts workers and injects faults; at the end, `judge`."""

    def __init__(
        self,
        arena: Arena,
        nursery: Nursery,
        plane: ControlPlane,
        folder: Path,
        *,
        seed: int,
        lease_s: float,
        concurrency: int,
    ) -> None:
        self.arena = arena
        self.plane = plane
        self.folder = folder
        self.seed = seed
        self.lease_s = lease_s
        self.random = random.Random(f"faults {seed}")
        self.journal = Journal(folder / "journal.jsonl")
        self.workload = Workload(seed, folder)
        self.workers: list[ChaosWorker] = []
        self._transients: list[tuple[float, Handle[Any]]] = []
        self._nursery = nursery
        self._concurrency = concurrency

    # workers

    async def start_worker(self, plan: Plan | None = None, *, proxied: bool = False, **more: str) -> ChaosWorker:
        """Start a worker and wait until it serves; `more` are additional variables."""
        worker = self.fork_worker(plan, proxied=proxied, **more)
        if not await until(START_S, lambda: self._started(worker), interval_s=0.02):
            raise AssertionError(f"the worker did not start:\n{worker.log.read_text()[-4000:]}")
        return worker

    def fork_worker(self, plan: Plan | None = None, *, proxied: bool = False, **more: str) -> ChaosWorker:
        environment = {
            "CPLANE_DATABASE_URL": self.arena.proxied_database_url if proxied else self.arena.database_url,
            "CPLANE_REDIS_URL": self.arena.proxied_redis_url if proxied else self.arena.redis_url,
            "CPLANE_ARTIFACTS_URL": (self.folder / "artifacts").as_uri(),
            "CPLANE_IMPORTS": "tests.chaos.jobs",
            "CPLANE_QUEUES": f"default:{self._concurrency}",
            "CPLANE_LEASE_S": str(self.lease_s),
            "CPLANE_DRAIN_S": "5",
            VARIABLE: str(self.journal.path),
            PLAN_VARIABLE: (plan or Plan()).dump(),
            **more,
        }
        worker = self._nursery.fork(environment, self.folder / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        return worker

    async def _started(self, worker: ChaosWorker) -> bool:
        if not worker.alive:
            raise AssertionError(f"the worker ended immediately:\n{worker.log.read_text()[-4000:]}")
        return any(line["event"] == "started" and line["pid"] == worker.pid for line in self.journal.lines())

    def kill(self, worker: ChaosWorker) -> None:
        if worker.send(signal.SIGKILL):
            self.log_fault(FaultKind.KILL, pid=worker.pid)

    async def stop(self, worker: ChaosWorker) -> None:
        """Send SIGTERM and wait until the worker has ended."""
        with self.fault(FaultKind.STOP, pid=worker.pid):
            worker.send(signal.SIGTERM)
            async with asyncio.timeout(STOP_S):
                await worker.ended()

    def heal_calls(self) -> None:
        """Stop the random faults of all living workers; all of them must have been started with rates."""
        for worker in self.workers:
            worker.send(signal.SIGUSR2)

    @contextmanager
    def frozen(self, worker: ChaosWorker) -> Generator[None]:
        with self.fault(FaultKind.FREEZE, pid=worker.pid):
            worker.send(signal.SIGSTOP)
            try:
                yield
            finally:
                worker.send(signal.SIGCONT)

    @contextmanager
    def blocked(self, worker: ChaosWorker) -> Generator[None]:
        """Log that `chaos_blocks` blocks the worker's loop while this block runs; then release the loop."""
        with self.fault(FaultKind.BLOCK, pid=worker.pid):
            try:
                yield
            finally:
                release_file(self.folder).touch()

    # faults

    @contextmanager
    def fault(
        self, kind: FaultKind, note: str = "", *, pid: int | None = None, after_s: float = 0.0
    ) -> Generator[None]:
        """Log a fault that lasts while the block runs, plus `after_s`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.log_fault(kind, note, began=began, ended=time.monotonic() + after_s, pid=pid)

    def log_fault(
        self, kind: FaultKind, note: str = "", *, pid: int | None = None, began: float = 0.0, ended: float = 0.0
    ) -> None:
        now = time.monotonic()
        self.journal.write("fault", kind=kind, began=began or now, ended=ended or now, pid=pid, note=note)

    @contextmanager
    def lost_with_another_worker(self) -> Generator[None]:
        """Log that the attempts which the block starts are lost with a worker that does not exist."""
        yield
        self.log_fault(FaultKind.KILL, "a worker that does not exist")

    @asynccontextmanager
    async def failing_client(self, rates: Rates, verbs: frozenset[str]) -> AsyncGenerator[None]:
        """Replace the client by one whose calls of these verbs fail at random.

        A control plane binds its verbs when it is opened.
        """
        healthy = self.plane
        with wrapped([RandomFaults(rates, self.journal)], names=verbs):
            async with ControlPlane(healthy.settings) as plane:
                self.plane = plane
                try:
                    yield
                finally:
                    self.plane = healthy

    # jobs

    async def submit(self, call: Call) -> UUID | None:
        """Submit a job.

        Returns None without an acknowledgement. A call with a key is sent again until it is acknowledged.
        """
        at = time.monotonic()
        for _ in range(MAX_KEY_TRIES if call.key else 1):
            try:
                handle = await self.plane.create_job(
                    call.job, {"tag": call.tag} | call.args, key=call.key, delay=call.delay_s
                )
            except CplaneError:
                self._log_submit(call, at, None)
                await asyncio.sleep(0.05)
            else:
                self._log_submit(call, at, handle.id)
                return handle.id
        return None

    async def submit_all(self, calls: Iterable[Call]) -> list[UUID | None]:
        return await asyncio.gather(*(self.submit(call) for call in calls))

    async def submit_transient(self, calls: Iterable[Call]) -> None:
        """Submit transient jobs. Those that were not acknowledged are ignored."""
        for call in calls:
            at = time.monotonic()
            with suppress(InfrastructureError):
                handle = await self.plane.create_job(call.job, {"tag": call.tag} | call.args, delay=call.delay_s)
                self._transients.append((at, handle))

    async def submit_many(self, calls: list[Call]) -> None:
        """Submit all calls as one batch."""
        at = time.monotonic()
        submissions = [
            (job := self.plane.catalog.get(call.job))
            .using(delay=call.delay_s)
            .submission(job.encode_json({"tag": call.tag} | call.args))
            for call in calls
        ]
        try:
            handles = await self.plane.submit_many(submissions)
        except InfrastructureError:
            handles = []
        for index, call in enumerate(calls):
            self._log_submit(call, at, handles[index].id if handles else None)

    async def cancel(self, record: UUID) -> None:
        try:
            state = await self.plane.cancel(record)
        except InvalidTransition:
            return
        except InfrastructureError:  # it may still have been done
            self.journal.write("command", record=record, verb="cancel", state="unknown")
        else:
            self.journal.write("command", record=record, verb="cancel", state=state.value)

    async def replay(self, record: UUID) -> None:
        self.journal.write("command", record=record, verb="replay", state="queued")
        await self.plane.retry(record)

    def _log_submit(self, call: Call, at: float, record: UUID | None) -> None:
        fields = {"tag": call.tag, "job": call.job, "key": call.key, "delay_s": call.delay_s or 0.0}
        self.journal.write("submit", submitted_at=at, record=record and str(record), **fields)

    async def until_runs(
        self, number: int, *, deadline_s: float = START_S, attempt: int | None = None, kind: str = ""
    ) -> None:
        """Wait until `number` runs have begun, of any attempt or of this one."""

        async def have_begun() -> bool:
            lines = [line for line in self.journal.lines() if line["event"] == f"{kind}begin"]
            return sum(attempt in {None, line["attempt"]} for line in lines) >= number

        if not await until(deadline_s, have_begun):
            raise AssertionError(f"{number} runs did not begin within {deadline_s:g} s\n{self.report([])}")

    async def redis_has_all_queued(self) -> bool:
        """Return whether Redis has every queued job."""
        queued = await self.arena.query("SELECT id::text FROM cplane.jobs WHERE state = 'queued'")
        return {row["id"] for row in queued} <= set(await self.arena.scheduled())

    async def reached(self) -> bool:
        """Return whether a worker reached its crash point."""
        return any(line["event"] == "reached" for line in self.journal.lines())

    # the end

    async def wait_until_final(self, deadline_s: float = FINAL_S) -> bool:
        """Wait until every record is final and Redis holds none of them. Returns False at the deadline."""
        unfinished = "SELECT count(*) AS n FROM cplane.jobs WHERE state IN ('queued', 'running')"

        async def final() -> bool:
            return bool((await self.arena.query(unfinished))[0]["n"] == 0)

        return await until(deadline_s, final) and not await self._scheduled()

    async def _scheduled(self) -> list[str]:
        """Return the ids that stay in Redis.

        A reconciler that read a job before it was final may schedule it once more; a claim removes it.
        """

        async def empty() -> bool:
            return not await self.arena.scheduled()

        await until(self.lease_s * 2 + 15, empty)
        return await self.arena.scheduled()

    async def judge(self, deadline_s: float = FINAL_S) -> History:
        """Wait until everything is final, and fail if a rule was broken."""
        violations, history = await self.violations(deadline_s)
        assert not violations, self.report(violations)
        return history

    async def violations(self, deadline_s: float = FINAL_S) -> tuple[list[Violation], History]:
        await self.wait_until_final(deadline_s)
        history = await self.history()
        return check(history, Bounds(lease_s=self.lease_s)), history

    def report(self, violations: Iterable[Violation]) -> str:
        """Return the message of a failing test."""
        broken = "\n".join(f"  {violation}" for violation in violations)
        faults = "\n".join(
            f"  {line['began']:.3f} to {line['ended']:.3f} {line['kind']} {line.get('pid')} {line.get('note', '')}"
            for line in self.journal.lines()
            if line["event"] == "fault"
        )
        log_files = [
            worker.log for worker in self.workers if worker.log.exists()
        ]  # a worker that was killed immediately has none
        logs = "\n".join(f"{log}:\n{log.read_text()[-2500:]}" for log in log_files)
        return f"\nseed {self.seed}, {self.journal.path}\n{broken}\nfaults:\n{faults}\n{logs}"

    async def history(self) -> History:
        # before the journal: what a worker wrote before it ended must be in it
        exits = [Exit(pid=worker.pid, at=worker.ended_at) for worker in self.workers if worker.ended_at]
        lines = list(self.journal.lines())
        records = await self._records()
        return History(
            submits=tuple(reading.submits(lines)),
            runs=tuple(reading.runs(lines)),
            transients=tuple([await _transient(at, handle) for at, handle in self._transients]),
            transient_runs=tuple(reading.runs(lines, TRANSIENT)),
            faults=tuple(reading.faults(lines)),
            moves=tuple(await self._moves()),
            accepted=tuple(reading.accepted(lines)),
            commands=tuple(reading.commands(lines)),
            records=tuple(records),
            attempts=tuple(await self._attempts(records)),
            starts=tuple(reading.starts(lines)),
            exits=tuple(exits),
            effects=await self._effects(),
            scheduled=tuple(await self._scheduled()),
        )

    async def _records(self) -> list[Record]:
        rows = await self.arena.query("""
            SELECT id::text, args->>'tag' AS tag, job, state, attempt, failures, crashes + suspicions AS crashes, interruptions,
                   error_type, error_message,
                   CASE WHEN jsonb_typeof(result) = 'object' THEN (result->>'attempt')::int END AS result_attempt
            FROM cplane.jobs""")
        return [Record(**row) for row in rows]

    async def _moves(self) -> list[Move]:
        rows = await self.arena.query("SELECT record::text, old, new, attempt, cause FROM chaos.moves ORDER BY seq")
        return [Move(**row) for row in rows]

    async def _effects(self) -> Mapping[str, int]:
        rows = await self.arena.query("SELECT record::text, count(*) AS n FROM chaos.effects GROUP BY record")
        return {row["record"]: row["n"] for row in rows}

    async def _attempts(self, records: Iterable[Record]) -> list[AttemptOutcome]:
        """Return the attempts from the public API, independent of how they are stored."""
        return [
            AttemptOutcome(
                record=record.id, attempt=attempt.attempt, cause=attempt.cause.value, state=attempt.state.value
            )
            for record in records
            for attempt in await self.plane.attempts(UUID(record.id))
        ]

    def end(self) -> None:
        """Kill the workers and close the journal."""
        for worker in self.workers:
            worker.send(signal.SIGKILL)
        self.journal.close()

    def verdict(self, history: History, violations: list[Violation]) -> str:
        """Return a summary in one line."""
        faults = sum(fault.kind is not FaultKind.STALL for fault in history.faults)
        result = f"{len(violations)} violations" if violations else "no violation"
        reruns = sum(run.attempt > 1 for run in history.runs)
        return (
            f"seed {self.seed}: {result}; {len(history.submits)} submissions, {summary(history.records)}; "
            f"{len(history.runs)} runs ({reruns} of them reruns), {faults} faults, {len(history.faults) - faults} stalls"
        )


async def _transient(at: float, handle: Handle[Any]) -> Transient:
    try:
        state = (await handle.state()).value
    except RecordNotFound:
        state = None
    return Transient(id=str(handle.id), at=at, state=state)


@asynccontextmanager
async def scenario(
    arena: Arena,
    nursery: Nursery,
    folder: Path,
    *,
    seed: int = 1,
    lease_s: float = 2.0,
    concurrency: int = 20,
    proxied: bool = False,
) -> AsyncGenerator[Scenario]:
    """Open a scenario in this arena. `proxied`: its client goes through the proxies too."""
    settings = load_settings(
        database_url=arena.proxied_database_url if proxied else arena.database_url,
        redis_url=arena.proxied_redis_url if proxied else arena.redis_url,
        artifacts_url=(folder / "artifacts").as_uri(),
        imports=("tests.chaos.jobs",),
    )
    folder.mkdir(exist_ok=True)
    async with ControlPlane(settings) as plane:
        run = Scenario(arena, nursery, plane, folder, seed=seed, lease_s=lease_s, concurrency=concurrency)
        try:
            yield run
        finally:
            run.end()
