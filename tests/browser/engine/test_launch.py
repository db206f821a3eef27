"""Where browsers come from: further arguments, other engines, and remote browsers."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright._impl._driver import compute_driver_executable

from cplane.browser import BrowserPool, BrowserSource, Engine, PageOptions, find_executable
from cplane.browser.engine.launch import merge_features
from cplane.errors import BrowserGone, BrowserNotFound, PoolTimeout
from tests.browser.pools import FOREVER, contexts, running, settled


@asynccontextmanager
async def program(*command: str, expected: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str]]:
    """Start a program; yields it with the first line that contains `expected`."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            async for line in process.stdout:
                if expected in line.decode():
                    break
            else:
                raise AssertionError(f"{command[0]} did not print '{expected}'")
        yield process, line.decode().strip()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@dataclass(frozen=True)
class Remote:
    """A browser that the pool did not launch."""

    process: asyncio.subprocess.Process
    source: BrowserSource


@asynccontextmanager
async def chromium(folder: Path) -> AsyncGenerator[Remote]:
    """Start a Chromium with a DevTools address."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    options = ["--headless", *sandbox, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    async with program(str(find_executable().path), *options, expected="DevTools listening on") as (process, line):
        yield Remote(process, BrowserSource(cdp_url=line.rpartition(" ")[2]))


@asynccontextmanager
async def server(folder: Path) -> AsyncGenerator[Remote]:
    """Start a Playwright server with a Chromium."""
    options = {"executablePath": str(find_executable().path), "host": "127.0.0.1", "chromiumSandbox": os.geteuid() != 0}
    config = folder / "server.json"
    config.write_text(json.dumps(options))
    node, script = compute_driver_executable()
    command = [node, script, "launch-server", "--browser=chromium", f"--config={config}"]
    async with program(*command, expected="ws://") as (process, line):
        yield Remote(process, BrowserSource(server_url=line))


@pytest.fixture(params=[chromium, server], ids=["cdp", "server"])
async def remote(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Remote]:
    async with request.param(tmp_path) as remote:
        yield remote


def test_all_lists_of_disabled_features_are_merged() -> None:
    args = ("--mute-audio", "--disable-features=A,B", "--disable-features=C,A")
    assert merge_features(args, "X,B") == ("--mute-audio", "--disable-features=X,B,A,C")


async def test_disabled_features_are_added_to_playwrights_list() -> None:
    source = BrowserSource(args=("--disable-features=MediaRouter2,Foo", "--user-agent=me/1"))
    async with BrowserPool(1, warm=0, source=source) as pool:
        process = (await running(pool)).process
        assert process is not None
        features = [arg for arg in process.command if arg.startswith("--disable-features=")]
        assert features[-1].endswith(",MediaRouter2,Foo")
        assert "HttpsUpgrades" in features[-1]  # one of Playwright's
        async with pool.page() as page:
            assert await page.evaluate("navigator.userAgent") == "me/1"


async def test_pages_of_a_remote_browser_are_isolated(remote: Remote, site: str) -> None:
    async with BrowserPool(2, warm=1, source=remote.source) as pool:
        async with pool.page() as one, pool.page() as other:
            await one.goto(site)
            await other.goto(site)
            await one.evaluate("document.cookie = 'a=1'")
            assert await other.evaluate("document.cookie") == ""
        await settled(pool)


async def test_a_playwright_server_records_only_traces_that_are_requested_for_every_run(
    remote: Remote,
) -> None:
    async with BrowserPool(1, warm=0, source=remote.source, trace="on-failure") as pool:
        for options, expected in (
            (PageOptions(), remote.source.server_url is None),
            (PageOptions(trace="on-failure"), remote.source.server_url is None),
            (PageOptions(trace="on"), True),
        ):
            lease = await pool.acquire_page(options)
            assert lease.traced is expected
            lease.release()
            await lease.wait_closed()


async def test_a_remote_browser_that_dies_is_gone(remote: Remote) -> None:
    async def wait_forever(pool: BrowserPool) -> None:
        async with pool.page() as page:
            os.killpg(remote.process.pid, signal.SIGKILL)
            await page.evaluate(FOREVER)

    async def complaint(pool: BrowserPool) -> str:
        with pytest.raises(PoolTimeout, match=r"there is no browser after 0\.5 s: ") as error:
            await pool.acquire_page()
        return str(error.value)

    async with BrowserPool(1, warm=0, source=remote.source, wait_s=0.5) as pool:
        with pytest.raises(BrowserGone):
            await wait_forever(pool)
        async with asyncio.timeout(30):
            while "cannot be used as a browser" not in await complaint(pool):
                pass


async def test_closing_the_pool_leaves_a_remote_browser_running_without_its_contexts(remote: Remote) -> None:
    counts: list[int] = []
    for _ in range(3):
        async with BrowserPool(2, warm=0, source=remote.source) as pool:
            [browser] = pool.browsers
            counts.append(contexts(browser))
            await pool.acquire_page()
            assert contexts(browser) == counts[0] + 1
    assert remote.process.returncode is None
    assert len(set(counts)) == 1


@pytest.mark.parametrize(
    "source",
    [
        BrowserSource(cdp_url="http://user:secret@127.0.0.1:9/?token=secret"),
        BrowserSource(server_url="ws://127.0.0.1:9/?token=secret"),
    ],
    ids=["cdp", "server"],
)
async def test_the_error_names_an_unreachable_address_without_its_secrets(source: BrowserSource) -> None:
    with pytest.raises(BrowserGone, match=r"127\.0\.0\.1:9 cannot be used as a browser") as error:
        await BrowserPool(source=source).__aenter__()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("engine", [Engine.FIREFOX, Engine.WEBKIT])
async def test_the_hint_for_an_engine_that_is_not_downloaded_has_the_command(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(BrowserNotFound, match=f"run `playwright install {engine}`"):
        await BrowserPool(source=BrowserSource(engine=engine)).__aenter__()
