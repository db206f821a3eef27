"""One virtual environment a peer, made from its pinned requirements below .cache/benchmarks and kept until they change."""

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
    """An environment could not be made; the message is what the installer printed last."""


def requirements(name: str) -> Path:
    """The pinned versions of a peer, or of the reference implementation."""
    return (BENCHMARKS if name == REFERENCE else BENCHMARKS / "peers") / name / "requirements.txt"


def python(name: str) -> str:
    """The interpreter of an environment."""
    return str(ENVIRONMENTS / name / "bin" / "python")


def version(name: str) -> str:
    """The pinned version of the package that a peer is named after."""
    lines = requirements(name).read_text().splitlines()
    return next((line.partition("==")[2] for line in lines if line.startswith(f"{name}==")), "")


async def ensure(name: str) -> None:
    """Make the environment unless it stands and was made from these requirements; two runs at once wait for each other.

    Raises:
        InstallError: it could not be made.
    """
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / "lock").open("w") as lock:
        while not _is_free(lock):
            await asyncio.sleep(0.2)
        await _ensure(name)


async def _ensure(name: str) -> None:
    wanted = requirements(name).read_text() + sys.version
    made_from = ENVIRONMENTS / name / "made-from.txt"
    if made_from.exists() and made_from.read_text() == wanted:
        return
    folder = ENVIRONMENTS / name
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    for command in _commands(name, folder):
        await _run(command)
    made_from.write_text(wanted)


def _is_free(lock: IO[str]) -> bool:
    """Whether the lock is ours now; a thread that waits for it could not be interrupted."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _commands(name: str, folder: Path) -> list[list[str]]:
    """uv where there is one, for it is fast; else what Python brings."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
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
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise InstallError(f"{' '.join(command)}: {printed.decode(errors='replace').strip()[-400:]}")
