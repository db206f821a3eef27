"""The real `cplane` command in its own process."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.cli.forked import CommandServer

TIMEOUT_S = 120.0
"""Upper bound for a command, or for a line of its output."""


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    stdout: str
    stderr: str


class Running:
    """A running command, whose stderr is read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until(self, pattern: str) -> str:
        """Return the next line that matches `pattern`, a regular expression."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"no line matches {pattern!r} in:\n{''.join(self.lines)}")

    async def until_worker_started(self) -> str:
        """Return the log line of a worker that claims jobs."""
        return await self.until(r"worker[ _]started")

    async def stop(self, sent: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal and wait until the command has ended."""
        self.process.send_signal(sent)
        async with asyncio.timeout(TIMEOUT_S):
            stdout, stderr = await self.process.communicate()
        assert self.process.returncode is not None
        return Ended(self.process.returncode, stdout.decode(), "".join(self.lines) + stderr.decode())


class Cplane(Protocol):
    """Runs a command to its end."""

    def __call__(self, *args: str, **variables: str) -> Awaitable[Ended]: ...


class Start(Protocol):
    """Starts a command: `async with start("dev") as running`."""

    def __call__(self, *args: str, **variables: str) -> AbstractAsyncContextManager[Running]: ...


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder in which commands run."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def addresses(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """The servers of this test, as environment variables."""
    return {
        "CPLANE_DATABASE_URL": database_url,
        "CPLANE_REDIS_URL": redis_url,
        "CPLANE_ARTIFACTS_URL": (tmp_path / "artifacts").as_uri(),
        "CPLANE_EGRESS_ALLOW": "loopback",
    }


@pytest.fixture
def start(folder: Path) -> Start:
    """Starts a command; it is killed if it still runs at the end of the block."""

    @asynccontextmanager
    async def started(*args: str, **variables: str) -> AsyncGenerator[Running]:
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("cplane")), *args),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=folder,
            env={**os.environ, **variables, "PYTHONWARNINGS": "error"},
            start_new_session=True,
            limit=1024 * 1024,
        )
        try:
            yield Running(process)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.communicate()

    return started


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    """Forks commands."""
    with CommandServer() as server:
        yield server


SERVING = frozenset({"demo", "dev", "web", "worker"})
"""Commands that are processes of their own in tests, too: they start others."""


@pytest.fixture
def cplane(start: Start, command_server: CommandServer, folder: Path, tmp_path: Path) -> Cplane:
    """Runs a command to its end."""

    async def run(*args: str, **variables: str) -> Ended:
        if not SERVING.isdisjoint(args[:1]):
            async with start(*args, **variables) as running, asyncio.timeout(TIMEOUT_S):
                stdout, stderr = await running.process.communicate()
                assert running.process.returncode is not None
                return Ended(running.process.returncode, stdout.decode(), stderr.decode())
        output = Path(tempfile.mkdtemp(dir=tmp_path))
        os.mkfifo(output / "code")
        environment = {**os.environ, **variables, "PYTHONWARNINGS": "error"}
        pid = await asyncio.to_thread(command_server.start, list(args), environment, folder, output)
        ended = asyncio.create_task(asyncio.to_thread((output / "code").read_text), name=f"wait for {args[:2]}")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                code = int(await asyncio.shield(ended))
        finally:
            if not ended.done():
                os.killpg(pid, signal.SIGKILL)
                await ended
        return Ended(code, (output / "stdout").read_text(), (output / "stderr").read_text())

    return run


@pytest.fixture
async def worker(start: Start, addresses: dict[str, str]) -> AsyncIterator[Running]:
    """A worker that claims jobs."""
    async with start("worker", **addresses) as running:
        await running.until_worker_started()
        yield running
        await running.stop()


@pytest.fixture
def app(folder: Path) -> Path:
    """A file with jobs."""
    path = folder / "app.py"
    path.write_text(APP)
    return path


APP = """\
from cplane import Context, job


@job
async def add(x: int, y: int) -> int:
    return x + y


@job
async def steps(ctx: Context, count: int) -> str:
    for step in range(count):
        await ctx.progress(step + 1, count, f"step {step + 1}")
    await ctx.artifact("notes.txt", b"done")
    return "all steps"


@job
async def broken(why: str = "no reason") -> None:
    raise LookupError(why)
"""
