"""Every state change of a record on real Postgres, with its guard; then random sequences of changes against a model."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from dataclasses import replace as dataclass_replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from msgspec.structs import replace
from pydantic import SecretStr
from sqlmodel import text

from cplane.errors import ArtifactNotFound, IdempotencyConflict, InvalidTransition, RecordNotFound
from cplane.jobs.context import Artifact, Progress
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES, TRANSITIONS, AttemptState, Cause, State
from cplane.postgres import statements
from cplane.postgres.database import STATEMENT_SETTINGS, Database
from cplane.postgres.models import JobRecord
from cplane.postgres.rows import Fence, Finish, NewRecord, RecordFilter, Renew, Started, Submitted
from cplane.postgres.store import Store
from cplane.runtime.error_text import Error
from cplane.runtime.ids import new_id

LEASE_S = 30.0
OVER_S = -1.0
"""The length of a lease that has expired when it begins."""


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(SecretStr(database_url)) as database:
        yield database


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


def new(**options: Any) -> NewRecord:
    given: dict[str, Any] = {"id": new_id(), "job": "j", "queue": "q", "args_json": b"{}"} | options
    return NewRecord(**given)


async def queued(store: Store, **options: Any) -> UUID:
    record = new(**options)
    (submitted,) = await store.submit([record])
    assert isinstance(submitted, Submitted)
    return record.id


async def started(
    store: Store, record_id: UUID | None = None, *, token: str = "t", lease_s: float = LEASE_S, alone: bool = False
) -> Started:
    record_id = record_id or await queued(store)
    (attempt,) = await store.start("w", [record_id], token, lease_s, alone=alone)
    return attempt


def finish(attempt: Started, state: State = State.SUCCEEDED, **options: Any) -> Finish:
    attempt_state = AttemptState(state) if state.final else AttemptState.FAILED
    given: dict[str, Any] = {"state": state, "attempt_state": attempt_state} | options
    return Finish(id=attempt.id, attempt=attempt.attempt, token=attempt.token, **given)


async def rows(database: Database, statement: str) -> list[dict[str, Any]]:
    """Return what the tables hold, without the store."""
    async with database.session() as session:
        connection = await session.connection()
        return [dict(row) for row in (await connection.execute(text(statement))).mappings()]


async def snapshot(database: Database) -> list[dict[str, Any]]:
    """Return every row of records and attempts."""
    return [
        *await rows(database, "SELECT * FROM cplane.jobs ORDER BY id"),
        *await rows(database, "SELECT * FROM cplane.attempts ORDER BY job_id, attempt"),
    ]


# submit


async def test_a_batch_is_recorded_whole_and_returned_in_order(store: Store) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    records = [
        new(job="a", args_json='{"x": ["ü", 1.5, null]}'.encode()),
        new(job="b", queue="other", delay_s=60),
        new(job="c", run_at=tomorrow),
        new(job="d", delay_s=0.0),
        new(job="e", run_at=tomorrow - timedelta(days=2)),
    ]
    results = await store.submit(records)
    assert [(result.id, result.created, result.state) for result in results if isinstance(result, Submitted)] == [
        (record.id, True, State.QUEUED) for record in records
    ]
    delays = [result.delay_ms for result in results if isinstance(result, Submitted)]
    assert delays[0] <= 0
    assert 55_000 < delays[1] <= 60_000
    assert 86_300_000 < delays[2] <= 86_400_000
    assert delays[3] <= 0
    assert delays[4] < -86_000_000

    found = {record.job: record for record in await store.get_many([record.id for record in records])}
    assert found["a"].args == {"x": ["ü", 1.5, None]}
    assert found["c"].run_at == tomorrow
    assert {record.queue for record in found.values()} == {"q", "other"}
    assert {(record.attempt, record.cause, record.state) for record in found.values()} == {
        (0, Cause.SUBMIT, State.QUEUED)
    }


async def test_a_key_returns_its_first_record_and_a_conflict_for_another_call(store: Store) -> None:
    first = new(key="k", request_hash=b"1", delay_s=60)
    await store.submit([first])
    again, other, fresh = await store.submit(
        [new(key="k", request_hash=b"1"), new(key="k", request_hash=b"2"), new(key="fresh", request_hash=b"1")]
    )
    assert isinstance(again, Submitted)
    assert (again.id, again.created, again.state) == (first.id, False, State.QUEUED)
    assert 55_000 < again.delay_ms <= 60_000
    assert isinstance(other, IdempotencyConflict)
    assert str(first.id) in str(other)
    assert isinstance(fresh, Submitted)
    assert fresh.created
    assert len(await store.find(RecordFilter())) == 2


async def test_a_key_repeated_in_one_batch_creates_one_record(store: Store) -> None:
    batch = [new(key="k", request_hash=b"1"), new(), new(key="k", request_hash=b"1"), new(key="k", request_hash=b"2")]
    first, plain, same, other = await store.submit(batch)
    assert isinstance(first, Submitted)
    assert isinstance(plain, Submitted)
    assert isinstance(same, Submitted)
    assert (first.created, plain.created, same.created) == (True, True, False)
    assert same.id == first.id == batch[0].id
    assert isinstance(other, IdempotencyConflict)


async def test_a_repeated_key_returns_the_current_state_of_its_record(store: Store) -> None:
    record = new(key="k", request_hash=b"1")
    await store.submit([record])
    await store.finish([finish(await started(store, record.id))])
    (again,) = await store.submit([new(key="k", request_hash=b"1")])
    assert isinstance(again, Submitted)
    assert (again.id, again.state) == (record.id, State.SUCCEEDED)


async def test_concurrent_submissions_of_one_key_create_one_record_in_any_order(store: Store) -> None:
    for turn in range(20):
        keys = [f"{turn}-{number}" for number in range(30)]
        batches = [
            store.submit([new(key=key, request_hash=b"1") for key in ordered])
            for ordered in (keys, keys[::-1], keys, keys[::-1])
        ]
        results = await asyncio.gather(*batches)
        made = [result for batch in results for result in batch if isinstance(result, Submitted)]
        assert len(made) == 4 * len(keys), "no call hit a conflict or a deadlock"
        assert sum(result.created for result in made) == len({result.id for result in made}) == len(keys)


# start


async def test_starting_grants_an_attempt_and_records_it(store: Store, database: Database) -> None:
    record_id = await queued(store, job="add", args_json=b'{"x": 1}')
    (attempt,) = await store.start("worker 7", [record_id], "token", LEASE_S)
    assert attempt == Started(
        id=record_id,
        attempt=1,
        token="token",
        job="add",
        args_json=b'{"x": 1}',
        failures=0,
        interruptions=0,
    )
    record = await store.get(record_id)
    assert (record.state, record.attempt, record.worker, record.lease_token) == (State.RUNNING, 1, "worker 7", "token")
    (recorded,) = await store.attempts(record_id)
    assert (recorded.attempt, recorded.worker, recorded.cause, recorded.state) == (
        1,
        "worker 7",
        Cause.SUBMIT,
        AttemptState.RUNNING,
    )
    (left,) = await rows(database, "SELECT extract(epoch FROM lease_until - clock_timestamp()) AS s FROM cplane.jobs")
    assert LEASE_S - 5 < left["s"] <= LEASE_S


async def test_repeating_a_start_changes_nothing_and_returns_the_same(store: Store, database: Database) -> None:
    one, two = await queued(store), await queued(store)
    first = await store.start("w", [one, two], "token", LEASE_S)
    before = await snapshot(database)
    again = await store.start("w", [two, one], "token", LEASE_S)
    assert sorted(first, key=lambda attempt: attempt.id) == sorted(again, key=lambda attempt: attempt.id)
    assert await snapshot(database) == before


async def test_a_record_that_is_not_due_cancelled_running_or_unknown_is_not_started(
    store: Store, database: Database
) -> None:
    later, cancelled = await queued(store, delay_s=60), await queued(store)
    running, done = await started(store), await started(store)
    await store.cancel(cancelled)
    await store.finish([finish(done)])
    before = await snapshot(database)
    ids = [later, cancelled, running.id, done.id, new_id()]
    assert await store.start("w", ids, "other", LEASE_S) == []
    assert await snapshot(database) == before


async def test_concurrent_starts_of_the_same_records_give_each_to_one_worker(store: Store) -> None:
    for turn in range(15):
        records = [new() for _ in range(40)]
        await store.submit(records)
        ids = [record.id for record in records]
        results = await asyncio.gather(
            *(
                store.start(worker, ordered, f"{worker}{turn}", LEASE_S)
                for worker, ordered in (("a", ids), ("b", ids[::-1]), ("c", ids), ("d", ids[::-1]))
            )
        )
        granted = [attempt.id for result in results for attempt in result]
        assert sorted(granted) == sorted(ids)


@pytest.mark.parametrize("filled", [False, True])
async def test_state_changes_find_their_records_by_primary_key_whatever_the_planner_assumes(
    store: Store, database_url: str, *, filled: bool
) -> None:
    """With statistics of an empty and of a full table: a plan is kept while the table grows from one to the other."""
    connect: Any = asyncpg.connect  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    connection: Any = await connect(database_url, server_settings=STATEMENT_SETTINGS)
    try:
        if filled:
            await store.submit([new() for _ in range(2000)])
        await connection.execute("ANALYZE cplane.jobs")
        for statement in (
            statements.START,
            statements.STARTED,
            statements.RENEW,
            statements.FINISH_PLAIN,
            statements.FINISH,
        ):
            await connection.execute(f"PREPARE move AS {statement.sql}")
            nothing = ", ".join(["NULL"] * len(statement.names))
            plan: list[str] = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE move({nothing})")]
            await connection.execute("DEALLOCATE move")
            reads = [line.split("->")[-1].strip().partition("  (")[0] for line in plan if " on jobs" in line]
            assert reads
            reads = [read for read in reads if not read.startswith("Update")]
            assert all(read.startswith("Index Scan using jobs_pkey on jobs") for read in reads), plan
    finally:
        await connection.close()


# renew


async def test_renewing_extends_the_lease_keeps_progress_and_reports_a_wanted_cancel(store: Store) -> None:
    one, two = await started(store, lease_s=1), await started(store, lease_s=1)
    await store.cancel(two.id)
    fence = [Renew(id=attempt.id, attempt=1, token="t") for attempt in (one, two)]
    before = await store.get(one.id)
    results = await store.renew([dataclass_replace(fence[0], progress=Progress(1, 4, "a\0b")), fence[1]], LEASE_S)
    assert results == {(one.id, 1): False, (two.id, 1): True}
    after = await store.get(one.id)
    assert before.lease_until is not None
    assert after.lease_until is not None
    assert after.lease_until - before.lease_until > timedelta(seconds=LEASE_S - 5)
    assert (after.progress_done, after.progress_total, after.progress_note) == (1, 4, "a\\0b")

    await store.renew([fence[0]], LEASE_S)
    kept = await store.get(one.id)
    assert (kept.progress_done, kept.progress_total, kept.progress_note) == (1, 4, "a\\0b")
    await store.renew([dataclass_replace(fence[0], progress=Progress(2))], LEASE_S)
    moved = await store.get(one.id)
    assert (moved.progress_done, moved.progress_total, moved.progress_note) == (2, None, "")


async def test_a_worker_that_does_not_own_the_attempt_renews_and_finishes_nothing(
    store: Store, database: Database
) -> None:
    mine, waiting, done = await started(store), await queued(store), await started(store)
    await store.finish([finish(done)])
    before = await snapshot(database)
    fences = [
        replace(mine, token="other"),
        replace(mine, attempt=0),
        replace(mine, attempt=2),
        replace(mine, id=waiting),
        replace(mine, id=new_id()),
        replace(done, token="other"),
        replace(done, attempt=2),
    ]
    for fence in fences:
        renewal = Renew(id=fence.id, attempt=fence.attempt, token=fence.token, progress=Progress(9))
        assert await store.renew([renewal], LEASE_S) == {}
        for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED):
            assert await store.finish([finish(fence, state)]) == {}
    assert await store.renew([Renew(id=done.id, attempt=1, token="t")], LEASE_S) == {}
    assert await snapshot(database) == before


async def test_a_stale_attempt_in_the_same_batch_as_its_successor_changes_nothing(store: Store) -> None:
    stale = await started(store, token="old", lease_s=OVER_S)
    await store.reap(10)
    fresh = await started(store, stale.id, token="new")
    for batch in ([stale, fresh], [fresh, stale]):
        renewals = [
            Renew(id=each.id, attempt=each.attempt, token=each.token, progress=Progress(each.attempt)) for each in batch
        ]
        assert await store.renew(renewals, LEASE_S) == {(fresh.id, 2): False}
        assert (await store.get(fresh.id)).progress_done == 2
    late = finish(stale, State.FAILED, error=Error("Stale", "too late"))
    assert await store.finish([late, finish(fresh, result_json=b'"fresh"'), late]) == {(fresh.id, 2): State.SUCCEEDED}
    record = await store.get(fresh.id)
    assert (record.state, record.result, record.error_type) == (State.SUCCEEDED, "fresh", None)
    assert [(each.state, each.error_type) for each in await store.attempts(fresh.id)] == [
        (AttemptState.LOST, "WorkerLost"),
        (AttemptState.SUCCEEDED, None),
    ]


# finish


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED])
async def test_finishing_records_the_outcome_once_and_returns_the_same_when_repeated(
    store: Store, database: Database, state: State
) -> None:
    attempt = await started(store)
    outcome = finish(
        attempt,
        state,
        result_json=b'{"a": [1]}' if state is State.SUCCEEDED else None,
        error=None if state is State.SUCCEEDED else Error("E", "why", "where"),
        delay_s=60,
        cause=Cause.RETRY,
        failures=1,
        interruptions=2,
        progress=Progress(3, 4, "n"),
    )
    assert await store.finish([outcome]) == {(attempt.id, 1): state}
    record = await store.get(attempt.id)
    assert record.state is state
    assert (record.attempt, record.failures, record.interruptions, record.crashes) == (1, 1, 2, 0)
    assert record.result == ({"a": [1]} if state is State.SUCCEEDED else None)
    error = (None, None, None) if state is State.SUCCEEDED else ("E", "why", "where")
    assert (record.error_type, record.error_message, record.error_traceback) == error
    assert (record.progress_done, record.progress_total, record.progress_note) == (3, 4, "n")
    assert record.lease_until is None
    assert (record.finished_at is not None) == state.final
    assert record.cause is (Cause.SUBMIT if state.final else Cause.RETRY)
    (recorded,) = await store.attempts(attempt.id)
    assert recorded.state is outcome.attempt_state
    assert recorded.finished_at is not None
    assert (recorded.error_type, recorded.error_message, recorded.error_traceback) == error

    before = await snapshot(database)
    assert await store.finish([outcome]) == {(attempt.id, 1): state}
    assert await snapshot(database) == before
    if state is State.QUEUED:
        due = (await store.schedule_rows([attempt.id]))[attempt.id].due_in_ms
        assert 55_000 < due <= 60_000


async def test_a_final_record_accepts_no_other_outcome_of_the_same_attempt(store: Store, database: Database) -> None:
    attempt = await started(store)
    await store.finish([finish(attempt)])
    before = await snapshot(database)
    for state in (State.FAILED, State.CANCELLED, State.QUEUED):
        assert await store.finish([finish(attempt, state)]) == {}
    assert await snapshot(database) == before


async def test_a_null_result_is_distinct_from_no_result(store: Store, database: Database) -> None:
    null, none = await started(store), await started(store)
    await store.finish([finish(null, result_json=b"null"), finish(none)])
    found = await rows(database, "SELECT id, result IS NULL AS missing, result::text AS result FROM cplane.jobs")
    assert {row["id"]: (row["missing"], row["result"]) for row in found} == {
        null.id: (False, "null"),
        none.id: (True, None),
    }
    assert (await store.get(null.id)).result is None


async def test_text_that_postgres_cannot_store_is_escaped(store: Store) -> None:
    attempt = await started(store)
    error = Error("E\0", "lone \ud800 and \0", "trace\0back")
    await store.finish([finish(attempt, State.FAILED, error=error, progress=Progress(1, None, "\0\udfff"))])
    record = await store.get(attempt.id)
    assert (record.error_type, record.error_message, record.error_traceback, record.progress_note) == (
        "E\\0",
        "lone \\ud800 and \\0",
        "trace\\0back",
        "\\0\\udfff",
    )


async def test_an_attempt_whose_cancel_is_wanted_is_not_queued_again(store: Store, database: Database) -> None:
    retried, succeeded = await started(store), await started(store)
    for attempt in (retried, succeeded):
        assert await store.cancel(attempt.id) is State.RUNNING
    outcomes = [finish(retried, State.QUEUED, delay_s=60, failures=1), finish(succeeded)]
    expected = {(retried.id, 1): State.CANCELLED, (succeeded.id, 1): State.SUCCEEDED}
    assert await store.finish(outcomes) == expected
    assert (await store.get(retried.id)).finished_at is not None
    before = await snapshot(database)
    assert await store.finish(outcomes) == expected
    assert await snapshot(database) == before


async def test_a_release_requeues_the_record_and_uses_no_budget(store: Store) -> None:
    attempt = await started(store)
    released = finish(attempt, State.QUEUED, attempt_state=AttemptState.RELEASED, cause=Cause.RELEASE)
    assert await store.finish([released]) == {(attempt.id, 1): State.QUEUED}
    again = await started(store, attempt.id, token="next")
    assert (again.attempt, again.failures, again.interruptions) == (2, 0, 0)
    assert [(each.state, each.cause) for each in await store.attempts(attempt.id)] == [
        (AttemptState.RELEASED, Cause.SUBMIT),
        (AttemptState.RUNNING, Cause.RELEASE),
    ]
    record = await store.get(attempt.id)
    assert (record.failures, record.crashes, record.interruptions) == (0, 0, 0)


async def test_a_finish_in_the_jobs_own_transaction_commits_and_rolls_back_with_it(
    store: Store, database: Database
) -> None:
    attempt = await started(store)
    before = await snapshot(database)

    async def fail_after_finishing() -> None:
        async with store.transaction() as session:
            assert await store.finish([finish(attempt)], session) == {(attempt.id, 1): State.SUCCEEDED}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_after_finishing()
    assert await snapshot(database) == before
    async with store.transaction() as session:
        await store.finish([finish(attempt)], session)
    assert (await store.get(attempt.id)).state is State.SUCCEEDED


# cancel and replay


async def test_cancelling_ends_a_queued_record_and_marks_a_running_one(store: Store) -> None:
    waiting, attempt = await queued(store), await started(store)
    assert await store.cancel(waiting) is State.CANCELLED
    assert (await store.get(waiting)).finished_at is not None
    for _ in range(2):
        assert await store.cancel(attempt.id) is State.RUNNING
    record = await store.get(attempt.id)
    assert (record.state, record.cancel_requested, record.finished_at) == (State.RUNNING, True, None)
    assert await store.finish([finish(attempt, State.CANCELLED)]) == {(attempt.id, 1): State.CANCELLED}


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_a_final_record_cannot_be_cancelled(store: Store, database: Database, state: State) -> None:
    attempt = await started(store)
    await store.finish([finish(attempt, state)])
    before = await snapshot(database)
    with pytest.raises(InvalidTransition, match=f"the job has {state} already .*only queued and running"):
        await store.cancel(attempt.id)
    assert await snapshot(database) == before


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_a_replay_resets_the_budgets_and_the_attempt_number_keeps_growing(store: Store, state: State) -> None:
    attempt = await started(store, lease_s=OVER_S)
    await store.reap(10)
    attempt = await started(store, attempt.id, token="2")
    await store.cancel(attempt.id)
    ended = finish(attempt, state, error=Error("E", "m", "t"), failures=4, interruptions=5, progress=Progress(1))
    await store.finish([ended])
    row = await store.replay(attempt.id)
    assert (row.id, row.state, row.job, row.queue) == (attempt.id, State.QUEUED, "j", "q")
    assert row.due_in_ms == 0
    record = await store.get(attempt.id)
    assert (record.failures, record.crashes, record.interruptions, record.attempt) == (0, 0, 0, 2)
    assert (record.cancel_requested, record.finished_at, record.error_type, record.progress_done) == (
        False,
        None,
        None,
        None,
    )
    assert await store.finish([ended]) == {}, "the old attempt does not own the replayed record"
    again = await started(store, attempt.id, token="3")
    assert again.attempt == 3
    assert (await store.attempts(attempt.id))[-1].cause is Cause.REPLAY


async def test_only_failed_and_cancelled_records_are_replayed(store: Store, database: Database) -> None:
    waiting, running, done = await queued(store), await started(store), await started(store)
    await store.finish([finish(done)])
    before = await snapshot(database)
    for record_id, state in ((waiting, "queued"), (running.id, "running"), (done.id, "succeeded")):
        with pytest.raises(InvalidTransition, match=f"the job is {state} .*only failed and cancelled"):
            await store.replay(record_id)
    assert await snapshot(database) == before


async def test_a_missing_record_raises_record_not_found(store: Store) -> None:
    missing = new_id()
    for call in (
        store.get(missing),
        store.cancel(missing),
        store.replay(missing),
        store.artifact(missing, "a"),
    ):
        with pytest.raises(RecordNotFound, match=f"there is no job with the id {missing}"):
            await call
    assert await store.get_many([missing]) == []
    assert await store.attempts(missing) == []
    assert await store.schedule_rows([missing]) == {}


# reconciler


async def test_a_record_runs_alone_after_two_dead_workers_and_fails_after_three_more(store: Store) -> None:
    record_id = await queued(store)
    for death in range(1, ALONE_AFTER + MAX_CRASHES + 1):
        attempt = await started(store, record_id, token=str(death), lease_s=OVER_S, alone=death > ALONE_AFTER)
        assert attempt.attempt == death
        (row,) = await store.reap(10)
        last = death == ALONE_AFTER + MAX_CRASHES
        assert (row.id, row.state) == (record_id, State.FAILED if last else State.QUEUED)
        assert row.queue == ("q" if death < ALONE_AFTER else quarantine_of("q"))
        record = await store.get(record_id)
        crashes = max(0, death - ALONE_AFTER)
        assert (record.suspicions, record.crashes) == (min(death, ALONE_AFTER), crashes)
        assert (record.cause, record.lease_until, record.queue) == (Cause.LOST, None, "q")
        how = {1: "", 2: "; it runs alone from now on"}.get(death, f" while it ran alone ({crashes} of {MAX_CRASHES})")
        assert record.error_message == f"its worker w died or lost its lease{how}"
        assert (record.finished_at is not None) == last
        assert await store.finish([finish(attempt)]) == {}, "a worker that lost its lease no longer owns the record"
    assert {each.state for each in await store.attempts(record_id)} == {AttemptState.LOST}
    assert [each.cause for each in await store.attempts(record_id)] == [Cause.SUBMIT, *[Cause.LOST] * 4]
    assert await store.reap(10) == []


async def test_a_record_that_must_run_alone_is_not_started_in_company(store: Store) -> None:
    record_id = await queued(store)
    for death in range(ALONE_AFTER):
        await started(store, record_id, token=str(death), lease_s=OVER_S)
        await store.reap(10)
    assert await store.start("w", [record_id], "in company", LEASE_S) == []
    rows = [*(await store.schedule_rows([record_id])).values(), *await store.queued(None, 10)]
    assert [row.queue for row in rows] == [quarantine_of("q")] * 2
    (attempt,) = await store.start("w", [record_id], "alone", LEASE_S, alone=True)
    await store.finish([finish(attempt, State.FAILED)])
    assert (await store.replay(record_id)).queue == "q"
    record = await store.get(record_id)
    assert (record.suspicions, record.crashes) == (0, 0)


async def test_reaping_honours_a_cancel_and_does_not_touch_live_leases(store: Store) -> None:
    cancelled, alive = await started(store, lease_s=OVER_S), await started(store)
    await store.cancel(cancelled.id)
    await store.cancel(alive.id)
    (row,) = await store.reap(10)
    assert (row.id, row.state) == (cancelled.id, State.CANCELLED)
    assert (await store.get(cancelled.id)).finished_at is not None
    assert (await store.get(alive.id)).state is State.RUNNING


async def test_reaping_takes_the_oldest_leases_first_up_to_its_limit(store: Store) -> None:
    dead = [await started(store, lease_s=-float(age)) for age in (1, 3, 2)]
    assert {row.id for row in await store.reap(2)} == {dead[1].id, dead[2].id}
    assert [row.id for row in await store.reap(2)] == [dead[0].id]


async def test_concurrent_reapers_reap_each_record_once(store: Store) -> None:
    dead = {(await started(store, lease_s=OVER_S)).id for _ in range(12)}
    results = await asyncio.gather(*(store.reap(5) for _ in range(4)))
    reaped = [row.id for result in results for row in result] + [each.id for each in await store.reap(50)]
    assert sorted(reaped) == sorted(dead)
    assert {record.suspicions for record in await store.get_many(list(dead))} == {1}


async def test_overdue_returns_one_queue_longest_due_first(store: Store) -> None:
    now = datetime.now(UTC)
    late = [await queued(store, run_at=now - timedelta(seconds=age)) for age in (5, 50, 20)]
    await queued(store, delay_s=30)
    await queued(store)
    await queued(store, queue="other", run_at=now - timedelta(seconds=99))
    await started(store, await queued(store, run_at=now - timedelta(seconds=99)))
    assert [row.id for row in await store.overdue("q", 10)] == [late[1], late[2], late[0]]
    (first,) = await store.overdue("q", 1)
    assert (first.id, first.state, first.due_in_ms) == (late[1], State.QUEUED, 0)


async def test_a_schedule_row_has_the_time_to_the_start_of_a_queued_record_or_to_the_end_of_a_lease(
    store: Store,
) -> None:
    waiting, due = await queued(store, delay_s=60), await queued(store, job="other", queue="p")
    running, dead = await started(store), await started(store, lease_s=OVER_S)
    found = await store.schedule_rows([waiting, due, running.id, dead.id])
    assert 55_000 < found[waiting].due_in_ms <= 60_000
    assert found[due].due_in_ms == 0
    assert (found[due].job, found[due].queue) == ("other", "p")
    assert 25_000 < found[running.id].due_in_ms <= 30_000
    assert found[dead.id].due_in_ms == 0
    assert found[running.id].state is State.RUNNING


# files and lists


async def test_of_files_with_the_same_name_the_latest_attempts_is_returned(store: Store) -> None:
    one, two = await queued(store), await queued(store)

    async def add(record_id: UUID, attempt: int, name: str, size: int) -> None:
        artifact = Artifact(name=name, media_type="text/plain", size=size, sha256="0" * 64)
        await store.add_artifact(record_id, attempt, artifact, f"{attempt}/{name}")

    await add(one, 2, "a", 20)
    await add(one, 1, "a", 10)
    await add(one, 1, "b", 11)
    await add(two, 1, "a", 30)
    await add(two, 1, "a", 31)
    found = await store.artifacts([one, two])
    assert {(file.job_id, file.name, file.attempt, file.size, file.path) for file in found} == {
        (one, "a", 2, 20, "2/a"),
        (one, "b", 1, 11, "1/b"),
        (two, "a", 1, 31, "1/a"),
    }
    assert len(found) == 3
    assert (await store.artifact(one, "a")).size == 20
    with pytest.raises(ArtifactNotFound, match="no artifact named 'c'"):
        await store.artifact(one, "c")


async def test_lists_are_filtered_newest_first_and_paged_without_gaps(store: Store) -> None:
    records = [new(job=f"j{number % 2}", queue=f"q{number % 3}") for number in range(12)]
    await store.submit(records)
    await store.cancel(records[0].id)
    newest_first = [record.id for record in sorted(records, key=lambda record: record.id, reverse=True)]

    async def ids(where: RecordFilter, **options: Any) -> list[UUID]:
        return [record.id for record in await store.find(where, **options)]

    assert await ids(RecordFilter()) == newest_first
    for where in (RecordFilter(), RecordFilter(job="j1")):
        for found in await store.find(where):
            assert not hasattr(found, "args"), "what may be large is not read for a list"
    assert await ids(RecordFilter(state=State.CANCELLED)) == [records[0].id]
    wanted = {record.id for record in records if record.job == "j1" and record.queue == "q2"}
    assert await ids(RecordFilter(job="j1", queue="q2")) == [each for each in newest_first if each in wanted]
    assert await ids(RecordFilter(job="j1", queue="q2", state=State.RUNNING)) == []

    for state, job, queue in itertools.product(
        (None, State.QUEUED, State.CANCELLED, State.SUCCEEDED), (None, "j0", "j"), (None, "q1", "r")
    ):
        wanted = {
            record.id
            for record in records
            if job in {None, record.job} and queue in {None, record.queue}
            and state in {None, State.CANCELLED if record is records[0] else State.QUEUED}
        }  # fmt: skip
        where = RecordFilter(state=state, job=job, queue=queue)
        assert await ids(where, before=newest_first[2], limit=4) == [e for e in newest_first[3:] if e in wanted][:4]

    paged: list[UUID] = []
    while page := await ids(RecordFilter(), before=paged[-1] if paged else None, limit=5):
        paged += page
        await store.submit([new()])  # a concurrent submission does not shift the pages
    assert paged == newest_first


# batches


@pytest.mark.parametrize("large", [False, True])
async def test_each_record_of_a_batch_gets_its_own_result(store: Store, *, large: bool) -> None:
    results = [
        b"null",
        b'"one"',
        b"[2]",
        b'{"three": {"4": 5.5}}',
        b"null",
        b"true",
        b'"' + b"x" * 1_200_000 * large + b'"',
    ]
    records = [new() for _ in results]
    await store.submit(records)
    attempts = {each.id: each for each in await store.start("w", [record.id for record in records], "t", LEASE_S)}
    finishes = [finish(attempts[r.id], result_json=result) for r, result in zip(records, results, strict=True)]
    stranger = replace(finishes[1], token="another")
    again = finish(await started(store), attempt_state=AttemptState.FAILED, state=State.FAILED, failures=1)
    states = await store.finish([*finishes, again, stranger])
    assert states == {(record.id, 1): State.SUCCEEDED for record in records} | {(again.id, 1): State.FAILED}
    assert await store.finish(finishes[::-1]) == {(record.id, 1): State.SUCCEEDED for record in records}
    for record, result in zip(records, results, strict=True):
        assert (await store.get(record.id)).result == json.loads(result)


async def test_concurrent_renew_and_finish_of_the_same_records_never_deadlock(store: Store) -> None:
    for turn in range(15):
        records = [new() for _ in range(40)]
        await store.submit(records)
        attempts = await store.start("w", [record.id for record in records], f"{turn}", LEASE_S)
        random.Random(turn).shuffle(attempts)
        renewals = [Renew(id=each.id, attempt=each.attempt, token=each.token) for each in attempts]
        released = [finish(each, State.QUEUED, attempt_state=AttemptState.RELEASED) for each in attempts]
        first, second, states, *_ = await asyncio.gather(
            store.renew(renewals, LEASE_S),
            store.renew(renewals[::-1], LEASE_S),
            store.finish(released),
            store.finish(released[::-1]),
            store.renew(renewals[20:] + renewals[:20], LEASE_S),
        )
        assert states.keys() <= {(record.id, 1) for record in records}
        assert first.keys() | second.keys() <= {(record.id, 1) for record in records}
        assert {record.state for record in await store.get_many([each.id for each in attempts])} == {State.QUEUED}


# the model


@dataclass
class Model:
    """One record as states.TRANSITIONS describes it."""

    state: State = State.QUEUED
    attempt: int = 0
    token: str = ""
    alive: bool = False
    """Whether the lease has not expired."""
    cancel: bool = False
    due: bool = True
    failures: int = 0
    crashes: int = 0
    suspicions: int = 0
    moves: list[tuple[State, State]] = field(default_factory=list[tuple[State, State]])

    def move(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"the model itself moved {self.state} → {state}"
        self.moves.append((self.state, state))
        self.state = state

    def owns(self, fence: Started) -> bool:
        return self.state is State.RUNNING and (self.attempt, self.token) == (fence.attempt, fence.token)

    @property
    def alone(self) -> bool:
        return self.crashes + self.suspicions >= ALONE_AFTER


class Game:
    """Random state changes of a few records, each made in the store and predicted by the model."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.dice = random.Random(seed)
        self.models: dict[UUID, Model] = {}
        self.fences: list[Started] = []
        """Every attempt there ever was: stale ones are used too."""
        self.tokens = 0

    async def play(self, moves: int) -> None:
        records = [new() for _ in range(3)]
        await self.store.submit(records)
        self.models = {record.id: Model() for record in records}
        for _ in range(moves):
            move = self.dice.choice([self.start, self.start, self.finish, self.finish, self.renew, self.cancel, self.replay, self.reap])  # fmt: skip
            await move()
            await self.compare(move.__name__)

    async def start(self) -> None:
        predicted: dict[UUID, int] = {}
        alive, alone = self.dice.random() < 0.6, self.dice.random() < 0.5
        ids = self.some_records()
        known = [self.models[record_id].token for record_id in ids if self.models[record_id].token]
        repeated = bool(known) and self.dice.random() < 0.3
        self.tokens += not repeated
        token = self.dice.choice(known) if repeated else f"token {self.tokens}"
        for record_id in ids:
            model = self.models[record_id]
            if model.state is State.QUEUED and not model.cancel and model.due and (alone or not model.alone):
                model.move(State.RUNNING)
                model.attempt, model.token, model.alive = model.attempt + 1, token, alive
                predicted[record_id] = model.attempt
            elif model.state is State.RUNNING and model.token == token:
                predicted[record_id] = model.attempt
        results = await self.store.start("w", ids, token, LEASE_S if alive else OVER_S, alone=alone)
        assert {result.id: result.attempt for result in results} == predicted
        self.fences += [result for result in results if result not in self.fences]

    async def finish(self) -> None:
        fences = self.some_fences()
        outcomes: list[Finish] = []
        predicted: dict[Fence, State] = {}
        for fence in fences:
            state = self.dice.choice([State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED, State.QUEUED])
            later = state is State.QUEUED and self.dice.random() < 0.2
            outcomes.append(finish(fence, state, failures=1, delay_s=900 if later else 0))
            model = self.models[fence.id]
            if not model.owns(fence):
                continue
            model.move(State.CANCELLED if state is State.QUEUED and model.cancel else state)
            model.failures += 1
            model.due, model.alive = not later, False
            predicted[fence.id, fence.attempt] = model.state
        states = await self.store.finish(outcomes)
        assert states.items() >= predicted.items()
        for (record_id, attempt), state in states.items():  # other than new outcomes, only repeated ones are returned
            assert (self.models[record_id].state, self.models[record_id].attempt) == (state, attempt)

    async def renew(self) -> None:
        fences = self.some_fences()
        owned = [fence for fence in fences if self.models[fence.id].owns(fence)]
        predicted = {(fence.id, fence.attempt): self.models[fence.id].cancel for fence in owned}
        renewals = [Renew(id=fence.id, attempt=fence.attempt, token=fence.token) for fence in fences]
        alive = self.dice.random() < 0.7
        assert await self.store.renew(renewals, LEASE_S if alive else OVER_S) == predicted
        for fence in owned:
            self.models[fence.id].alive = alive

    async def cancel(self) -> None:
        (record_id,) = self.dice.sample(sorted(self.models), 1)
        model = self.models[record_id]
        if model.state.final:
            with pytest.raises(InvalidTransition):
                await self.store.cancel(record_id)
            return
        model.cancel = True
        if model.state is State.QUEUED:
            model.move(State.CANCELLED)
        assert await self.store.cancel(record_id) is model.state

    async def replay(self) -> None:
        (record_id,) = self.dice.sample(sorted(self.models), 1)
        model = self.models[record_id]
        if model.state not in {State.FAILED, State.CANCELLED}:
            with pytest.raises(InvalidTransition):
                await self.store.replay(record_id)
            return
        model.move(State.QUEUED)
        model.cancel, model.due, model.failures, model.crashes, model.suspicions = False, True, 0, 0, 0
        assert (await self.store.replay(record_id)).state is State.QUEUED

    async def reap(self) -> None:
        predicted: dict[UUID, State] = {}
        for record_id, model in self.models.items():
            if model.state is State.RUNNING and not model.alive:
                alone = model.alone
                model.crashes, model.suspicions = model.crashes + alone, model.suspicions + (not alone)
                poison = model.crashes >= MAX_CRASHES
                model.move(State.CANCELLED if model.cancel else State.FAILED if poison else State.QUEUED)
                model.due = True
                predicted[record_id] = model.state
        mine = [row for row in await self.store.reap(1000) if row.id in self.models]
        assert {row.id: row.state for row in mine} == predicted

    async def compare(self, move: str) -> None:
        for record in await self.store.get_many(list(self.models)):
            model = self.models[record.id]
            assert state_of(record) == (
                model.state, model.attempt, model.cancel, model.failures, model.crashes, model.suspicions,
            ), f"after {move}, having moved {model.moves}"  # fmt: skip
            assert (record.finished_at is not None) == model.state.final
            assert (record.lease_until is not None) == (model.state is State.RUNNING)

    def some_records(self) -> list[UUID]:
        return self.dice.sample(sorted(self.models), self.dice.randint(1, len(self.models)))

    def some_fences(self) -> list[Started]:
        """Return old and new attempts in any order, also several of one record, sometimes with a forged token."""
        chosen = self.dice.sample(self.fences, min(len(self.fences), self.dice.randint(1, 4)))
        return [replace(fence, token="forged") if self.dice.random() < 0.1 else fence for fence in chosen]


def state_of(record: JobRecord) -> tuple[State, int, bool, int, int, int]:
    budgets = record.failures, record.crashes, record.suspicions
    return record.state, record.attempt, record.cancel_requested, *budgets


async def test_random_sequences_of_state_changes_match_the_model(store: Store, database: Database) -> None:
    enough = time.monotonic() + 20
    played: list[Game] = []
    for seed in range(200):
        game = Game(store, seed)
        await game.play(moves=25)
        played.append(game)
        if time.monotonic() > enough:
            break
        await rows(database, "DELETE FROM cplane.jobs RETURNING id")
    moved = {move for game in played for model in game.models.values() for move in model.moves}
    assert moved == {(before, after) for before, afters in TRANSITIONS.items() for after in afters}, (
        "every legal change was made"
    )
