"""Several queues of one worker have jobs that want pages, and share its pool."""

import asyncio
from typing import Any

import pytest

from cplane import ControlPlane, CplaneSettings
from cplane.browser import BrowserPool
from cplane.tasks import content
from tests.workers import DEADLINE_S, running


async def test_a_queue_whose_page_another_queue_waited_for_goes_on(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, go = asyncio.Event(), asyncio.Event()
    acquire = BrowserPool.acquire_page

    async def acquire_late(self: BrowserPool, *args: Any, **options: Any) -> Any:
        waits.set()
        await go.wait()
        return await acquire(self, *args, **options)

    async with running(
        settings.model_copy(update={"queues": {"browser": 2, "other": 2}, "browser_pages": 1, "browser_warm": 0}),
        pages=True,
    ) as worker:
        monkeypatch.setattr(BrowserPool, "acquire_page", acquire_late)
        first = await content.using(queue="other").submit(html="<title>1</title>")
        await waits.wait()
        second = await content.submit(html="<title>2</title>")
        async with asyncio.timeout(DEADLINE_S):
            while await worker.plane.redis.exists("cplane:wake:browser"):
                await asyncio.sleep(0.01)  # until its claimer was woken, and found the page taken
        go.set()
        assert (await first.result(DEADLINE_S)).title == "1"
        assert (await second.result(DEADLINE_S)).title == "2"
