"""Where browsers come from: launched on this machine, or remote ones that a pool connects to."""

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TypedDict, cast
from urllib.parse import urlsplit
from uuid import uuid4

from playwright.async_api import Browser, BrowserType, CDPSession, Playwright
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.driver import Driver
from cplane.browser.engine.environment import browser_environment
from cplane.browser.engine.executable import Executable, browsers_folder, driver_package, find_executable
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.engine.process import Process
from cplane.egress.rules import literal
from cplane.errors import BrowserError, BrowserGone, BrowserNotFound, UsageError

LAUNCH_TIMEOUT_S = 15.0
LOG_PREFIX = re.compile(r"^\[[^\]]*\] *")
"""Process, time and source location, which Chromium writes before each message."""

DISABLE_FEATURES = "--disable-features="
ID_VARIABLE = "CPLANE_BROWSER_ID"
"""Set in the environment of a browser, to find its process; Chromium is asked for its process id instead."""
STOCK_FIREFOX = "moz-firefox"
"""Playwright's channel for a Firefox that it did not download; it is driven over WebDriver BiDi."""
NO_UDP_ARGS = ("--disable-quic", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp")
FIREFOX_PROXY_PREFS: dict[str, str | float | bool] = {
    "network.proxy.allow_hijacking_localhost": True,
    "network.http.http3.enable": False,
    "media.peerconnection.ice.proxy_only": True,
    "network.dns.disablePrefetch": True,
}
"""Firefox's preferences with the same effect: loopback goes through the proxy too, and nothing goes past it."""


class Engine(StrEnum):
    """A browser engine."""

    CHROMIUM = "chromium"
    FIREFOX = "firefox"
    WEBKIT = "webkit"


@dataclass(frozen=True, slots=True)
class Launched:
    """A running browser, with everything needed to drive, watch and end it."""

    driver: Driver
    browser: Browser
    session: CDPSession | None
    """A DevTools session with Chromium; other engines and Playwright servers with other engines have none."""
    process: Process | None
    """None where the system does not tell, and for a remote browser."""
    profile: Path | None
    """The temporary profile folder, to be removed if the browser does not remove it; None: Playwright made none."""
    artifacts: Path
    """The folder of its downloads and traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSource:
    """Where browsers come from: launched on this machine, or remote.

    Args:
        engine: chromium, firefox or webkit; webkit only as Playwright downloads it.
        executable: path of the binary; default: the one that `find_executable` finds. A Firefox that Playwright did not
            download is driven over WebDriver BiDi.
        sandbox: whether Chromium's sandbox is on; default: on, unless the process runs as root.
        args: further arguments for the binary. `--disable-features` is added to Playwright's own list, which it would
            otherwise replace.
        cdp_url: connect to a running Chromium (http://host:9222, ws://…/devtools/browser/…) instead of launching one.
        server_url: connect to a Playwright server of this engine (`playwright run-server`, ws://…) instead of launching
            one.
        env: names of variables that the browser and its driver get besides those they need.
        proxied: all traffic goes through the proxy of its context or not at all: no QUIC, no UDP of WebRTC, no direct
            connections to loopback.
    """

    engine: Engine = Engine.CHROMIUM
    executable: Path | None = None
    sandbox: bool | None = None
    args: tuple[str, ...] = ()
    cdp_url: str | None = None
    server_url: str | None = None
    env: tuple[str, ...] = ()
    proxied: bool = False

    @property
    def remote(self) -> bool:
        """Whether pools connect to a running browser instead of launching one."""
        return bool(self.cdp_url or self.server_url)

    @property
    def keeps_trace_files(self) -> bool:
        """Whether trace files cannot be removed: a Playwright server keeps them as long as it runs."""
        return self.server_url is not None

    @property
    def local(self) -> bool:
        """Whether a remote browser runs on this machine."""
        host = urlsplit(self.cdp_url or self.server_url or "").hostname or ""
        address = literal(host)
        return host == "localhost" or (address is not None and address.is_loopback)

    @property
    def place(self) -> str:
        """The binary's path, or the address of the remote browser, without what could be a secret."""
        if url := self.cdp_url or self.server_url:
            address = urlsplit(url)
            return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
        return str(self.executable or self.engine.value)

    def with_egress(self) -> "BrowserSource":
        """Return the source for use with an egress proxy: QUIC and UDP of WebRTC, which would bypass it, are off.

        Raises:
            UsageError: the browser is on another machine, from which it cannot use a proxy of this one.
        """
        if self.remote and not self.local:
            hint = "set CPLANE_EGRESS=off if that machine's own network restricts pages"
            raise UsageError(f"the browser at {self.place} cannot use the egress proxy of this machine", hint=hint)
        return replace(self, proxied=True)

    async def start(self, registry: ProcessRegistry) -> Launched:
        """Start a driver and a browser, within 15 s.

        Args:
            registry: the browser is added to it.

        Raises:
            BrowserNotFound: there is no browser.
            BrowserGone: it did not start, or cannot be reached; the message says why.
        """
        async with registry.artifacts() as artifacts:
            launched = await self._start(artifacts)
            await registry.add(launched.process, launched.profile)
            return launched

    async def _start(self, artifacts: Path) -> Launched:
        found = self._find()
        driver, browser_id = Driver(self.env), uuid4().hex
        try:
            async with asyncio.timeout(LAUNCH_TIMEOUT_S):
                playwright = await driver.start()
                browser = await self._browser(playwright, found, artifacts, browser_id)
                session = await _session(browser) if self.engine is Engine.CHROMIUM else None
                process = None if self.remote else await _find_process(session, browser_id)
                if self._is_stock(found):
                    await self._check_version(browser)
        except BaseException as error:
            await driver.stop()
            if isinstance(error, TimeoutError):
                raise BrowserGone(f"{self._name(found)} did not start within {LAUNCH_TIMEOUT_S:g} s") from error
            if isinstance(error, Exception):  # a driver that dies while it starts raises a bare Exception
                raise self._start_error(found, error) from None
            raise
        driver.process = process.child_of(os.getpid()) if process else None
        return Launched(driver, browser, session, process, profile_of(process) if process else None, artifacts)

    async def _browser(
        self, playwright: Playwright, found: Executable | None, artifacts: Path, browser_id: str
    ) -> Browser:
        types = {
            Engine.CHROMIUM: playwright.chromium,
            Engine.FIREFOX: playwright.firefox,
            Engine.WEBKIT: playwright.webkit,
        }
        browser_type = types[self.engine]
        if self.cdp_url:
            timeout_ms = LAUNCH_TIMEOUT_S * 1000
            return await browser_type.connect_over_cdp(self.cdp_url, artifacts_dir=artifacts, timeout=timeout_ms)
        if self.server_url:
            return await browser_type.connect(self.server_url, timeout=LAUNCH_TIMEOUT_S * 1000)
        if found is None and not await asyncio.to_thread(Path(browser_type.executable_path).exists):
            raise self._missing()  # Playwright would raise too, but leave a profile folder behind
        if self.engine is not Engine.CHROMIUM or not any(arg.startswith(DISABLE_FEATURES) for arg in self.args):
            return await self._launch(browser_type, found, self.args, artifacts, browser_id)
        plain = await self._launch(browser_type, found, (), artifacts, browser_id)
        playwrights = await _disabled_features(plain)
        await plain.close()
        args = merge_features(self.args, playwrights)
        return await self._launch(browser_type, found, args, artifacts, browser_id)

    async def _launch(
        self,
        browser_type: BrowserType,
        found: Executable | None,
        args: tuple[str, ...],
        artifacts: Path,
        browser_id: str,
    ) -> Browser:
        proxied = self.proxied and self.engine
        return await browser_type.launch(
            executable_path=found.path if found else None,
            channel=STOCK_FIREFOX if self._is_stock(found) else None,
            headless=True,
            chromium_sandbox=sandboxed(self.sandbox) if self.engine is Engine.CHROMIUM else None,
            args=[*(NO_UDP_ARGS if proxied is Engine.CHROMIUM else ()), *args],
            firefox_user_prefs=FIREFOX_PROXY_PREFS if proxied is Engine.FIREFOX else None,
            env={**browser_environment(self.env), ID_VARIABLE: browser_id},
            artifacts_dir=artifacts,
            traces_dir=artifacts,  # otherwise Playwright's client makes its own folders
            timeout=LAUNCH_TIMEOUT_S * 1000,
            # Ctrl-C reaches the driver too, and the browser must live until the worker has drained
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )

    def _find(self) -> Executable | None:
        """The binary; None: the browser is remote, or Playwright's download of this engine is used."""
        if self.remote or (self.engine is not Engine.CHROMIUM and self.executable is None):
            return None
        return find_executable(self.executable)

    def _is_stock(self, found: Executable | None) -> bool:
        """Whether it is a Firefox that Playwright did not download."""
        if self.engine is not Engine.FIREFOX or found is None:
            return False
        package = driver_package()
        return package is None or not found.path.absolute().is_relative_to(browsers_folder(package))

    async def _check_version(self, browser: Browser) -> None:
        """Reject an older Firefox: Playwright needs commands of WebDriver BiDi that it does not know.

        The first context shows that.
        """
        try:
            await (await browser.new_context()).close()
        except PlaywrightError as error:
            if "unknown command" not in str(error):
                raise
            await browser.close()
            hint = "name a newer Firefox, or leave out CPLANE_BROWSER_EXECUTABLE and run `playwright install firefox`"
            raise BrowserGone(f"{self.place} is Firefox {browser.version}, too old to be driven", hint=hint) from None

    def _missing(self) -> BrowserNotFound:
        hint = f"run `playwright install {self.engine}`"
        return BrowserNotFound(f"Playwright has not downloaded {self.engine}", hint=hint)

    def _name(self, found: Executable | None) -> str:
        return str(found.path) if found else self.place

    def _start_error(self, found: Executable | None, error: Exception) -> BrowserError:
        if self.remote:
            secret = urlsplit(self.cdp_url or self.server_url or "")
            text = first_line(error).replace(secret.geturl(), self.place)
            reason = "" if secret.query and secret.query in text else f": {text}"
            hint = "is it running, and does its version match Playwright's?"
            return BrowserGone(f"{self.place} cannot be used as a browser{reason}", hint=hint)
        if found is not None and self.engine is Engine.CHROMIUM:
            return _launch_error(found, error)
        if isinstance(error, BrowserError):
            return error
        if "Executable doesn't exist" in str(error):
            return self._missing()
        return BrowserGone(f"{self.place} did not start: {_complaint(str(error))}")


def merge_features(args: tuple[str, ...], playwrights: str) -> tuple[str, ...]:
    """Merge every `--disable-features` and Playwright's own list into one argument: Chromium uses only the last one."""
    rest = [arg for arg in args if not arg.startswith(DISABLE_FEATURES)]
    named = [playwrights, *(arg.removeprefix(DISABLE_FEATURES) for arg in args if arg.startswith(DISABLE_FEATURES))]
    features = dict.fromkeys(name for names in named for name in names.split(",") if name)
    return (*rest, DISABLE_FEATURES + ",".join(features))


def sandboxed(choice: bool | None) -> bool:
    """Return whether Chromium's sandbox is on. By default it is, except for root, for whom Chromium refuses it."""
    return os.geteuid() != 0 if choice is None else choice


def profile_of(process: Process) -> Path | None:
    """Return the temporary profile folder that Playwright made for a browser; None when the user chose one."""
    args = process.command
    folders = [arg.partition("=")[2] for arg in args if arg.startswith("--user-data-dir=")]
    folders += [folder for arg, folder in pairwise(args) if arg.lstrip("-") == "profile"]  # Firefox
    return Path(folders[-1]) if folders and "dev_profile-" in Path(folders[-1]).name else None


def first_line(error: BaseException) -> str:
    """Return the first line of a Playwright error, without its call and browser logs."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


class _RunningProcess(TypedDict):
    type: str
    id: int


class _ProcessInfo(TypedDict):
    processInfo: list[_RunningProcess]


async def running_pids(session: CDPSession) -> dict[int, str]:
    """Return the processes of a Chromium by id: browser, renderer, GPU, …; raises Playwright's Error."""
    reply = cast("_ProcessInfo", await session.send("SystemInfo.getProcessInfo"))  # pyright: ignore[reportUnknownMemberType]
    return {process["id"]: process["type"] for process in reply["processInfo"]}


async def _session(browser: Browser) -> CDPSession | None:
    with contextlib.suppress(PlaywrightError):
        return await browser.new_browser_cdp_session()
    return None


async def _find_process(session: CDPSession | None, browser_id: str = "") -> Process | None:
    if session is None:
        variable = f"{ID_VARIABLE}={browser_id}"
        return await asyncio.to_thread(Process.find_by_variable, variable) if browser_id else None
    try:
        pids = [pid for pid, process_type in (await running_pids(session)).items() if process_type == "browser"]
    except PlaywrightError:
        return None
    return Process.find(pids[0]) if pids else None


async def _disabled_features(browser: Browser) -> str:
    session = await browser.new_browser_cdp_session()
    process = await _find_process(session)
    features = [arg for arg in process.command if arg.startswith(DISABLE_FEATURES)] if process else []
    return features[-1].removeprefix(DISABLE_FEATURES) if features else ""


def _launch_error(executable: Executable, error: Exception) -> BrowserError:
    if not executable.path.exists():
        return BrowserNotFound(f"{executable.path} no longer exists", hint="run `cplane browser install`")
    complaint = _complaint(str(error))
    hint = None
    if "sandbox" in complaint.lower():
        hint = "the sandbox needs user namespaces and a user other than root; CPLANE_BROWSER_SANDBOX=0 turns it off"
    elif "error while loading shared libraries" in complaint:
        hint = "libraries are missing: run `cplane browser install`"
    return BrowserGone(f"{executable.path} did not start: {complaint}", hint=hint)


def _complaint(text: str) -> str:
    """The browser's fatal or last error line, otherwise Playwright's first line."""
    errors = [line.partition("[err]")[2].strip() for line in text.splitlines() if "[err]" in line]
    relevant = [line for line in errors if "FATAL" in line or "error while loading" in line] or errors[-1:]
    complaint = (relevant or text.strip().splitlines() or [""])[0]
    return LOG_PREFIX.sub("", complaint)[:300]
