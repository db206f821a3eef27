"""One virtual environment per peer below .cache/benchmarks, kept until its pinned requirements change."""

import asyncio
import fcntl
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from benchmarks.suite.systems import BENCHMARKS, ENVIRONMENTS

REFERENCE = "reference"


class InstallError(Exception):
    """An environment could not be created. The message has the last output of the installer."""


def requirements(name: str) -> Path:
    """Return the file with the pinned versions of a peer or of the reference implementation."""
    return (BENCHMARKS if name == REFERENCE else BENCHMARKS / "peers") / name / "requirements.txt"


def python(name: str) -> str:
    """Return the interpreter of an environment."""
    return str(ENVIRONMENTS / name / "bin" / "python")


def version(name: str) -> str:
    """Return the pinned version of the package that a peer is named after."""
    lines = requirements(name).read_text().splitlines()
    return next((line.partition("==")[2] for line in lines if line.startswith(f"{name}==")), "")


async def ensure(name: str) -> None:
    """Create the environment unless it exists with these requirements. Concurrent runs wait for each other.

    Raises:
        InstallError: the environment could not be created.
    """
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as lock:
        while not _try_lock(lock):
            await asyncio.sleep(0.2)
        await _ensure(name)


async def _ensure(name: str) -> None:
    expected = requirements(name).read_text() + sys.version
    made_from = ENVIRONMENTS / name / "made-from.txt"
    if made_from.exists() and made_from.read_text() == expected:
        return
    folder = ENVIRONMENTS / name
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    for command in _commands(name, folder):
        await _run(command)
    made_from.write_text(expected)


def _try_lock(lock: IO[str]) -> bool:
    """Try to acquire the lock. It does not block, because a thread that waits for the lock could not be interrupted."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _commands(name: str, folder: Path) -> list[list[str]]:
    """Return the commands of uv if it is installed, because it is fast; else those of venv and pip."""
    local_uv = Path(sys.executable).with_name("uv")
    uv = str(local_uv) if local_uv.exists() else shutil.which("uv")
    listed = str(requirements(name))
    if uv is not None:
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        return [make, [uv, "pip", "install", "--quiet", "--python", python(name), "-r", listed]]
    make = [sys.executable, "-m", "venv", str(folder)]
    return [make, [python(name), "-m", "pip", "install", "--quiet", "-r", listed]]


async def _run(command: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise InstallError(f"{' '.join(command)}: {output.decode(errors='replace').strip()[-400:]}")
