"""What a job with a browser session may do: it stays on the session's hosts, and the caller cannot read the session."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from cplane import ControlPlane, CplaneSettings, JobFailed
from cplane.keyring import new_key
from cplane.tasks import content
from tests.pages import Response, page, serve
from tests.workers import DEADLINE_S, running

pytestmark = pytest.mark.usefixtures("plane")

POPUP = "<script>const opened = open('{elsewhere}'); setInterval(() => 0, 50)</script>"
SCRIPT = "<script>setTimeout(() => location = '{elsewhere}', 50)</script>"


@pytest.fixture
def settings(settings: CplaneSettings) -> CplaneSettings:
    return settings.model_copy(update={"secret_key": SecretStr(new_key())})


@pytest_asyncio.fixture
async def site() -> AsyncIterator[str]:
    """A site at 127.0.0.1; the same at localhost is another host."""
    elsewhere = ""

    def respond(path: str) -> Response:
        match path:
            case "/login":
                return Response(b"<title>In</title>", headers={"Set-Cookie": "sid=4711; Path=/"})
            case "/redirect":
                return Response(b"", "302 Found", {"Location": elsewhere})
            case "/popup":
                return page(POPUP.format(elsewhere=elsewhere))
            case "/script":
                return page(SCRIPT.format(elsewhere=elsewhere))
            case "/frame":
                return page(f"<title>Framed</title><iframe src='{elsewhere}'></iframe>")
            case _:
                return page("<title>Elsewhere</title>")

    async with serve(respond) as url:
        elsewhere = url.replace("127.0.0.1", "localhost") + "/elsewhere"
        yield url


async def visit(url: str, **options: Any) -> str:
    """Visit a page with the session "shop", and return its title."""
    handle = await content.using(timeout=60).submit(url=url, session="shop", **options)
    return (await handle.result(timeout=DEADLINE_S)).title


async def refused(url: str, **options: Any) -> str:
    """Visit a page that the session refuses, and return why. The job runs once."""
    with pytest.raises(JobFailed) as failure:
        await visit(url, **options)
    assert failure.value.error_type == "SessionRefused"
    return failure.value.error_message


async def test_a_session_stays_on_the_hosts_that_it_was_saved_for(
    settings: CplaneSettings, plane: ControlPlane, site: str
) -> None:
    elsewhere = site.replace("127.0.0.1", "localhost") + "/elsewhere"
    async with running(settings, pages=True):
        assert await visit(f"{site}/login") == "In"
        session = await plane.sessions.get("shop")
        assert (session.hosts, session.version) == (["127.0.0.1"], 1)

        expected = "the browser session 'shop' is bound to 127.0.0.1; the page opened localhost"
        for url in (elsewhere, f"{site}/redirect", f"{site}/popup", f"{site}/script"):
            message = await refused(url, wait_for_timeout=20_000)
            assert message.startswith(expected), url
            assert "`cplane sessions allow shop --host localhost`" in message
        assert (await plane.sessions.get("shop")).version == 1, "a refused job leaves the session as it was"

        assert await visit(f"{site}/frame") == "Framed", "frames of other hosts are part of a page"
        await plane.sessions.allow("shop", hosts=["localhost"])
        assert await visit(elsewhere) == "Elsewhere"
        assert (await plane.sessions.get("shop")).hosts == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("proxy", {"server": "http://127.0.0.1:9"}),
        ("ignore_https_errors", True),
        ("add_script_tag", [{"content": "document.title = document.cookie"}]),
        ("html", "<script>document.title = 1</script>"),
    ],
)
async def test_a_session_refuses_options_by_which_its_caller_could_read_it(
    settings: CplaneSettings, site: str, option: str, value: object
) -> None:
    options: Any = {option: value} if option == "html" else {"url": f"{site}/login", option: value}
    async with running(settings, pages=True):
        handle = await content.submit(session="shop", **options)
        with pytest.raises(JobFailed, match=f"the browser session 'shop' does not allow {option} ") as failure:
            await handle.result(timeout=DEADLINE_S)
    assert failure.value.error_type == "SessionRefused"
    assert f"`cplane sessions allow shop --option {option}`" in failure.value.error_message


async def test_options_that_a_session_allows_by_name_are_used(
    settings: CplaneSettings, plane: ControlPlane, site: str
) -> None:
    await plane.sessions.allow("shop", options=["add_script_tag", "ignore_https_errors"])
    script = [{"content": "document.title = document.cookie"}]
    async with running(settings, pages=True):
        title = await visit(f"{site}/login", add_script_tag=script, ignore_https_errors=True)
    assert title == "sid=4711"
