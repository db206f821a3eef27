"""The examples in the docstrings of the public names run as they are, against real servers and a worker."""

import ast
import asyncio
import inspect
import re
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable
from types import ModuleType
from typing import cast

import pytest
import pytest_asyncio

import cplane
from cplane.jobs.registry import registry
from cplane.runtime.cancellation import cancel_all
from cplane.settings import CplaneSettings
from tests.workers import DEADLINE_S, running

DOORS = (
    "BrowserPool.page",
    "Context",
    "ControlPlane",
    "Handle",
    "Job.submit",
    "Job.submit_many",
    "Job.using",
    "PageOptions",
    "PerHost",
    "RetryPolicy",
    "job",
)
"""Public names whose docstrings must have an example."""

SITE = "https://example.com/"
"""URL in the examples; the tests replace it by a page on loopback."""

BLOCK = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def examples(door: str) -> list[str]:
    """Return the code blocks in the docstring of a public name."""
    named: object = cplane
    for name in door.split("."):
        named = getattr(named, name)
    return [textwrap.dedent(block) for block in BLOCK.findall(inspect.getdoc(named) or "")]


def needs_page(source: str) -> bool:
    """Return whether a code block submits a job that a page is injected into."""
    return "page: Page" in source


async def run(module: ModuleType, source: str, name: str) -> None:
    """Run a code block as a module; it may await at its top level, as in `python -m asyncio`."""
    outcome: object = eval(compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), vars(module))
    if inspect.isawaitable(outcome):  # the block awaits at its top level
        await cast("Awaitable[None]", outcome)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[str]:
    """Serve a page on loopback; return its URL."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n"
            b"<title>Example Domain</title><h1>Example Domain</h1>"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, settings: CplaneSettings) -> ModuleType:
    """Return an empty module for one example; the settings are in the environment, its jobs are removed afterwards."""
    monkeypatch.setenv("CPLANE_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("CPLANE_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("CPLANE_ARTIFACTS_URL", settings.artifacts_url)
    monkeypatch.setattr(registry, "jobs", dict(registry.jobs))
    module = ModuleType("docstring_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("door", DOORS)
def test_every_door_has_an_example(door: str) -> None:
    assert examples(door), f"the docstring of {door} has no ```python block"


@pytest.mark.parametrize("door", DOORS)
async def test_the_examples_of_a_door_run(door: str, example: ModuleType, settings: CplaneSettings, site: str) -> None:
    for number, source in enumerate(examples(door), 1):
        run_example = run(example, source.replace(SITE, site), f"<example {number} of {door}>")
        task = asyncio.create_task(run_example, name=f"example of {door}")
        try:
            await asyncio.sleep(0)  # its jobs are registered now: a worker opens pages only for jobs that it knows
            async with running(settings, pages=needs_page(source), deadline_s=2 * DEADLINE_S):
                await task
        finally:
            await cancel_all([task])


def test_public_names_have_docstrings() -> None:
    undocumented = [name for name in cplane.__all__ if not inspect.getdoc(getattr(cplane, name))]
    assert not undocumented


def test_examples_use_no_host_but_the_one_that_tests_replace() -> None:
    urls = {url for door in DOORS for source in examples(door) for url in re.findall(r"https?://[^/\s\"']+/", source)}
    assert urls <= {SITE}
