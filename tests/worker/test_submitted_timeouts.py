"""A submission may set a timeout, at most the job's own: it holds for each of its attempts."""

import asyncio
import hashlib
from uuid import UUID

import msgspec
import pytest

from cplane import ControlPlane, CplaneSettings, JobFailed, RetryPolicy, job
from cplane.errors import IdempotencyConflict
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import AttemptState, State
from cplane.redis.envelope import decode_envelope, encode_envelope
from cplane.worker.outcome import allowed_s
from tests.workers import DEADLINE_S, running

RETRY_IMMEDIATELY = RetryPolicy(retries=1, backoff_s=0, jitter=0)

began: list[str] = []


@job(retries=RETRY_IMMEDIATELY)
async def timeout_recorded() -> None:
    began.append("recorded")
    await asyncio.Event().wait()


@job(retries=RETRY_IMMEDIATELY, record=False)
async def timeout_transient() -> None:
    began.append("transient")
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def fresh() -> None:
    began.clear()


@pytest.mark.parametrize("job_under_test", [timeout_recorded, timeout_transient], ids=["recorded", "transient"])
async def test_the_timeout_of_a_submission_ends_each_attempt(
    settings: CplaneSettings, plane: ControlPlane, job_under_test: AnyJob
) -> None:
    handles = [
        await job_under_test.using(timeout=0.02).submit(),
        *await job_under_test.using(timeout=0.02).submit_many([{}]),
    ]
    assert [(await plane.job(handle.id)).timeout_s for handle in handles] == [0.02, 0.02]
    async with running(settings):
        for handle in handles:
            with pytest.raises(JobFailed, match=r"ran longer than 0\.02 s"):
                await handle.result(DEADLINE_S)
    assert len(began) == 4, "two submissions, each with a retry"


async def test_the_timeout_of_a_submission_holds_after_a_replay(settings: CplaneSettings, plane: ControlPlane) -> None:
    handle = await timeout_recorded.using(timeout=0.02, key="k").submit()
    async with running(settings):
        for _ in range(2):
            with pytest.raises(JobFailed):
                await handle.result(DEADLINE_S)
            await plane.retry(handle.id)
        with pytest.raises(JobFailed, match=r"using\(timeout=…\)"):
            await handle.result(DEADLINE_S)
    attempts = await plane.attempts(handle.id)
    assert [attempt.state for attempt in attempts] == [AttemptState.TIMED_OUT] * 6


async def test_a_submission_without_a_timeout_has_the_envelope_and_the_hash_of_before(plane: ControlPlane) -> None:
    transient = await timeout_transient.submit()
    found = await plane.queue.read_job(str(transient.id))
    assert found.payload is not None
    assert "timeout" not in msgspec.msgpack.decode(found.payload)
    assert decode_envelope(encode_envelope("j")).timeout is None

    plain = await timeout_recorded.using(key="k").submit()
    call: list[object] = ["timeout_recorded", {}, "default", None, None]
    expected = hashlib.sha256(msgspec.json.encode(call)).digest()
    assert (await plane.record(plain.id)).request_hash == expected


async def test_another_timeout_is_another_call(plane: ControlPlane) -> None:
    async def submit(timeout: float | None) -> UUID:
        return (await timeout_recorded.using(key="k", timeout=timeout).submit()).id

    first = await submit(5)
    assert await submit(5.0) == first
    for other in (None, 6):
        with pytest.raises(IdempotencyConflict):
            await submit(other)
    assert await plane.state(first) is State.QUEUED


@pytest.mark.parametrize(
    ("submitted", "expected"), [(1.0, 1.0), (60.0, 30.0), (0.0, 30.0), (-1.0, 30.0), (float("nan"), 30.0)]
)
def test_a_timeout_in_an_envelope_is_at_most_the_jobs_own(submitted: float, expected: float) -> None:
    assert allowed_s(submitted, 30.0) == expected
