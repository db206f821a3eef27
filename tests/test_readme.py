"""The README is correct: its programs run unchanged, its settings and links exist, and it is short."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cplane.settings import CplaneSettings
from tests.workers import DEADLINE_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROGRAMS: dict[str, str] = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", README, re.DOTALL))


def environment(settings: CplaneSettings) -> dict[str, str]:
    return {
        **os.environ,
        "CPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
        "CPLANE_REDIS_URL": settings.redis_url.get_secret_value(),
        "CPLANE_ARTIFACTS_URL": settings.artifacts_url,
        "CPLANE_EGRESS_ALLOW": "loopback",
        "CPLANE_IMPORTS": "hello,pages",
    }


async def run(*command: str, env: dict[str, str], cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, env=env, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_S * 2):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


@asynccontextmanager
async def worker(env: dict[str, str], cwd: Path) -> AsyncGenerator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "arq", "cplane.worker.Settings", env=env, cwd=cwd, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(DEADLINE_S * 2):
            await process.wait()


@asynccontextmanager
async def site() -> AsyncGenerator[str]:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<h1>Good morning</h1>")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, code in PROGRAMS.items():
        (tmp_path / name).write_text(code)
    return tmp_path


async def test_the_programs_of_the_readme_print_the_documented_output(settings: CplaneSettings, programs: Path) -> None:
    assert set(PROGRAMS) == {"hello.py", "pages.py"}
    env = environment(settings)
    async with worker(env, programs), site() as url:
        assert await run("hello.py", env=env, cwd=programs) == "3\n"
        assert (
            await run("-m", "cplane", "submit", "headline", f"url={url}", env=env, cwd=programs) == '"Good morning"\n'
        )


@pytest.mark.parametrize("heading", ["Run", "Test"])
def test_the_run_and_test_sections_have_one_command_each(heading: str) -> None:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 1
    assert blocks[0].startswith("$ python3 -m venv ")
    assert blocks[0].count("\n") == 1


def test_the_configuration_table_names_existing_settings() -> None:
    section = README.split("\n## Configuration\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`CPLANE_([A-Z_]+)`", section))
    assert named <= {name.upper() for name in CplaneSettings.model_fields}
    assert named >= {"DATABASE_URL", "REDIS_URL", "IMPORTS", "QUEUES"}


def test_the_readme_is_short_and_its_links_to_docs_exist() -> None:
    assert len(README.splitlines()) <= 100
    for link in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (ROOT / link).is_file(), link


def test_the_hello_world_program_is_short() -> None:
    lines = [line for line in PROGRAMS["hello.py"].splitlines() if line.strip()]
    assert len(lines) <= 11


@asynccontextmanager
async def web(env: dict[str, str], cwd: Path) -> AsyncGenerator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cplane", "web", "--port", str(port), env=env, cwd=cwd, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await listens(port):
                await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
