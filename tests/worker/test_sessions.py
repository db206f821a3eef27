"""Jobs that work in a named browser session: what one leaves there the next finds, and no two are in it at once."""

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
async def session_stays(page: Page, ctx: Context, name: str) -> int:
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


async def test_what_a_job_leaves_in_its_session_is_there_for_the_next_and_in_no_other(
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


async def test_a_job_that_fails_leaves_its_session_as_it_was(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        await (await session_visit.submit(name="one", cookie="a", fails=False)).result(timeout=DEADLINE_S)
        with pytest.raises(JobFailed, match="after the visit"):
            await (await session_visit.submit(name="one", cookie="b", fails=True)).result(timeout=DEADLINE_S)
        seen = await (await session_visit.submit(name="one", cookie="c", fails=False)).result(timeout=DEADLINE_S)
    assert seen == ["a"]


async def test_a_job_waits_for_its_session_without_a_page_and_without_spending_a_retry(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True) as worker:
        first = await session_stays.submit(name="one")
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        second = await session_stays.submit(name="one")
        await until_waiting(plane, 1)
        assert (await plane.record(second.id)).state is State.QUEUED
        assert worker.pages.pool().stats().leased == 1
        gate.open.set()
        assert await first.result(timeout=DEADLINE_S) == 1
        assert await second.result(timeout=DEADLINE_S) == 1
    (attempt,) = await plane.attempts(second.id)
    assert attempt.state is AttemptState.SUCCEEDED


async def test_many_jobs_of_one_session_run_one_by_one_in_order_and_once_each(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    calls = [{"name": "one", "cookie": f"c{number:02}", "fails": False} for number in range(20)]
    async with running(settings, pages=True), running(settings, pages=True):
        handles = await session_visit.submit_many(calls)
        seen = [await handle.result(timeout=DEADLINE_S) for handle in handles]
    assert seen == [[f"c{number:02}" for number in range(count)] for count in range(20)]
    attempts = [await plane.attempts(handle.id) for handle in handles]
    assert {len(each) for each in attempts} == {1}


async def test_a_session_whose_place_was_given_though_it_is_held_is_tried_again(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):
        first = await session_stays.submit(name="one")
        await asyncio.wait_for(gate.entered.wait(), DEADLINE_S)
        await raw(plane).delete("cplane:host:@one:slots")  # as a Redis that forgot it would
        second = await session_stays.submit(name="one")
        async with asyncio.timeout(DEADLINE_S):
            # an attempt that still runs is listed, too
            while not (waits := await plane.attempts(second.id)) or waits[0].finished_at is None:
                await asyncio.sleep(0.02)
        assert waits[0].error_type == "SessionBusy"
        gate.open.set()
        assert await first.result(timeout=DEADLINE_S) == 1
        assert await second.result(timeout=DEADLINE_S) > 1
    record = await plane.record(second.id)
    assert (record.state, record.failures, record.crashes, record.interruptions) == (State.SUCCEEDED, 0, 0, 0)
    *waits, last = await plane.attempts(second.id)
    assert {attempt.state for attempt in waits} == {AttemptState.RELEASED}
    assert last.state is AttemptState.SUCCEEDED


async def until_waiting(plane: ControlPlane, number: int) -> None:
    """Wait until so many stand in the line of the session "one"."""
    async with asyncio.timeout(DEADLINE_S):
        while [stand.waiting for stand in await plane.limiter_stats() if stand.host == "@one"] != [number]:
            await asyncio.sleep(0.02)


async def test_without_a_key_the_job_fails_at_once_and_says_what_to_set(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    without = settings.model_copy(update={"secret_key": None})
    async with running(without, pages=True):
        handle = await session_visit.using(key="k").submit(name="one", cookie="a", fails=False)
        with pytest.raises(JobFailed, match="CPLANE_SECRET_KEY") as error:
            await handle.result(timeout=DEADLINE_S)
    assert error.value.error_type == "SecretKeyMissing"
    assert len(await plane.attempts(handle.id)) == 1


async def test_a_job_without_a_record_cannot_hold_a_session(settings: CplaneSettings, plane: ControlPlane) -> None:
    async with running(settings, pages=True):
        with pytest.raises(JobFailed, match="a job without a record cannot hold a browser session"):
            await (await session_transient.submit(name="one")).result(timeout=DEADLINE_S)
    with pytest.raises(InvalidJob, match="cannot hold a browser session"):
        job(record=False, browser={"session": "one"})(never_a_job)


async def never_a_job(page: Page) -> None:
    return


async def test_a_name_that_no_session_can_have_fails_the_job_at_once(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    async with running(settings, pages=True):
        handle = await session_visit.submit(name="../x y", cookie="a", fails=False)
        with pytest.raises(JobFailed, match="not a valid session name"):
            await handle.result(timeout=DEADLINE_S)
