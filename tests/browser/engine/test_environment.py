"""Browsers and their driver get the variables that they need, and none of the worker's secrets."""

import asyncio
import os
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from cplane.browser import BrowserPool, BrowserSource
from cplane.browser.engine.environment import browser_environment
from cplane.browser.engine.process import Process
from tests.browser.pools import find_descendants, running

SECRETS = {
    "CPLANE_SECRET_KEY": "hunter2",
    "CPLANE_DATABASE_URL": "postgresql://me:hunter2@host/db",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "MY_TOKEN": "hunter2",
    "HTTPS_PROXY": "http://me:hunter2@proxy:1",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put secrets into our environment, in any spelling that a program may use."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")


def environment_of(pid: int) -> dict[str, str]:
    """Return what a process was started with; empty for one that has ended."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def kind_of(pid: int) -> str:
    """Return what a process of Chromium is, such as `renderer`; `browser` for one without a type."""
    process = Process.find(pid)
    words = " ".join(process.command).split() if process else []  # a renderer's command line is one text
    return next((word.removeprefix("--type=") for word in words if word.startswith("--type=")), "browser")


async def test_no_process_of_a_browser_holds_a_secret(secrets: None, site: str) -> None:
    before = find_descendants()
    async with BrowserPool(1, warm=0) as pool:
        browser = await running(pool)
        async with pool.page() as page:
            await page.goto(site)
            assert browser.driver.process is not None
            driver = browser.driver.process.pid
            started = {pid: (kind_of(pid), environment_of(pid)) for pid in find_descendants() - before}
    assert {"browser", "renderer"} <= {kind for kind, _ in started.values()}
    assert started[driver][1]["PW_LANG_NAME"] == "python"
    assert started[driver][1]["LC_ALL"] == "C.UTF-8"
    for kind, variables in started.values():
        assert "hunter2" not in str(variables), kind
        assert not {name for name in variables if name.startswith("CPLANE_")} - {
            "CPLANE_BROWSER_ID",
            "CPLANE_DRIVER_ID",
        }


async def test_a_variable_that_is_named_reaches_the_browser_and_its_driver(secrets: None) -> None:
    async with BrowserPool(1, warm=0, source=BrowserSource(env=("HTTPS_PROXY",))) as pool:
        browser = await running(pool)
        assert browser.process is not None
        assert browser.driver.process is not None
        for process in (browser.process, browser.driver.process):
            variables = environment_of(process.pid)
            assert variables["HTTPS_PROXY"] == SECRETS["HTTPS_PROXY"]
            assert "MY_TOKEN" not in variables


async def test_drivers_that_are_not_ours_keep_their_environment(secrets: None) -> None:
    async with BrowserPool(1, warm=0) as pool:
        await running(pool)
        before = find_descendants()
        async with asyncio.timeout(60), async_playwright():
            started = map(environment_of, find_descendants() - before)
            (variables,) = [each for each in started if "PW_LANG_NAME" in each]  # browsers go on forking
            assert variables["MY_TOKEN"] == "hunter2"


def test_the_variables_that_programs_need_are_kept() -> None:
    given: dict[str, str] = dict.fromkeys(
        ("PATH", "HOME", "LC_TIME", "TZ", "PLAYWRIGHT_BROWSERS_PATH", "SECRET", "PATHS"), "x"
    )
    assert browser_environment(variables=given).keys() == given.keys() - {"SECRET", "PATHS"}
    assert browser_environment(["SECRET"], given)["SECRET"] == "x"
    assert browser_environment().get("PATH") == os.environ.get("PATH")
