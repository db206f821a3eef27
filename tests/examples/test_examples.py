"""Every program of `examples/` runs as its docstring says, beside a worker that knows its jobs."""

import ast
import asyncio
import re
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from sqlmodel import text

from cplane import ControlPlane, CplaneSettings
from tests.programs import environment, output_of, running_until_here, worker
from tests.workers import DEADLINE_S

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
PAGE = b"<!doctype html><title>Good morning</title><body style='margin: 0; height: 2000px'>"


@asynccontextmanager
async def site() -> AsyncGenerator[str]:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n" + PAGE)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


class Clone:
    """A folder in which the commands of the docstrings run as in a clone, with the servers of this test."""

    def __init__(self, settings: CplaneSettings, folder: Path) -> None:
        (folder / "examples").symlink_to(EXAMPLES)
        self.folder = folder
        self._settings = settings

    def env(self, program: str) -> dict[str, str]:
        return environment(self._settings, CPLANE_IMPORTS=program, PYTHONPATH=str(EXAMPLES))

    @asynccontextmanager
    async def worker_of(self, program: str, queue: str) -> AsyncGenerator[None]:
        async with worker({**self.env(program), "CPLANE_QUEUES": f"{queue}:4"}, self.folder):
            yield

    async def run(self, program: str, *arguments: str) -> list[str]:
        """The lines that the program prints."""
        output = await output_of(f"examples/{program}.py", *arguments, env=self.env(program), cwd=self.folder)
        return output.splitlines()


@pytest.fixture
def clone(settings: CplaneSettings, tmp_path: Path) -> Clone:
    return Clone(settings, tmp_path)


def test_every_example_has_a_test() -> None:
    assert PROGRAMS
    assert [program for program in PROGRAMS if f"test_{program}" not in globals()] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_docstring_says_what_it_shows_and_the_two_commands(program: str) -> None:
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{program}.py").read_text())) or ""
    commands = re.findall(r"^    \$ (.+)$", docstring, re.MULTILINE)
    assert commands[0] == f"cplane dev examples/{program}.py"
    assert re.match(rf"python examples/{program}\.py|uvicorn .* {program}:app", commands[1])


def test_the_table_names_every_example() -> None:
    named = re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_takes_public_names_only(program: str) -> None:
    tree = ast.parse((EXAMPLES / f"{program}.py").read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {module for module in imports if module.partition(".")[0] == "cplane"} <= {"cplane", "cplane.errors"}


async def test_hello(clone: Clone) -> None:
    async with clone.worker_of("hello", "default"):
        assert await clone.run("hello") == ["Good morning, Ada", "3"]


async def test_plain_script(clone: Clone) -> None:
    async with clone.worker_of("plain_script", "default"):
        assert await clone.run("plain_script", "100") == [
            "98 succeeded, of which 25 are primes",
            "2 failed; the first: 0 has no prime factors",
        ]


async def test_screenshot_service(clone: Clone) -> None:
    async with clone.worker_of("screenshot_service", "browser"), site() as url:
        refused, saved = sorted(await clone.run("screenshot_service", url, "http://10.0.0.1/"))
    assert refused.startswith("http://10.0.0.1/: EgressBlocked: 10.0.0.1:80 was not reached")
    (path,) = (clone.folder / "screenshots").iterdir()
    image = path.read_bytes()
    assert saved == f"{url}: 'Good morning', {len(image)} bytes in screenshots/{path.name}"
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">II", image[16:24]) == (1280, 2000)


async def test_politeness_crawl(clone: Clone) -> None:
    async with clone.worker_of("politeness_crawl", "browser"):
        *pages, summary = await clone.run("politeness_crawl")
    assert [page.rpartition("/")[2] for page in pages] == ["", *"123456"]
    found = re.fullmatch(r"7 pages in (\d+\.\d) s", summary)
    assert found
    assert float(found[1]) >= 6 / 5.0, "seven starts at five a second"


async def test_retries_and_idempotency(clone: Clone, plane: ControlPlane) -> None:
    async with clone.worker_of("retries_and_idempotency", "default"):
        first, second = [await clone.run("retries_and_idempotency") for _ in range(2)]
    assert re.sub(r"charge-[0-9a-f]{8}", "CHARGE", "\n".join(first)).splitlines() == [
        "one job: True; created by the second submission: False",
        "paid by CHARGE in 2 attempts",
        "order-17 is shipped, paid by CHARGE",
        "declined in 1 attempt: the limit of the card is 1000.00",
    ]
    assert second == first
    async with plane.database.session() as session:
        rows = await (await session.connection()).execute(text("SELECT order_id, charge FROM payment"))
        assert [f"{order_id} is shipped, paid by {charge}" for order_id, charge in rows] == [first[2]]


async def test_fastapi_app(clone: Clone) -> None:
    uvicorn = ("-m", "uvicorn", "--app-dir", "examples", "--port", "0", "fastapi_app:app")
    async with (
        clone.worker_of("fastapi_app", "browser"),
        running_until_here(*uvicorn, says="running on", env=clone.env("fastapi_app"), cwd=clone.folder) as line,
        httpx2.AsyncClient(base_url=line.partition(" on ")[2].split()[0], timeout=DEADLINE_S) as client,
        site() as url,
    ):
        accepted, repeated = [
            await client.post("/titles", json={"url": url}, headers={"idempotency-key": "morning"}) for _ in range(2)
        ]
        assert (accepted.status_code, accepted.json()["title"]) == (202, None)
        assert repeated.json()["id"] == accepted.json()["id"]
        answer = await client.get(accepted.headers["location"], params={"wait": 30})
        assert answer.json() == {
            "id": accepted.json()["id"], "state": "succeeded", "title": "Good morning", "error": None,
        }  # fmt: skip
        assert (await client.get("/titles/018f0000-0000-7000-8000-000000000000")).status_code == 404
        assert (await client.post("/titles", json={"url": "no URL"})).status_code == 422
        refused = await client.post("/titles", json={"url": "http://10.0.0.1/"})
        failed = (await client.get(refused.headers["location"], params={"wait": 30})).json()
        assert failed["state"] == "failed"
        assert failed["error"].startswith("10.0.0.1:80 was not reached")
