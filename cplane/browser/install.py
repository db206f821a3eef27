"""Installs a browser on this machine: Playwright's download, otherwise a package of the system."""

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cplane.browser.engine.executable import VARIABLE, Executable, Source, downloaded, find_executable, on_path
from cplane.browser.engine.instance import probe
from cplane.browser.engine.launch import BrowserSource
from cplane.errors import BrowserError, BrowserNotFound

DOWNLOAD = (sys.executable, "-m", "playwright", "install", "--only-shell", "chromium")
CONNECT_TIMEOUT_MS = 10_000
"""Playwright tries each address five times; by default, it would wait 30 s each time."""
SILENCE_TIMEOUT_S = 120.0
"""A tool that prints nothing for this long is killed."""
MAX_LINE_BYTES = 1024 * 1024
DOWNLOAD_TIMEOUT_S = 1800.0
PACKAGES_TIMEOUT_S = 1800.0

UPDATE = ("apt-get", "update")
FONTS = "fonts-liberation"
PACKAGES = ("chromium-headless-shell", "chromium")
"""Debian's packages, the faster browser first."""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")

Report = Callable[[str], None]
"""Receives each line of progress."""


async def install(report: Report) -> Executable:
    """Install a browser and launch it once to check that it works.

    Args:
        report: receives each line the tools print.

    Returns:
        The browser that was installed.

    Raises:
        BrowserNotFound: no browser could be installed; its hint has the commands to type.
    """
    if (found := await _download(report)) or (found := await _install_packages(report)):
        return found
    raise BrowserNotFound("no browser could be installed", hint=manual_commands())


def manual_commands() -> str:
    """Return the commands a human would type."""
    download = "python -m playwright install --with-deps --only-shell chromium"
    if shutil.which(UPDATE[0]) is None:
        return f"type: {download}"
    sudo = () if os.geteuid() == 0 else ("sudo",)
    packages = " && ".join(shlex.join((*sudo, *command)) for command in (UPDATE, _install_command(PACKAGES[0])))
    return f"type: {packages}; or: {download}"


async def _download(report: Report) -> Executable | None:
    """Download Playwright's build; None if the network does not allow it or the system lacks libraries."""
    environment = {"PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": str(CONNECT_TIMEOUT_MS)}
    if not await run(DOWNLOAD, report, environment=environment, within_s=DOWNLOAD_TIMEOUT_S):
        report("Playwright's download did not work here")
        return None
    found = next(downloaded(), None)
    return found if found is not None and await _works(found, report) else None


async def _install_packages(report: Report) -> Executable | None:
    """Install the distribution's build, which depends on the libraries it needs; None if that fails."""
    prefix = await _as_root(report)
    if prefix is None:
        return None
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    report("installing the system's package")
    if not await run((*prefix, *UPDATE), report, environment=environment, within_s=PACKAGES_TIMEOUT_S):
        report("the package lists could not be updated; trying with the present ones")
    for package in PACKAGES:
        command = (*prefix, *_install_command(package))
        if await run(command, report, environment=environment, within_s=PACKAGES_TIMEOUT_S):
            return await _check_installed(report)
    return None


async def _check_installed(report: Report) -> Executable | None:
    """Return the browser that jobs will find now; None if it does not work."""
    found = find_executable()
    if await _works(found, report):
        return found
    if found.source is not Source.SYSTEM and (packaged := next(on_path(), None)):
        hint = f"set {VARIABLE}={packaged.path}"
        raise BrowserNotFound(f"{found.path} takes precedence and does not work here", hint=hint)
    return None


async def _works(executable: Executable, report: Report) -> bool:
    try:
        version = await probe(BrowserSource(executable=executable.path))
    except BrowserError as error:
        report(str(error))
        return False
    report(f"{executable.path} works: version {version}")
    return True


async def _as_root(report: Report) -> tuple[str, ...] | None:
    """Return the prefix for commands of the package manager; None if we may not use it."""
    if shutil.which(UPDATE[0]) is None:
        return None
    if os.geteuid() == 0:
        return ()
    if shutil.which("sudo") and await run(("sudo", "-n", "true"), report, within_s=10):
        return ("sudo", "-n", "DEBIAN_FRONTEND=noninteractive")
    return None


def _install_command(package: str) -> tuple[str, ...]:
    return ("apt-get", "install", "--yes", "--no-install-recommends", package, FONTS)


async def run(
    command: Sequence[str],
    report: Report,
    *,
    environment: Mapping[str, str] | None = None,
    within_s: float,
    silence_s: float = SILENCE_TIMEOUT_S,
) -> bool:
    """Run a tool without a terminal.

    Args:
        command: the program and its arguments.
        report: receives the command, and each line the tool prints.
        environment: variables in addition to ours.
        within_s: seconds until the tool is killed.
        silence_s: seconds without output until the tool is killed.

    Returns:
        Whether it exited with 0 in time.
    """
    report(f"$ {shlex.join(command)}")
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LINE_BYTES,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        report(str(error))
        return False
    try:
        async with asyncio.timeout(within_s):
            await _report_lines(process, report, silence_s)
            return await process.wait() == 0
    except TimeoutError:
        report(f"{Path(command[0]).name} took too long and was killed")
        return False
    finally:
        await _kill(process)


async def _report_lines(process: asyncio.subprocess.Process, report: Report, silence_s: float) -> None:
    """Report each line as it comes; raises TimeoutError after a silence that is too long."""
    assert process.stdout is not None  # noqa: S101  it was started with a PIPE
    while True:
        async with asyncio.timeout(silence_s):
            line = await process.stdout.readline()
        if not line:
            return
        if text := COLOURS.sub("", line.decode(errors="replace")).rstrip():
            report(text)


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the tool if it still runs, with all processes it started, and wait for its end."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
