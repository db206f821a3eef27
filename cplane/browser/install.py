"""Getting a browser onto this machine: Playwright's download, else the system's package manager."""

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

from cplane.browser.engine.executable import VARIABLE, Executable, Source, find_executable, on_path, playwrights_own
from cplane.browser.engine.instance import probe
from cplane.browser.engine.launch import BrowserSource
from cplane.errors import BrowserError, BrowserNotFound

DOWNLOAD = (sys.executable, "-m", "playwright", "install", "--only-shell", "chromium")
CONNECT_MS = 10_000
"""Playwright tries each address five times and would wait 30 s each time."""
SILENCE_S = 120.0
"""A tool that says nothing for so long is given up."""
LONGEST_LINE = 1024 * 1024
DOWNLOAD_S = 1800.0
PACKAGES_S = 1800.0

UPDATE = ("apt-get", "update")
FONTS = "fonts-liberation"
PACKAGES = ("chromium-headless-shell", "chromium")
"""Debian's names, the faster one first."""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")

Tell = Callable[[str], None]


async def install(tell: Tell) -> Executable:
    """Install a browser and launch it once to see that it works.

    Args:
        tell: gets each line the tools write.

    Raises:
        BrowserNotFound: no way worked; its hint is what to type.
    """
    if (found := await _download(tell)) or (found := await _install_packages(tell)):
        return found
    raise BrowserNotFound("no browser could be installed", hint=by_hand())


def by_hand() -> str:
    """The commands a human would type."""
    download = "python -m playwright install --with-deps --only-shell chromium"
    if shutil.which(UPDATE[0]) is None:
        return f"type: {download}"
    sudo = () if os.geteuid() == 0 else ("sudo",)
    packages = " && ".join(shlex.join((*sudo, *command)) for command in (UPDATE, _install_command(PACKAGES[0])))
    return f"type: {packages}; or: {download}"


async def _download(tell: Tell) -> Executable | None:
    """Playwright's own build, if the network allows it and the system has the libraries it needs."""
    environment = {"PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": str(CONNECT_MS)}
    if not await run(DOWNLOAD, tell, environment=environment, within_s=DOWNLOAD_S):
        tell("Playwright's download did not work here")
        return None
    own = next(playwrights_own(), None)
    return own if own is not None and await _works(own, tell) else None


async def _install_packages(tell: Tell) -> Executable | None:
    """The distribution's build, which brings its libraries along."""
    prefix = await _as_root(tell)
    if prefix is None:
        return None
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    tell("installing the system's package")
    if not await run((*prefix, *UPDATE), tell, environment=environment, within_s=PACKAGES_S):
        tell("the package lists could not be updated; trying with those that are there")
    for package in PACKAGES:
        command = (*prefix, *_install_command(package))
        if await run(command, tell, environment=environment, within_s=PACKAGES_S):
            return await _look_up(tell)
    return None


async def _look_up(tell: Tell) -> Executable | None:
    """What a look-up finds from now on, if it works."""
    found = find_executable()
    if await _works(found, tell):
        return found
    if found.source is not Source.SYSTEM and (packaged := next(on_path(), None)):
        hint = f"set {VARIABLE}={packaged.path}"
        raise BrowserNotFound(f"{found.path} comes first and does not work here", hint=hint)
    return None


async def _works(executable: Executable, tell: Tell) -> bool:
    try:
        version = await probe(BrowserSource(executable=executable.path))
    except BrowserError as error:
        tell(str(error))
        return False
    tell(f"{executable.path} works: version {version}")
    return True


async def _as_root(tell: Tell) -> tuple[str, ...] | None:
    """What to write before a command of the package manager; None where it may not be used."""
    if shutil.which(UPDATE[0]) is None:
        return None
    if os.geteuid() == 0:
        return ()
    if shutil.which("sudo") and await run(("sudo", "-n", "true"), tell, within_s=10):
        return ("sudo", "-n", "DEBIAN_FRONTEND=noninteractive")
    return None


def _install_command(package: str) -> tuple[str, ...]:
    return ("apt-get", "install", "--yes", "--no-install-recommends", package, FONTS)


async def run(
    command: Sequence[str],
    tell: Tell,
    *,
    environment: Mapping[str, str] | None = None,
    within_s: float,
    silence_s: float = SILENCE_S,
) -> bool:
    """Run a tool without a terminal and pass its lines on; answers whether it succeeded in time."""
    tell(f"$ {shlex.join(command)}")
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        tell(str(error))
        return False
    try:
        async with asyncio.timeout(within_s):
            await _pass_on(process, tell, silence_s)
            return await process.wait() == 0
    except TimeoutError:
        tell(f"given up: {Path(command[0]).name} took too long")
        return False
    finally:
        await _end(process)


async def _pass_on(process: asyncio.subprocess.Process, tell: Tell, silence_s: float) -> None:
    """Each line as it comes; a silence that is too long raises TimeoutError."""
    assert process.stdout is not None  # noqa: S101  a PIPE was asked for
    while True:
        async with asyncio.timeout(silence_s):
            line = await process.stdout.readline()
        if not line:
            return
        if words := COLOURS.sub("", line.decode(errors="replace")).rstrip():
            tell(words)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of it, with all it started, and see it end."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
