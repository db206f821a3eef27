"""Random moves of many clients and workers on the real SQL and Lua, compared with a model of what each move may change.

No worker runs: the test calls every verb in any order, with old fences, twice, after a lease has expired or Redis was
emptied. It does not wait: leases expire and due times pass because the test changes the rows and keys.
"""

import asyncio
import os
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from cplane.errors import InvalidTransition
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES, AttemptState, Cause, Priority, State
from cplane.postgres.database import Database
from cplane.postgres.rows import Finish, NewRecord, Renew, Started
from cplane.postgres.store import Store
from cplane.redis.connection import connect
from cplane.redis.events import Events
from cplane.redis.keys import redis_name
from cplane.redis.messages import Ack, Disposition, EnqueueRequest, Lease
from cplane.redis.queue import Queue
from cplane.runtime.error_text import Error
from cplane.runtime.ids import new_id
from cplane.worker.reconciler import Reconciler
from tests.workers import no_quarantines

LEASE_S = 600.0
DELAY_S = 3600.0
QUEUE = "default"
QUARANTINE = quarantine_of(QUEUE)

T = TypeVar("T")

OUTCOMES: dict[str, tuple[State, AttemptState, Cause]] = {
    "succeeds": (State.SUCCEEDED, AttemptState.SUCCEEDED, Cause.SUBMIT),
    "fails": (State.FAILED, AttemptState.FAILED, Cause.SUBMIT),
    "retries": (State.QUEUED, AttemptState.FAILED, Cause.RETRY),
    "is released": (State.QUEUED, AttemptState.RELEASED, Cause.RELEASE),
    "is interrupted": (State.QUEUED, AttemptState.INTERRUPTED, Cause.INFRASTRUCTURE),
    "is cancelled": (State.CANCELLED, AttemptState.CANCELLED, Cause.SUBMIT),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """The expected row of a record."""

    state: State = State.QUEUED
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    suspicions: int = 0
    interruptions: int = 0
    cancel: bool = False
    token: str | None = None
    deferred: bool = False
    lease_expired: bool = False

    def row(self) -> tuple[object, ...]:
        budgets = self.failures, self.crashes, self.suspicions, self.interruptions
        return self.state.value, self.attempt, *budgets, self.cancel

    @property
    def alone(self) -> bool:
        return self.crashes + self.suspicions >= ALONE_AFTER

    def finished(self, name: str) -> "Model":
        state, attempt_state, _ = OUTCOMES[name]
        if state is State.QUEUED and self.cancel:
            state = State.CANCELLED
        return replace(
            self,
            state=state,
            failures=self.failures + (attempt_state is AttemptState.FAILED),
            interruptions=self.interruptions + (attempt_state is AttemptState.INTERRUPTED),
        )

    def reaped(self) -> "Model":
        crashes, suspicions = self.crashes + self.alone, self.suspicions + (not self.alone)
        state = State.FAILED if crashes >= MAX_CRASHES else State.QUEUED
        return replace(self, crashes=crashes, suspicions=suspicions, state=State.CANCELLED if self.cancel else state)


@dataclass
class Servers:
    """The gateways, on their own event loop that runs while a rule calls one."""

    runner: asyncio.Runner
    database: Database
    connection: Any
    redis: Any
    store: Store = field(init=False)
    queue: Queue = field(init=False)
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.store, self.queue = Store(self.database), Queue(self.redis)
        self.reconciler = Reconciler(
            "w", self.store, self.queue, Events(self.redis), [QUEUE], quarantines=no_quarantines()
        )

    def do(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Run a statement without the store, in one round trip."""
        return list(self.do(self.connection.fetch(statement, *values)))


class Protocol(RuleBasedStateMachine):
    """Clients and workers that act at random."""

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        self.servers = servers
        self.models: dict[UUID, Model] = {}
        self.leases: list[Lease] = []
        self.started: list[Started] = []
        servers.sql("DELETE FROM cplane.jobs")
        servers.do(servers.redis.flushdb())

    def pick(self, data: st.DataObject, state: State | None = None) -> UUID:
        ids = [record for record, model in self.models.items() if state is None or model.state is state]
        return data.draw(st.sampled_from(ids or list(self.models)))

    # clients

    @rule(number=st.integers(1, 2), deferred=st.booleans(), enqueued=st.booleans())
    def submit(self, number: int, deferred: bool, enqueued: bool) -> None:
        delay_s = DELAY_S if deferred else 0.0
        records = [
            NewRecord(id=new_id(), job="j", queue=QUEUE, args_json=b"{}", delay_s=delay_s) for _ in range(number)
        ]
        self.servers.do(self.servers.store.submit(records))
        for record in records:
            self.models[record.id] = Model(deferred=deferred)
        if enqueued:
            self.servers.do(
                self.servers.queue.enqueue([enqueue_request(record.id, int(delay_s * 1000)) for record in records])
            )

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        record = self.pick(data)
        model = self.models[record]
        if model.state.final:
            with pytest.raises(InvalidTransition):
                self.servers.do(self.servers.store.cancel(record))
            return
        expected = State.CANCELLED if model.state is State.QUEUED else State.RUNNING
        assert self.servers.do(self.servers.store.cancel(record)) is expected
        self.models[record] = replace(model, state=expected, cancel=True)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        record = self.pick(data, data.draw(st.sampled_from([State.FAILED, State.CANCELLED, State.SUCCEEDED])))
        model = self.models[record]
        if model.state not in {State.FAILED, State.CANCELLED}:
            with pytest.raises(InvalidTransition):
                self.servers.do(self.servers.store.replay(record))
            return
        self.servers.do(self.servers.store.replay(record))
        self.models[record] = Model(attempt=model.attempt, token=model.token)
        self.servers.do(self.servers.queue.enqueue([enqueue_request(record, 0, late_ms=0)]))

    # workers

    @initialize()
    def begin_with_running_records(self) -> None:
        self.submit(3, deferred=False, enqueued=True)
        self.work(2)

    @rule(capacity=st.integers(1, 4))
    def work(self, capacity: int) -> None:
        """Claim and start jobs, as a worker does."""
        for lease in self.claim(capacity):
            self.start_record(lease)

    @rule(capacity=st.integers(1, 4))
    def claim_and_die(self, capacity: int) -> None:
        self.claim(capacity)

    def claim(self, capacity: int) -> list[Lease]:
        leases = self.claim_from(QUEUE, capacity) or self.claim_from(QUARANTINE, capacity)
        assert len({lease.id for lease in leases}) == len(leases) <= capacity
        assert not any(self.models[UUID(lease.id)].deferred for lease in leases)
        self.leases += leases
        return leases

    def claim_from(self, queue: str, capacity: int) -> list[Lease]:
        return self.servers.do(self.servers.queue.claim(queue, capacity, LEASE_S)).leases

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """Start with any lease that ever existed; a second start with the same lease changes nothing."""
        self.start_record(data.draw(st.sampled_from(self.leases)))

    def start_record(self, lease: Lease) -> None:
        record = UUID(lease.id)
        model = self.models[record]
        alone = lease.queue == QUARANTINE
        results = self.servers.do(self.servers.store.start("w", [record], lease.token, LEASE_S, alone=alone))
        if model.state is State.QUEUED and model.alone and not alone:
            assert results == []
            self.servers.do(self.servers.queue.ack([Ack(lease, Disposition.QUARANTINE)]))
            return
        if model.state is State.QUEUED and not model.deferred:
            model = replace(
                model, state=State.RUNNING, attempt=model.attempt + 1, token=lease.token, lease_expired=False
            )
            self.models[record] = model
        elif model.state is not State.RUNNING or model.token != lease.token:
            assert results == []
            return
        (result,) = results
        assert (result.attempt, result.token) == (model.attempt, lease.token)
        self.started.append(result)

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        started = data.draw(st.sampled_from(self.started))
        renewal = Renew(id=started.id, attempt=started.attempt, token=started.token)
        results = self.servers.do(self.servers.store.renew([renewal], LEASE_S))
        model = self.models[started.id]
        if self.owns(started):
            assert results == {(started.id, started.attempt): model.cancel}
            self.models[started.id] = replace(model, lease_expired=False)
        else:
            assert results == {}
        self.servers.do(self.servers.queue.renew([self.lease_of(started)], LEASE_S))

    @precondition(lambda self: self.started)
    @rule(data=st.data(), name=st.sampled_from(sorted(OUTCOMES)), times=st.integers(1, 2), acknowledged=st.booleans())
    def finish(self, data: st.DataObject, name: str, times: int, acknowledged: bool) -> None:
        """Finish by any attempt that ever existed, possibly twice, possibly without an acknowledgement to Redis."""
        started = data.draw(st.sampled_from(self.started))
        owned = self.owns(started)
        if owned:
            self.models[started.id] = self.models[started.id].finished(name)
        for _ in range(times):
            results = self.servers.do(self.servers.store.finish([outcome(started, name)]))
            assert not owned or (started.id, started.attempt) in results
            assert set(results.values()) <= {self.models[started.id].state}
        if acknowledged and owned:
            disposition = Disposition.RETRY if self.models[started.id].state is State.QUEUED else Disposition.DONE
            self.servers.do(self.servers.queue.ack([Ack(self.lease_of(started), disposition)]))

    @precondition(lambda self: self.started)
    @rule(name=st.sampled_from(["retries", "is released", "is interrupted", "fails"]))
    def finish_the_latest(self, name: str) -> None:
        """Makes second and third attempts, and old fences, more likely."""
        started = self.started[-1]
        if self.owns(started):
            self.models[started.id] = self.models[started.id].finished(name)
        self.servers.do(self.servers.store.finish([outcome(started, name)]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Release a lease at any time, as a worker that stops."""
        lease = data.draw(st.sampled_from(self.leases))
        self.servers.do(self.servers.queue.ack([Ack(lease, Disposition.RELEASE, lease.due_ms)]))

    # time, faults and the reconciler

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def expire_lease(self, data: st.DataObject) -> None:
        record = self.pick(data, State.RUNNING)
        model = self.models[record]
        if model.state is State.RUNNING:
            statement = "UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1"
            self.servers.sql(statement, record)
            self.models[record] = replace(model, lease_expired=True)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def expire_redis_lease(self, data: st.DataObject) -> None:
        self.expire_in_redis(self.pick(data))

    @rule()
    def reap(self) -> None:
        """Reap without the enqueue that follows in a reconciler, as if the reconciler died between both."""
        dead = {record: model for record, model in self.models.items() if is_dead(model)}
        reaped = self.servers.do(self.servers.store.reap(1000))
        self.expect_reaped(dead)
        assert {reaped_record.id: reaped_record.state for reaped_record in reaped} == {
            record: self.models[record].state for record in dead
        }

    @rule()
    def reconcile(self) -> None:
        dead = {record: model for record, model in self.models.items() if is_dead(model)}
        self.servers.do(self.servers.reconciler.run())
        self.expect_reaped(dead)

    @rule()
    def flush(self) -> None:
        self.servers.do(self.servers.redis.flushdb())

    @rule()
    def all_ready_jobs_can_be_claimed(self) -> None:
        """After any history, once leases have expired and the reconciler has run, a claim returns every ready job."""
        for record in self.models:
            self.expire_in_redis(record)
        aged = "UPDATE cplane.jobs SET run_at = run_at - interval '2 seconds' WHERE state = 'queued'"
        self.servers.sql(aged)
        self.reconcile()
        self.servers.sql(aged)  # for the jobs that this pass has reaped
        self.reconcile()
        due = {record for record, model in self.models.items() if is_due(model)}
        claimed = set[UUID]()
        for queue in (QUEUE, QUARANTINE):
            leases = self.claim_from(queue, 1000)
            self.leases += leases
            claimed |= {UUID(lease.id) for lease in leases if not self.is_refused(lease)}
            for lease in leases:
                self.start_record(lease)
        assert due <= claimed

    @invariant()
    def rows_match_the_model(self) -> None:
        rows = self.servers.sql(
            "SELECT id, state, attempt, failures, crashes, suspicions, interruptions, cancel_requested FROM cplane.jobs"
        )
        assert {row[0]: tuple(row[1:]) for row in rows} == {
            record: model.row() for record, model in self.models.items()
        }

    def teardown(self) -> None:
        self.all_ready_jobs_can_be_claimed()

    def is_refused(self, lease: Lease) -> bool:
        """Whether the record must run alone, and the lease is not of the quarantine."""
        return self.models[UUID(lease.id)].alone and lease.queue != QUARANTINE

    def owns(self, started: Started) -> bool:
        model = self.models[started.id]
        return model.state is State.RUNNING and (model.attempt, model.token) == (started.attempt, started.token)

    def lease_of(self, started: Started) -> Lease:
        return next(lease for lease in self.leases if lease.token == started.token)

    def expect_reaped(self, dead: dict[UUID, Model]) -> None:
        self.models |= {record: model.reaped() for record, model in dead.items()}

    def expire_in_redis(self, record: UUID) -> None:
        """Expire the lease in Redis: delete it, and make the id due."""
        redis = self.servers.redis
        if self.servers.do(redis.delete(f"arq:in-progress:{record}")):
            for queue in (QUEUE, QUARANTINE):
                self.servers.do(redis.zadd(redis_name(queue), {str(record): 1}, xx=True))


def enqueue_request(record: UUID, delay_ms: int, *, late_ms: int = -1) -> EnqueueRequest:
    return EnqueueRequest.of_record(QUEUE, Priority.NORMAL, record, "j", delay_ms, late_ms=late_ms)


def is_dead(model: Model) -> bool:
    return model.state is State.RUNNING and model.lease_expired


def is_due(model: Model) -> bool:
    return model.state is State.QUEUED and not model.deferred


def outcome(started: Started, name: str) -> Finish:
    state, attempt_state, cause = OUTCOMES[name]
    return Finish(
        id=started.id,
        attempt=started.attempt,
        token=started.token,
        state=state,
        attempt_state=attempt_state,
        result_json=b"1" if state is State.SUCCEEDED else None,
        error=Error("E", "m") if attempt_state is AttemptState.FAILED else None,
        cause=cause,
        failures=int(attempt_state is AttemptState.FAILED),
        interruptions=int(attempt_state is AttemptState.INTERRUPTED),
    )


@pytest.fixture
def protocol_servers(database_url: str, redis_url: str) -> Iterator[Servers]:
    with asyncio.Runner() as runner:
        database = Database(SecretStr(database_url))
        client = connect(SecretStr(redis_url))
        runner.run(database.__aenter__())
        connection: Any = runner.run(cast("Any", asyncpg).connect(database_url))
        redis = runner.run(client.__aenter__())
        try:
            yield Servers(runner, database, connection, redis)
        finally:
            runner.run(client.__aexit__(None, None, None))
            runner.run(connection.close())
            runner.run(database.__aexit__(None, None, None))


def test_no_order_of_moves_breaks_the_protocol(protocol_servers: Servers) -> None:
    examples = os.environ.get("CHAOS_EXAMPLES")
    run_state_machine_as_test(
        cast("Any", lambda: Protocol(protocol_servers)),  # it accepts a factory, although its types ask for a class
        settings=settings(
            max_examples=int(examples or 25),
            stateful_step_count=30,
            deadline=None,
            derandomize=examples is None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if examples else [Phase.generate],  # shrinking takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
