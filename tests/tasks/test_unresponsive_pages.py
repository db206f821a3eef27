"""Pages whose scripts never end, and pages that open others without end."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Page

from cplane import Context
from cplane.browser import BrowserPool
from cplane.tasks import check, content, links, pdf, screenshot, steps
from cplane.tasks.steps import Step
from cplane.tasks.visit import PageUnresponsive, VisitFailed

SPINNING = "<title>Spinning</title><script>onload = () => setTimeout(() => { for (;;); })</script>"
SPUN_BY_STEP = "<title>Idle</title><button onclick='setTimeout(() => { for (;;); })'>Spin</button>"
Run = Callable[[Page], Awaitable[object]]


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs get 2 s in all, instead of 55 s."""
    monkeypatch.setattr("cplane.tasks.visit.RESPONSE_S", -28.0)


async def test_a_page_that_spins_after_it_loaded_is_ended(
    short_deadline: None, pool: BrowserPool, ctx: Context
) -> None:
    runs: list[Run] = [
        lambda page: content(page, ctx, html=SPINNING),
        lambda page: screenshot(page, ctx, html=SPINNING, full_page=True),
        lambda page: pdf(page, ctx, html=SPINNING),
        lambda page: links(page, html=SPINNING),
    ]
    for run in runs:
        async with pool.page() as page:
            with pytest.raises(
                PageUnresponsive, match=r"^the html stopped responding: the job did not get what it needs within 2 s$"
            ):
                await run(page)
    async with pool.page() as page:
        assert (await content(page, ctx, html="<title>Next</title>")).title == "Next"


async def test_a_check_of_a_page_that_spins_is_a_result(short_deadline: None, pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        result = await check(page, ctx, html=SPINNING, expect={"title": "Spinning"})
    assert not result.ok
    assert "stopped responding" in result.verdicts[0].found
    assert result.screenshot is None


async def test_steps_on_a_page_that_spins_are_ended(short_deadline: None, pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        click: Step = {"action": "click", "selector": "button", "timeout": 300}
        with pytest.raises(VisitFailed):
            await steps(page, ctx, html=SPUN_BY_STEP, steps=[click, click])


async def test_neighbours_of_a_spinning_page_are_not_held_up(short_deadline: None, ctx: Context) -> None:
    async with BrowserPool(2, warm=0) as pool, pool.page() as page, pool.page() as other:
        spinning = asyncio.create_task(content(page, ctx, html=SPINNING))
        for number in range(3):
            assert (await content(other, ctx, html=f"<title>{number}</title>")).title == str(number)
        with pytest.raises(PageUnresponsive):
            await spinning
