"""Programs that tests run as processes, judged by what they print."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from cplane.settings import CplaneSettings
from tests.workers import DEADLINE_S


def environment(settings: CplaneSettings, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "CPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
        "CPLANE_REDIS_URL": settings.redis_url.get_secret_value(),
        "CPLANE_ARTIFACTS_URL": settings.artifacts_url,
        "CPLANE_EGRESS_ALLOW": "loopback",
        **more,
    }


async def output_of(*command: str, env: Mapping[str, str], cwd: Path) -> str:
    """What `python command…` prints, which has to succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=env, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(DEADLINE_S * 2):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@asynccontextmanager
async def running_until_here(*command: str, says: str, env: Mapping[str, str], cwd: Path) -> AsyncGenerator[str]:
    """`python command…`; yields the first line with `says` that it writes to stderr. SIGTERM ends it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=env, cwd=cwd, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    read: list[str] = []
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (read and says in read[-1]):
                read.append((await process.stderr.readline()).decode())
                assert read[-1], "".join(read)
        rest = asyncio.create_task(process.stderr.read(), name="read what the process writes")
        yield read[-1]
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await rest
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def worker(env: Mapping[str, str], cwd: Path) -> AsyncGenerator[None]:
    """`arq cplane.worker.Settings`, once it has started."""
    async with running_until_here("-m", "arq", "cplane.worker.Settings", says="worker_started", env=env, cwd=cwd):
        yield
