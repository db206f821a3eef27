"""Random moves of many clients and workers on the real SQL and Lua, against a model of what each move may change.

No worker runs: every verb is called by hand, in any order, with old fences, twice, after a lease has ended or Redis was emptied. Time
is not waited for: leases end and due times pass because the rows and keys are set so.
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
from cplane.jobs.states import MAX_CRASHES, AttemptState, Cause, Priority, State
from cplane.postgres.database import Database
from cplane.postgres.rows import Error, Finish, NewRecord, Renew, Started
from cplane.postgres.store import Store
from cplane.redis.connection import connect
from cplane.redis.events import Events
from cplane.redis.messages import Ack, Disposition, EnqueueRequest, Lease
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id
from cplane.worker.reconciler import Reconciler

LEASE_S = 600.0
DELAY_S = 3600.0
QUEUE = "default"

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
    """What the row of a record must say."""

    state: State = State.QUEUED
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    cancel: bool = False
    token: str | None = None
    deferred: bool = False
    lease_over: bool = False

    def row(self) -> tuple[object, ...]:
        return self.state.value, self.attempt, self.failures, self.crashes, self.interruptions, self.cancel

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
        state = State.FAILED if self.crashes + 1 >= MAX_CRASHES else State.QUEUED
        return replace(self, crashes=self.crashes + 1, state=State.CANCELLED if self.cancel else state)


@dataclass
class Servers:
    """The gateways on a loop of their own, that runs while a rule calls one."""

    runner: asyncio.Runner
    database: Database
    connection: Any
    redis: Any
    store: Store = field(init=False)
    queue: Queue = field(init=False)
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.store, self.queue = Store(self.database), Queue(self.redis)
        self.reconciler = Reconciler("w", self.store, self.queue, Events(self.redis), [QUEUE])

    def do(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Past the store, in one round trip."""
        return list(self.do(self.connection.fetch(statement, *values)))


class Protocol(RuleBasedStateMachine):
    """Clients and workers without a plan."""

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

    @rule(number=st.integers(1, 2), deferred=st.booleans(), pushed=st.booleans())
    def submit(self, number: int, deferred: bool, pushed: bool) -> None:
        delay_s = DELAY_S if deferred else 0.0
        records = [
            NewRecord(id=new_id(), job="j", queue=QUEUE, args_json=b"{}", delay_s=delay_s) for _ in range(number)
        ]
        self.servers.do(self.servers.store.submit(records))
        for record in records:
            self.models[record.id] = Model(deferred=deferred)
        if pushed:
            self.servers.do(self.servers.queue.enqueue([push(record.id, int(delay_s * 1000)) for record in records]))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        record = self.pick(data)
        model = self.models[record]
        if model.state.final:
            with pytest.raises(InvalidTransition):
                self.servers.do(self.servers.store.cancel(record))
            return
        left = State.CANCELLED if model.state is State.QUEUED else State.RUNNING
        assert self.servers.do(self.servers.store.cancel(record)) is left
        self.models[record] = replace(model, state=left, cancel=True)

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
        self.servers.do(self.servers.queue.enqueue([push(record, 0, late_ms=0)]))

    # workers

    @initialize()
    def begin_with_running_records(self) -> None:
        self.submit(3, deferred=False, pushed=True)
        self.work(2)

    @rule(room=st.integers(1, 4))
    def work(self, room: int) -> None:
        """Claim and start, as a worker does."""
        for lease in self.claim(room):
            self.start_record(lease)

    @rule(room=st.integers(1, 4))
    def claim_and_die(self, room: int) -> None:
        self.claim(room)

    def claim(self, room: int) -> list[Lease]:
        leases = self.servers.do(self.servers.queue.claim(QUEUE, room, LEASE_S)).leases
        assert len({lease.id for lease in leases}) == len(leases) <= room
        assert not any(self.models[UUID(lease.id)].deferred for lease in leases)
        self.leases += leases
        return leases

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """With any lease there ever was; twice with the same is once."""
        self.start_record(data.draw(st.sampled_from(self.leases)))

    def start_record(self, lease: Lease) -> None:
        record = UUID(lease.id)
        model = self.models[record]
        answers = self.servers.do(self.servers.store.start("w", [record], lease.token, LEASE_S))
        if model.state is State.QUEUED and not model.deferred:
            model = replace(model, state=State.RUNNING, attempt=model.attempt + 1, token=lease.token, lease_over=False)
            self.models[record] = model
        elif model.state is not State.RUNNING or model.token != lease.token:
            assert answers == []
            return
        (answer,) = answers
        assert (answer.attempt, answer.token) == (model.attempt, lease.token)
        self.started.append(answer)

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        started = data.draw(st.sampled_from(self.started))
        renewal = Renew(id=started.id, attempt=started.attempt, token=started.token)
        answers = self.servers.do(self.servers.store.renew([renewal], LEASE_S))
        model = self.models[started.id]
        if self.owns(started):
            assert answers == {(started.id, started.attempt): model.cancel}
            self.models[started.id] = replace(model, lease_over=False)
        else:
            assert answers == {}
        self.servers.do(self.servers.queue.renew([self.grant_of(started)], LEASE_S))

    @precondition(lambda self: self.started)
    @rule(data=st.data(), name=st.sampled_from(sorted(OUTCOMES)), times=st.integers(1, 2), told=st.booleans())
    def finish(self, data: st.DataObject, name: str, times: int, told: bool) -> None:
        """By any attempt there ever was, perhaps twice, perhaps without telling Redis."""
        started = data.draw(st.sampled_from(self.started))
        owned = self.owns(started)
        if owned:
            self.models[started.id] = self.models[started.id].finished(name)
        for _ in range(times):
            answers = self.servers.do(self.servers.store.finish([outcome(started, name)]))
            assert not owned or (started.id, started.attempt) in answers
            assert set(answers.values()) <= {self.models[started.id].state}
        if told and owned:
            action = Disposition.RETRY if self.models[started.id].state is State.QUEUED else Disposition.DONE
            self.servers.do(self.servers.queue.ack([Ack(self.grant_of(started), action)]))

    @precondition(lambda self: self.started)
    @rule(name=st.sampled_from(["retries", "is released", "is interrupted", "fails"]))
    def the_latest_ends(self, name: str) -> None:
        """So that there are second and third attempts, and fences that are old."""
        started = self.started[-1]
        if self.owns(started):
            self.models[started.id] = self.models[started.id].finished(name)
        self.servers.do(self.servers.store.finish([outcome(started, name)]))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A worker hands back what it claimed, at any time."""
        lease = data.draw(st.sampled_from(self.leases))
        self.servers.do(self.servers.queue.ack([Ack(lease, Disposition.RELEASE, lease.due_ms)]))

    # time, faults and the reconciler

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def lease_ends(self, data: st.DataObject) -> None:
        record = self.pick(data, State.RUNNING)
        model = self.models[record]
        if model.state is State.RUNNING:
            statement = "UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 second' WHERE id = $1"
            self.servers.sql(statement, record)
            self.models[record] = replace(model, lease_over=True)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def lease_ends_in_redis(self, data: st.DataObject) -> None:
        self.end_redis_lease(self.pick(data))

    @rule()
    def reap(self) -> None:
        """Without the push that follows it in a reconciler: that died on the way."""
        dead = {record: model for record, model in self.models.items() if is_dead(model)}
        reaped = self.servers.do(self.servers.store.reap(1000))
        self.expect_reaped(dead)
        assert {standing.id: standing.state for standing in reaped} == {
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
    def what_is_queued_can_be_claimed(self) -> None:
        """Whatever happened: once leases have ended and the reconciler has passed, Redis hands out all that is queued and due."""
        for record in self.models:
            self.end_redis_lease(record)
        aged = "UPDATE cplane.jobs SET run_at = run_at - interval '2 seconds' WHERE state = 'queued'"
        self.servers.sql(aged)
        self.reconcile()
        self.servers.sql(aged)  # what was reaped a moment ago
        self.reconcile()
        leases = self.servers.do(self.servers.queue.claim(QUEUE, 1000, LEASE_S)).leases
        self.leases += leases
        claimed = {UUID(lease.id) for lease in leases}
        assert {record for record, model in self.models.items() if is_due(model)} <= claimed
        for lease in leases:
            self.start_record(lease)

    @invariant()
    def rows_are_as_modelled(self) -> None:
        rows = self.servers.sql(
            "SELECT id, state, attempt, failures, crashes, interruptions, cancel_requested FROM cplane.jobs"
        )
        assert {row[0]: tuple(row[1:]) for row in rows} == {
            record: model.row() for record, model in self.models.items()
        }

    def teardown(self) -> None:
        self.what_is_queued_can_be_claimed()

    def owns(self, started: Started) -> bool:
        model = self.models[started.id]
        return model.state is State.RUNNING and (model.attempt, model.token) == (started.attempt, started.token)

    def grant_of(self, started: Started) -> Lease:
        return next(lease for lease in self.leases if lease.token == started.token)

    def expect_reaped(self, dead: dict[UUID, Model]) -> None:
        self.models |= {record: model.reaped() for record, model in dead.items()}

    def end_redis_lease(self, record: UUID) -> None:
        """As if its time were over: the lease is gone, and the id falls due."""
        redis = self.servers.redis
        if self.servers.do(redis.delete(f"arq:in-progress:{record}")):
            self.servers.do(redis.zadd("arq:queue", {str(record): 1}, xx=True))


def push(record: UUID, delay_ms: int, *, late_ms: int = -1) -> EnqueueRequest:
    return EnqueueRequest.of_record(QUEUE, Priority.NORMAL, record, "j", delay_ms, late_ms=late_ms)


def is_dead(model: Model) -> bool:
    return model.state is State.RUNNING and model.lease_over


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
    wanted = os.environ.get("CHAOS_EXAMPLES")
    run_state_machine_as_test(
        cast("Any", lambda: Protocol(protocol_servers)),  # it takes what makes one, its types say a class
        settings=settings(
            max_examples=int(wanted or 25),
            stateful_step_count=30,
            deadline=None,
            derandomize=wanted is None,
            database=None,
            phases=[Phase.generate, Phase.shrink] if wanted else [Phase.generate],  # to shrink takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
