"""Where browsers come from: launched here, or connected to somewhere else."""

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TypedDict, cast
from urllib.parse import urlsplit
from uuid import uuid4

from playwright.async_api import Browser, BrowserType, CDPSession, Playwright
from playwright.async_api import Error as PlaywrightError

from cplane.browser.engine.driver import Driver
from cplane.browser.engine.executable import Executable, browsers_folder, driver_package, find_executable
from cplane.browser.engine.ledger import ProcessRegistry
from cplane.browser.engine.process import Process
from cplane.egress.rules import literal
from cplane.errors import BrowserError, BrowserGone, BrowserNotFound

LAUNCH_S = 15.0
LOG_PREFIX = re.compile(r"^\[[^\]]*\] *")
"""Process, time and place in the source that Chromium writes before each sentence."""

DISABLE_FEATURES = "--disable-features="
MARK = "CPLANE_BROWSER_ID"
"""In the environment of a browser, to find its process; Chromium is asked for it."""
STOCK_FIREFOX = "moz-firefox"
"""Playwright's channel for a Firefox that is not its own; it is driven over WebDriver BiDi."""
NO_UDP = ("--disable-quic", "--force-webrtc-ip-handling-policy=disable_non_proxied_udp")
PROXIED: dict[str, str | float | bool] = {
    "network.proxy.allow_hijacking_localhost": True,
    "network.http.http3.enable": False,
    "media.peerconnection.ice.proxy_only": True,
    "network.dns.disablePrefetch": True,
}
"""Firefox's preferences for the same: loopback goes by the proxy, too, and nothing past it."""


class Engine(StrEnum):
    """The kind of browser."""

    CHROMIUM = "chromium"
    FIREFOX = "firefox"
    WEBKIT = "webkit"


@dataclass(frozen=True, slots=True)
class Launched:
    """A browser that runs, and everything to steer, watch and end it with."""

    driver: Driver
    browser: Browser
    session: CDPSession | None
    """To ask Chromium; other engines and remote servers of other kinds have none."""
    process: Process | None
    """None where the system does not tell, and for a browser that runs elsewhere."""
    profile: Path | None
    """The folder to remove when the browser did not do so itself."""
    artifacts: Path
    """The folder of its downloads and traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSource:
    """How browsers are had.

    Args:
        engine: chromium, firefox or webkit; the latter only as Playwright downloads it.
        executable: the binary; default: looked up. A Firefox that is not of Playwright's is driven over WebDriver BiDi.
        sandbox: Chromium's sandbox; default: on unless root.
        args: more arguments for the binary. `--disable-features` adds to Playwright's own list, of which it would else take the place.
        cdp_url: connect to a Chromium that runs elsewhere (http://host:9222, ws://…/devtools/browser/…) instead of launching one.
        server_url: connect to a server of Playwright's (`playwright run-server`, ws://…) of this engine instead of launching one.
        proxied: everything goes by the proxy of its context or not at all: no QUIC, no UDP of WebRTC, no way around it for loopback.
    """

    engine: Engine = Engine.CHROMIUM
    executable: Path | None = None
    sandbox: bool | None = None
    args: tuple[str, ...] = ()
    cdp_url: str | None = None
    server_url: str | None = None
    proxied: bool = False

    @property
    def remote(self) -> bool:
        """Whether the browser runs elsewhere."""
        return bool(self.cdp_url or self.server_url)

    @property
    def local(self) -> bool:
        """Whether a browser that runs elsewhere does so on this machine."""
        host = urlsplit(self.cdp_url or self.server_url or "").hostname or ""
        address = literal(host)
        return host == "localhost" or (address is not None and address.is_loopback)

    @property
    def place(self) -> str:
        """Where the browser is, without what could be a secret: the binary's path, or the host it is connected to."""
        if url := self.cdp_url or self.server_url:
            address = urlsplit(url)
            return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
        return str(self.executable or self.engine.value)

    async def start(self, ledger: ProcessRegistry) -> Launched:
        """Start a driver and a browser, within 15 s.

        Raises:
            BrowserNotFound: there is no browser.
            BrowserGone: it did not start, or cannot be reached; the message says why.
        """
        async with ledger.artifacts() as artifacts:
            launched = await self._start(artifacts)
            await ledger.enter(launched.process, launched.profile)
            return launched

    async def _start(self, artifacts: Path) -> Launched:
        found = self._find()
        driver, mark = Driver(), uuid4().hex
        try:
            async with asyncio.timeout(LAUNCH_S):
                playwright = await driver.start()
                browser = await self._browser(playwright, found, artifacts, mark)
                session = await _session(browser) if self.engine is Engine.CHROMIUM else None
                process = None if self.remote else await _find_process(session, mark)
                if self._is_stock(found):
                    await self._check_age(browser)
        except BaseException as error:
            await driver.stop()
            if isinstance(error, TimeoutError):
                raise BrowserGone(f"{self._name(found)} did not start within {LAUNCH_S:g} s") from error
            if isinstance(error, Exception):  # a driver that dies while it starts raises a bare one
                raise self._trouble(found, error) from None
            raise
        driver.process = process.child_of(os.getpid()) if process else None
        return Launched(driver, browser, session, process, profile_of(process) if process else None, artifacts)

    async def _browser(self, playwright: Playwright, found: Executable | None, artifacts: Path, mark: str) -> Browser:
        kinds = {
            Engine.CHROMIUM: playwright.chromium,
            Engine.FIREFOX: playwright.firefox,
            Engine.WEBKIT: playwright.webkit,
        }
        kind = kinds[self.engine]
        if self.cdp_url:
            return await kind.connect_over_cdp(self.cdp_url, artifacts_dir=artifacts, timeout=LAUNCH_S * 1000)
        if self.server_url:
            return await kind.connect(self.server_url, timeout=LAUNCH_S * 1000)
        if found is None and not await asyncio.to_thread(Path(kind.executable_path).exists):
            raise self._missing()  # Playwright would say so too, and leave a profile folder
        if self.engine is not Engine.CHROMIUM or not any(arg.startswith(DISABLE_FEATURES) for arg in self.args):
            return await self._launch(kind, found, self.args, artifacts, mark)
        plain = await self._launch(kind, found, (), artifacts, mark)
        theirs = await _disabled_features(plain)
        await plain.close()
        return await self._launch(kind, found, merge_features(self.args, theirs), artifacts, mark)

    async def _launch(
        self, kind: BrowserType, found: Executable | None, args: tuple[str, ...], artifacts: Path, mark: str
    ) -> Browser:
        proxied = self.proxied and self.engine
        return await kind.launch(
            executable_path=found.path if found else None,
            channel=STOCK_FIREFOX if self._is_stock(found) else None,
            headless=True,
            chromium_sandbox=sandboxed(self.sandbox) if self.engine is Engine.CHROMIUM else None,
            args=[*(NO_UDP if proxied is Engine.CHROMIUM else ()), *args],
            firefox_user_prefs=PROXIED if proxied is Engine.FIREFOX else None,
            env={**os.environ, MARK: mark},
            artifacts_dir=artifacts,
            traces_dir=artifacts,  # else the client makes folders of its own
            timeout=LAUNCH_S * 1000,
            # Ctrl-C reaches the driver too: the browser must outlive it until the worker has drained
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )

    def _find(self) -> Executable | None:
        """The binary; None: it runs elsewhere, or is the one of this engine that Playwright has downloaded."""
        if self.remote or (self.engine is not Engine.CHROMIUM and self.executable is None):
            return None
        return find_executable(self.executable)

    def _is_stock(self, found: Executable | None) -> bool:
        """Whether it is a Firefox that Playwright has not downloaded."""
        if self.engine is not Engine.FIREFOX or found is None:
            return False
        package = driver_package()
        return package is None or not found.path.absolute().is_relative_to(browsers_folder(package))

    async def _check_age(self, browser: Browser) -> None:
        """Playwright needs commands of WebDriver BiDi that an older Firefox does not know; it learns that from the first context."""
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
        return BrowserNotFound(f"there is no {self.engine} of Playwright's", hint=hint)

    def _name(self, found: Executable | None) -> str:
        return str(found.path) if found else self.place

    def _trouble(self, found: Executable | None, error: Exception) -> BrowserError:
        if self.remote:
            secret = urlsplit(self.cdp_url or self.server_url or "")
            text = first_line(error).replace(secret.geturl(), self.place)
            hidden = "" if secret.query and secret.query in text else f": {text}"
            return BrowserGone(
                f"{self.place} cannot be used as a browser{hidden}", hint="is it running, and of the same version?"
            )
        if found is not None and self.engine is Engine.CHROMIUM:
            return _launch_error(found, error)
        if isinstance(error, BrowserError):
            return error
        if "Executable doesn't exist" in str(error):
            return self._missing()
        return BrowserGone(f"{self.place} did not start: {_complaint(str(error))}")


def merge_features(args: tuple[str, ...], theirs: str) -> tuple[str, ...]:
    """One `--disable-features` of all that are given and Playwright's own list: Chromium takes the last one only."""
    rest = [arg for arg in args if not arg.startswith(DISABLE_FEATURES)]
    named = [theirs, *(arg.removeprefix(DISABLE_FEATURES) for arg in args if arg.startswith(DISABLE_FEATURES))]
    features = dict.fromkeys(name for names in named for name in names.split(",") if name)
    return (*rest, DISABLE_FEATURES + ",".join(features))


def sandboxed(choice: bool | None) -> bool:
    """Whether Chromium's sandbox is on: as told; by default unless root, for whom Chromium refuses it."""
    return os.geteuid() != 0 if choice is None else choice


def profile_of(process: Process) -> Path | None:
    """The temporary profile folder that Playwright made for a browser it launched; None when the user named one."""
    args = process.command
    folders = [arg.partition("=")[2] for arg in args if arg.startswith("--user-data-dir=")]
    folders += [folder for arg, folder in pairwise(args) if arg.lstrip("-") == "profile"]  # Firefox
    return Path(folders[-1]) if folders and "dev_profile-" in Path(folders[-1]).name else None


def first_line(error: BaseException) -> str:
    """The sentence of an error of Playwright, without its call and browser logs."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


class _RunningProcess(TypedDict):
    type: str
    id: int


class _ProcessInfo(TypedDict):
    processInfo: list[_RunningProcess]


async def running_pids(session: CDPSession) -> dict[int, str]:
    """The processes of a Chromium: their numbers and kinds (browser, renderer, GPU, …). Raises playwright's Error."""
    answer = cast("_ProcessInfo", await session.send("SystemInfo.getProcessInfo"))  # pyright: ignore[reportUnknownMemberType]
    return {process["id"]: process["type"] for process in answer["processInfo"]}


async def _session(browser: Browser) -> CDPSession | None:
    with contextlib.suppress(PlaywrightError):
        return await browser.new_browser_cdp_session()
    return None


async def _find_process(session: CDPSession | None, mark: str = "") -> Process | None:
    if session is None:
        return await asyncio.to_thread(Process.marked, f"{MARK}={mark}") if mark else None
    try:
        pids = [pid for pid, kind in (await running_pids(session)).items() if kind == "browser"]
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
        return BrowserNotFound(f"{executable.path} is not there any more", hint="run `cplane browser install`")
    complaint = _complaint(str(error))
    hint = None
    if "sandbox" in complaint.lower():
        hint = "the sandbox wants another user than root, and user namespaces; CPLANE_BROWSER_SANDBOX=0 turns it off"
    elif "error while loading shared libraries" in complaint:
        hint = "libraries are missing: run `cplane browser install`"
    return BrowserGone(f"{executable.path} did not start: {complaint}", hint=hint)


def _complaint(text: str) -> str:
    """The browser's last words, or Playwright's first ones."""
    words = [line.partition("[err]")[2].strip() for line in text.splitlines() if "[err]" in line]
    telling = [line for line in words if "FATAL" in line or "error while loading" in line] or words[-1:]
    complaint = (telling or text.strip().splitlines() or [""])[0]
    return LOG_PREFIX.sub("", complaint)[:300]
