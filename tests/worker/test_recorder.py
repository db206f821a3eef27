"""An outcome that cannot be stored fails its own job, and delays no other: with real Postgres and Redis."""

import asyncio
import os
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
import pytest_asyncio
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from redis.exceptions import ResponseError
from sqlmodel import text
from sqlmodel.ext.asyncio.session import AsyncSession

from cplane import Context, ControlPlane, CplaneSettings, Handle, JobFailed, Retry, State, job
from cplane.errors import DatabaseUnavailable, QueueUnavailable
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState
from cplane.postgres.rows import Finish
from cplane.postgres.store import Store
from cplane.redis.envelope import deserialize, serialize
from cplane.redis.messages import Ack, AckResult
from cplane.redis.queue import Queue
from cplane.worker.delivery import LARGE_BYTES
from tests.workers import DEADLINE_S, Gate, running

MB = 1024 * 1024
QUICK = 20
WITHIN_S = 1.0
"""By which the others may be delayed."""

gate = Gate()
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())
    monkeypatch.setattr("cplane.worker.poller.POLL_INTERVAL_S", 0.02)  # arq's clients do not wake a sleeping worker


@job
async def recorder_quick(number: int) -> int:
    await gate.open.wait()
    return number


@job(record=False)
async def recorder_quick_transient(number: int) -> int:
    await gate.open.wait()
    return number


@job(retries=3)
async def recorder_returns(size: int, parts: int = 1) -> Any:
    result = ["x" * (size // parts)] * parts
    await gate.open.wait()
    return result


@job(record=False, retries=3)
async def recorder_returns_transient(size: int) -> Any:
    result = ["x" * size]
    await gate.open.wait()
    return result


@job(retries=3)
def recorder_returns_in_thread(size: int) -> dict[str, str]:
    return {"body": "x" * size}


@job
async def recorder_poison(large: bool = False) -> str:
    await gate.open.wait()
    return "poison" + "x" * (2 * LARGE_BYTES if large else 0)


@job(record=False)
async def recorder_poison_transient(large: bool = False) -> str:
    await gate.open.wait()
    return "poison" + "x" * (2 * LARGE_BYTES if large else 0)


@job
async def recorder_cannot_read() -> None:
    raise ValueError("cannot read " + NOT_UTF8)


@job(record=False)
async def recorder_cannot_read_transient() -> None:
    raise ValueError("cannot read " + NOT_UTF8)


@job
async def recorder_long_text() -> None:
    raise ValueError("x" * MB + "\0")


@job(record=False)
async def recorder_long_text_transient() -> None:
    raise ValueError("x" * MB + "\0")


@job
async def recorder_odd_progress(ctx: Context, what: int) -> str:
    values: list[Any] = ["half", 10**400, float("nan"), None, object()]
    await ctx.progress(values[what], note=NOT_UTF8)
    await ctx.progress(0.5, values[what], note="\0")
    await gate.open.wait()
    return "done"


@job(retries=1)
async def recorder_asks_for(delay: float) -> None:
    raise Retry("again", delay=delay)


@job
async def recorder_swallows_its_sql_error(session: AsyncSession) -> str:
    connection = await session.connection()
    try:
        await connection.execute(text("SELECT 1/0"))
    except Exception:
        return "went on"
    return "no error"


@job
async def recorder_goes_on_after_its_sql_error(ctx: Context) -> None:
    async with ctx.transaction() as session:
        connection = await session.connection()
        try:
            await connection.execute(text("SELECT 1/0"))
        except Exception:
            await connection.execute(text("SELECT 2"))


@job
async def recorder_runs_into_its_statement_timeout(session: AsyncSession) -> None:
    connection = await session.connection()
    await connection.execute(text("SET LOCAL statement_timeout = 10"))
    await connection.execute(text("SELECT pg_sleep(3)"))


async def arq_returns(ctx: dict[str, Any], size: int) -> Any:
    await gate.open.wait()
    return "x" * size


async def arq_returns_parts(ctx: dict[str, Any], size: int) -> Any:
    return ["x" * (size // 10)] * 10


async def arq_fails(ctx: dict[str, Any]) -> None:
    raise ValueError("cannot read " + NOT_UTF8)


async def arq_returns_name(ctx: dict[str, Any]) -> str:
    return NOT_UTF8


FUNCTIONS = [arq_returns, arq_returns_parts, arq_fails, arq_returns_name]


@pytest_asyncio.fixture
async def client(plane: ControlPlane) -> ArqRedis:
    """arq's own client, with the serializer that cplane requires of it."""
    pool: Any = plane.redis.connection_pool
    return ArqRedis(pool, job_serializer=serialize, job_deserializer=deserialize)


async def arq_result(client: ArqRedis, function: str, *args: object) -> Any:
    queued = await client.enqueue_job(function, *args)
    assert isinstance(queued, ArqJob)
    return await queued.result(timeout=DEADLINE_S, poll_delay=0.01)


async def failure(handle: Handle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await handle.result(DEADLINE_S)
    return caught.value


async def end_together(quick: AnyJob, offenders: Sequence[Handle[Any]]) -> float:
    """Let quick jobs and offenders end at the same time. Returns the seconds until the quick ones are recorded."""
    gate.open.clear()
    handles = await quick.submit_many({"number": number} for number in range(QUICK))
    async with asyncio.timeout(DEADLINE_S):
        while any([await handle.state() is State.QUEUED for handle in (*handles, *offenders)]):
            await asyncio.sleep(0.01)
    began = time.monotonic()
    gate.open.set()
    assert await asyncio.gather(*(handle.result(DEADLINE_S) for handle in handles)) == list(range(QUICK))
    return time.monotonic() - began


async def beside(quick: AnyJob, offenders: Awaitable[Sequence[Handle[Any]]]) -> list[Handle[Any]]:
    """Let quick jobs and offenders end at the same time. The offenders delay the quick ones by a second at most.

    Returns:
        The handles of the offenders.
    """
    alone_s = await end_together(quick, ())
    gate.open.clear()
    started = list(await offenders)
    assert await end_together(quick, started) < alone_s + WITHIN_S
    return started


def wide(settings: CplaneSettings, **changed: Any) -> CplaneSettings:
    return settings.model_copy(update={"queues": {"default": 60}, **changed})


# results that are too large


@pytest.mark.parametrize(
    ("offender", "quick"),
    [
        (recorder_returns, recorder_quick),
        (recorder_returns_transient, recorder_quick_transient),
        (recorder_returns, recorder_quick_transient),
    ],
)
async def test_a_result_of_270_mb_fails_alone_and_the_jobs_beside_it_are_recorded_in_time(
    settings: CplaneSettings, plane: ControlPlane, offender: AnyJob, quick: AnyJob
) -> None:
    async with running(wide(settings)):
        (handle,) = await beside(quick, offender.submit_many([{"size": 270_000_000}]))
        failed = await failure(handle)
    assert failed.error_type == "ResultTooLarge"
    assert failed.error_message == (
        f"what '{offender.name}' returned has at least 270,000,004 bytes, more than 1,048,576 (CPLANE_MAX_RESULT_BYTES)"
        " (return a reference, keep the data as an artifact)"
    )


async def test_a_result_that_is_too_large_is_not_retried(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(wide(settings, max_result_bytes=1024)):
        handle = await recorder_returns_in_thread.submit(1024)
        assert " bytes, more than 1,024 (CPLANE_MAX_RESULT_BYTES)" in (await failure(handle)).error_message
        gate.open.set()
        assert await (await recorder_returns.submit(1020)).result(DEADLINE_S) == ["x" * 1020]
    attempts = await plane.attempts(handle.id)
    assert [(attempt.state, attempt.error_type) for attempt in attempts] == [(AttemptState.FAILED, "ResultTooLarge")]


async def test_results_up_to_a_limit_that_was_raised_are_recorded_beside_quick_jobs(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    """A large result is sent in a separate batch: it takes seconds, and the others do not wait for it."""
    large = wide(settings, max_result_bytes=16 * MB)
    async with running(large):
        handles = await beside(recorder_quick, recorder_returns.submit_many([{"size": 8 * MB}] * 2))
        for handle in handles:
            async with asyncio.timeout(DEADLINE_S):
                assert (await plane.wait(handle.id)).state is State.SUCCEEDED


@pytest.mark.parametrize("function", ["arq_returns", "arq_returns_parts"])
async def test_the_result_of_an_arq_function_that_is_too_large_is_not_kept(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis, function: str
) -> None:
    gate.open.set()
    async with running(settings, functions=FUNCTIONS) as worker:
        with pytest.raises(JobFailed, match=rf"what '{function}' returned has .*more than 1,048,576") as caught:
            await arq_result(client, function, 2 * MB)
        assert len(await arq_result(client, function, MB // 2)) > 1
    assert caught.value.error_type == "ResultTooLarge"
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 1)


# outcomes that a server refuses


async def refuse_poison(plane: ControlPlane) -> None:
    """Make Postgres refuse results that have the word, as it refuses what is beyond its limits."""
    async with plane.database.session() as session:
        connection = await session.connection()
        await connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF NEW.result::text LIKE '\"poison%' THEN RAISE EXCEPTION 'too much' USING ERRCODE = '54000'; END IF;"
                " RETURN NEW; END $$"
            )
        )
        await connection.execute(
            text("CREATE TRIGGER refuse BEFORE UPDATE ON cplane.jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
        )


@pytest.mark.parametrize("large", [False, True])
async def test_a_result_that_postgres_refuses_fails_alone_with_postgres_own_words(
    settings: CplaneSettings, plane: ControlPlane, large: bool
) -> None:
    await refuse_poison(plane)
    async with running(wide(settings)):
        handles = await beside(recorder_quick, recorder_poison.submit_many([{"large": large}] * 3))
        for handle in handles:
            failed = await failure(handle)
            assert failed.error_type == "ResultNotSerializable"
            expected = "the outcome of 'recorder_poison' cannot be stored: Postgres refused it: too much"
            assert failed.error_message == expected
    assert [len(await plane.attempts(handle.id)) for handle in handles] == [1, 1, 1]


async def test_what_redis_refuses_to_keep_fails_alone(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    ack, calls = Queue.ack, list[int]()

    async def refusing(queue: Queue, acks: Sequence[Ack]) -> list[AckResult]:
        calls.append(len(acks))
        if any(b"poison" in each.text and b"refused" not in each.text for each in acks):
            raise QueueUnavailable("Redis replied with an error") from ResponseError("value is too large")
        return await ack(queue, acks)

    monkeypatch.setattr(Queue, "ack", refusing)
    async with running(wide(settings)):
        offenders = recorder_poison_transient.submit_many([{"large": False}, {"large": True}])
        for handle in await beside(recorder_quick_transient, offenders):
            failed = await failure(handle)
            assert failed.error_type == "ResultNotSerializable"
            assert failed.error_message.endswith("cannot be stored: Redis refused it: value is too large")
    assert len(calls) < 40


async def test_a_large_outcome_that_only_runs_into_timeouts_is_refused_in_the_end(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, ack = Store.finish, Queue.ack

    async def slow_finish(store: Store, finishes: Sequence[Finish], session: Any = None) -> Any:
        if any(b"poison" in (each.result_json or b"") for each in finishes):
            raise DatabaseUnavailable("Postgres did not respond") from TimeoutError()
        return await finish(store, finishes, session)

    async def slow_ack(queue: Queue, acks: Sequence[Ack]) -> list[AckResult]:
        if any(len(each.text) > LARGE_BYTES for each in acks):
            raise QueueUnavailable("Redis did not respond") from TimeoutError()
        return await ack(queue, acks)

    monkeypatch.setattr(Store, "finish", slow_finish)
    monkeypatch.setattr(Queue, "ack", slow_ack)
    async with running(wide(settings)):
        (recorded,) = await beside(recorder_quick, recorder_poison.submit_many([{"large": True}]))
        transient = await recorder_poison_transient.submit(large=True)
        for handle in (recorded, transient):
            message = (await failure(handle)).error_message
            assert message.endswith("refused it: it did not reply 3 times, and serves otherwise")


# text and numbers that are not storable


@pytest.mark.parametrize("cannot_read", [recorder_cannot_read, recorder_cannot_read_transient])
async def test_an_error_text_that_is_not_utf8_ends_as_itself(
    settings: CplaneSettings, plane: ControlPlane, cannot_read: AnyJob
) -> None:
    quick = recorder_quick if cannot_read.options.record else recorder_quick_transient
    gate.open.set()
    async with running(settings):
        handles = [await cannot_read.submit(), await quick.submit(1)]
        failed = await failure(handles[0])
        assert await handles[1].result(DEADLINE_S) == 1
    assert (failed.error_type, failed.error_message) == ("ValueError", "cannot read caf\\udce9")
    assert failed.traceback.endswith("ValueError: cannot read caf\\udce9\n")


@pytest.mark.parametrize("long_text", [recorder_long_text, recorder_long_text_transient])
async def test_an_error_text_of_a_megabyte_is_cut(
    settings: CplaneSettings, plane: ControlPlane, long_text: AnyJob
) -> None:
    async with running(settings):
        failed = await failure(await long_text.submit())
    assert failed.error_type == "ValueError"
    assert failed.error_message == "x" * 16_000
    assert len(failed.traceback) < 17_000


async def test_text_of_arq_functions_that_is_not_utf8_ends_as_itself(
    settings: CplaneSettings, plane: ControlPlane, client: ArqRedis
) -> None:
    async with running(settings, functions=FUNCTIONS):
        with pytest.raises(JobFailed, match="cannot read caf") as caught:
            await arq_result(client, "arq_fails")
        assert caught.value.error_type == "ValueError"
        with pytest.raises(JobFailed, match="what 'arq_returns_name' returned cannot be kept: 'utf-8' codec") as caught:
            await arq_result(client, "arq_returns_name")
        assert caught.value.error_type == "ResultNotSerializable"


async def test_progress_that_is_no_number_harms_nobody(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(wide(settings)):
        odd: list[Handle[Any]] = [*await recorder_odd_progress.submit_many({"what": what} for what in range(5))]
        quick: list[Handle[Any]] = [*await recorder_quick.submit_many({"number": number} for number in range(QUICK))]
        async with asyncio.timeout(DEADLINE_S):
            while any([await handle.state() is State.QUEUED for handle in (*quick, *odd)]):
                await asyncio.sleep(0.01)
            while (await plane.record(odd[3].id)).progress_note is None:  # leases are renewed together with progress
                await asyncio.sleep(0.05)
        gate.open.set()
        assert [await handle.result(DEADLINE_S) for handle in (*odd, *quick)] == ["done"] * 5 + [*range(QUICK)]
    records = [await plane.record(handle.id) for handle in (*odd, *quick)]
    assert {record.attempt for record in records} == {1}


@pytest.mark.parametrize(
    ("delay", "error_type"), [(float("inf"), "ValueError"), (float("nan"), "ValueError"), (1e300, None)]
)
async def test_a_retry_at_a_time_that_does_not_exist_fails_as_itself_or_is_postponed(
    settings: CplaneSettings, plane: ControlPlane, delay: float, error_type: str | None
) -> None:
    async with running(settings):
        handle = await recorder_asks_for.submit(delay)
        async with asyncio.timeout(DEADLINE_S):
            while not (attempts := await plane.attempts(handle.id)) or attempts[0].state is AttemptState.RUNNING:
                await asyncio.sleep(0.01)
        assert attempts[0].error_type == (error_type or "Retry")
        if error_type is None:
            assert await handle.state() is State.QUEUED


# a job's own SQL


@pytest.mark.parametrize(
    ("offender", "message"),
    [
        (recorder_swallows_its_sql_error, "current transaction is aborted, commands ignored"),
        (recorder_goes_on_after_its_sql_error, "current transaction is aborted, commands ignored"),
        (recorder_runs_into_its_statement_timeout, "canceling statement due to statement timeout"),
    ],
)
async def test_an_sql_error_of_a_job_is_its_failure_in_postgres_own_words(
    settings: CplaneSettings, plane: ControlPlane, offender: AnyJob, message: str
) -> None:
    async with running(settings):
        handle = await offender.submit()
        assert message in (await failure(handle)).error_message
    record = await plane.record(handle.id)
    assert (record.attempt, record.failures, record.interruptions) == (1, 1, 0)
