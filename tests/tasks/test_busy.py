"""Built-in jobs on servers that return 429 or 503: the host cools down, and the job runs again on the real page."""

from collections.abc import AsyncGenerator

import pytest

from cplane import ControlPlane, CplaneSettings
from cplane.tasks import check, content
from tests.pages import Response, serve
from tests.workers import DEADLINE_S, running

PAGE = b"<title>Here</title><p>at last</p>"


class BusySite:
    """Returns 429 (or 503) with Retry-After for the first `busy_responses` requests, then a page."""

    def __init__(self) -> None:
        self.url = ""
        self.busy_responses = 1
        self.status = "429 Too Many Requests"
        self.requests = 0

    def respond(self, path: str) -> Response:
        self.requests += path == "/"
        if self.requests > self.busy_responses:
            return Response(PAGE)
        return Response(b"<title>Busy</title>", self.status, {"Retry-After": "1"})


@pytest.fixture
async def busy_site() -> AsyncGenerator[BusySite]:
    site = BusySite()
    async with serve(site.respond) as url:
        site.url = f"{url}/"
        yield site


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_a_page_with_retry_after_is_visited_again_after_the_delay(
    settings: CplaneSettings, plane: ControlPlane, busy_site: BusySite, status: str
) -> None:
    busy_site.status = status
    async with running(settings, pages=True):
        handle = await content.submit(url=busy_site.url)
        result = await handle.result(timeout=DEADLINE_S)
    assert (result.title, result.status) == ("Here", 200)
    record = await plane.record(handle.id)
    assert (record.failures, record.interruptions, record.limit_keys) == (0, 1, [busy_site.url[7:-1]])
    first, _ = await plane.attempts(handle.id)
    assert first.error_type == "TooManyRequests"
    assert "Retry-After: 1 s" in (first.error_message or "")


async def test_without_respect_retry_after_the_429_page_is_the_result(
    settings: CplaneSettings, plane: ControlPlane, busy_site: BusySite
) -> None:
    async with running(settings.model_copy(update={"respect_retry_after": False}), pages=True):
        result = await (await content.submit(url=busy_site.url)).result(timeout=DEADLINE_S)
    assert (result.title, result.status) == ("Busy", 429)


async def test_a_check_returns_a_429_as_its_result(
    settings: CplaneSettings, plane: ControlPlane, busy_site: BusySite
) -> None:
    async with running(settings, pages=True):
        result = await (await check.submit(url=busy_site.url, expect={"status": 200})).result(timeout=DEADLINE_S)
    assert not result.ok
    assert result.status == 429
