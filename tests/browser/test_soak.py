"""A short run of the soak, with every fault once or twice; and regressions that it has found."""

import asyncio

import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page
from structlog.testing import capture_logs

from cplane import Context, ControlPlane, job
from cplane.jobs.states import AttemptState
from cplane.settings import CplaneSettings
from tests.browser.soak import kill, soak
from tests.workers import DEADLINE_S, running


@job
async def soak_fails_as_its_browser_dies(page: Page, ctx: Context) -> int:
    if ctx.attempt == 1:
        await asyncio.to_thread(kill, "browser")
        raise PlaywrightError("Page.evaluate: Target page, context or browser has been closed")
    return ctx.attempt


async def test_a_job_that_fails_just_before_the_death_of_its_browser_is_detected_runs_again(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    with capture_logs() as logs:
        async with running(settings, pages=True):
            handle = await soak_fails_as_its_browser_dies.submit()
            assert await handle.result(timeout=DEADLINE_S) == 2
    first, second = await plane.attempts(handle.id)
    assert (first.state, first.error_type) == (AttemptState.INTERRUPTED, "BrowserGone")
    assert second.state is AttemptState.SUCCEEDED
    assert not [line for line in logs if "abandoned" in line["event"]]


@pytest.mark.timeout(300)
async def test_jobs_under_faults_all_become_final_and_nothing_is_left_behind(settings: CplaneSettings) -> None:
    verdict = await soak(settings, jobs=40, every_s=2.0)
    assert verdict.violations == []
    assert verdict.faults.total() >= 6
