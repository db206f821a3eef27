"""Browser sessions of jobs: a job gets the state that the last one saved, and no two use one session concurrently."""

import asyncio
from typing import cast

import pytest
from playwright.async_api import BrowserContext, Page
from pydantic import SecretStr

from cplane import Context, ControlPlane, CplaneSettings, JobFailed, State, job
from cplane.errors import InvalidJob
from cplane.jobs.states import AttemptState
from cplane.keyring import new_key
from tests.workers import DEADLINE_S, Gate, raw, running

URL = "http://site.test/"
gate = Gate()


def session(arguments: object) -> dict[str, object]:
    return {"session": cast("dict[str, str]", arguments)["name"], "isolation": "session"}


@job(browser=session)
async def session_visit(browser_context: BrowserContext, name: str, cookie: str, *, fails: bool) -> list[str]:
    seen = [cookie.get("name", "") for cookie in await browser_context.cookies(URL)]
    await browser_context.add_cookies([{"name": cookie, "value": "x", "url": URL}])
    if fails:
        raise ValueError("after the visit")
    return sorted(seen)


@job(browser=session)
async def session_gate(page: Page, ctx: Context, name: str) -> int:
    if ctx.attempt == 1 and not gate.entered.is_set():
        await gate.pass_through()
    return ctx.attempt


@job(browser=session, record=False)
async def session_transient(page: Page, name: str) -> None:
    return


@pytest.fixture(autouse=True)
def fresh_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "gate", Gate())


@pytest.fixture
def settings(settings: CplaneSettings) -> CplaneSettings:
    return settings.model_copy(update={"secret_key": SecretStr(new_key())})


async def test_session_state_is_kept_for_the_next_job_and_separate_from_other_sessions(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):

        async def visit(name: str, cookie: str) -> list[str]:
            handle = await session_visit.submit(name=name, cookie=cookie, fails=False)
            return await handle.result(timeout=DEADLINE_S)

        assert await visit("one", "a") == []
        assert await visit("other", "b") == []
        assert await visit("one", "c") == ["a"]
    async with running(settings, pages=True):
        assert await visit("one", "d") == ["a", "c"]
    assert (await plane.sessions.get("one")).version == 3
    assert (await plane.sessions.get("one")).held_by is None


async def test_a_failed_job_does_not_change_its_session(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        await (await session_visit.submit(name="one", cookie="a", fails=False)).result(timeout=DEADLINE_S)
        with pytest.raises(JobFailed, match="after the visit"):
            await (await session_visit.submit(name="one", cookie="b", fails=True)).result(timeout=DEADLINE_S)
        seen = await (await session_visit.submit(name="one", cookie="c", fails=False)).result(timeout=DEADLINE_S)
    assert seen == ["a"]


async def test_a_job_waits_for_its_session_without_holding_a_page_or_using_a_retry(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True) as worker:
        first = await session_gate.submit(name="one")
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        second = await session_gate.submit(name="one")
        await until_waiting(plane, 1)
        assert (await plane.record(second.id)).state is State.QUEUED
        assert worker.pages.pool().stats().leased == 1
        gate.open.set()
        assert await first.result(timeout=DEADLINE_S) == 1
        assert await second.result(timeout=DEADLINE_S) == 1
    (attempt,) = await plane.attempts(second.id)
    assert attempt.state is AttemptState.SUCCEEDED


async def test_jobs_of_one_session_run_one_at_a_time_in_order_and_once_each(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    calls = [{"name": "one", "cookie": f"c{number:02}", "fails": False} for number in range(20)]
    async with running(settings, pages=True), running(settings, pages=True):
        handles = await session_visit.submit_many(calls)
        seen = [await handle.result(timeout=DEADLINE_S) for handle in handles]
    assert seen == [[f"c{number:02}" for number in range(count)] for count in range(20)]
    attempts = [await plane.attempts(handle.id) for handle in handles]
    assert {len(attempts_of_job) for attempts_of_job in attempts} == {1}


async def test_a_job_granted_a_slot_of_a_held_session_is_requeued(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):
        first = await session_gate.submit(name="one")
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        await raw(plane).delete("cplane:host:@one:slots")  # as if Redis had lost it
        second = await session_gate.submit(name="one")
        async with asyncio.timeout(DEADLINE_S):
            # a running attempt is listed too
            while not (attempts := await plane.attempts(second.id)) or attempts[0].finished_at is None:
                await asyncio.sleep(0.02)
        assert attempts[0].error_type == "SessionBusy"
        gate.open.set()
        assert await first.result(timeout=DEADLINE_S) == 1
        assert await second.result(timeout=DEADLINE_S) > 1
    record = await plane.record(second.id)
    assert (record.state, record.failures, record.crashes, record.interruptions) == (State.SUCCEEDED, 0, 0, 0)
    *busy_attempts, last = await plane.attempts(second.id)
    assert {attempt.state for attempt in busy_attempts} == {AttemptState.RELEASED}
    assert last.state is AttemptState.SUCCEEDED


async def until_waiting(plane: ControlPlane, number: int) -> None:
    """Wait until the limiter has `number` waiters for the session "one"."""
    async with asyncio.timeout(DEADLINE_S):
        while [stats.waiting for stats in await plane.limiter_stats() if stats.host == "@one"] != [number]:
            await asyncio.sleep(0.02)


async def test_without_a_secret_key_the_job_fails_immediately_and_names_the_setting(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    without_key = settings.model_copy(update={"secret_key": None})
    async with running(without_key, pages=True):
        handle = await session_visit.using(key="k").submit(name="one", cookie="a", fails=False)
        with pytest.raises(JobFailed, match="CPLANE_SECRET_KEY") as error:
            await handle.result(timeout=DEADLINE_S)
    assert error.value.error_type == "SecretKeyMissing"
    assert len(await plane.attempts(handle.id)) == 1


async def test_a_transient_job_cannot_hold_a_session(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        with pytest.raises(JobFailed, match="a job without a record cannot hold a browser session"):
            await (await session_transient.submit(name="one")).result(timeout=DEADLINE_S)
    with pytest.raises(InvalidJob, match="cannot hold a browser session"):
        job(record=False, browser={"session": "one"})(never_a_job)


async def never_a_job(page: Page) -> None:
    return


async def test_an_invalid_session_name_fails_the_job_immediately(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        handle = await session_visit.submit(name="../x y", cookie="a", fails=False)
        with pytest.raises(JobFailed, match="not a valid session name"):
            await handle.result(timeout=DEADLINE_S)
