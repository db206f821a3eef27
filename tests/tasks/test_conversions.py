"""Conversions of pages run in processes of the worker, which a hostile page cannot keep."""

import asyncio
import time
from collections.abc import AsyncGenerator
from importlib import import_module

import pytest

from cplane import ControlPlane, CplaneSettings, JobFailed, State
from cplane.errors import MemoryLimitExceeded
from cplane.runtime.html_to_markdown import to_markdown
from cplane.runtime.offload import RemoteError, run_blocking
from cplane.tasks import markdown
from cplane.worker.process_pool import ProcessPool
from tests.pages import hostile, page, serve
from tests.workers import DEADLINE_S, running

PAGE = "<title>Here</title><h1>News</h1><p>at <b>last</b></p>"


@pytest.fixture
async def site() -> AsyncGenerator[str]:
    async with serve(lambda path: page(hostile() if path == "/hostile" else PAGE)) as url:
        yield url


async def test_a_conversion_that_takes_too_long_fails_its_job_alone(
    settings: CplaneSettings, plane: ControlPlane, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("cplane.tasks.markdown"), "CONVERSION_TIMEOUT_S", 1.0)
    async with running(settings, pages=True):
        hostile = await markdown.submit(url=f"{site}/hostile")
        assert (
            await (await markdown.submit(url=f"{site}/page")).result(DEADLINE_S)
        ).markdown == "# News\n\nat **last**\n"
        with pytest.raises(JobFailed, match=r"/hostile could not be converted within 3 s") as caught:
            await hostile.result(DEADLINE_S)
        assert caught.value.error_type == "cplane.tasks.visit.TooComplex"
        assert (await (await markdown.submit(url=f"{site}/page")).result(DEADLINE_S)).title == "Here"


async def test_a_conversion_does_not_keep_a_worker_from_stopping(
    settings: CplaneSettings, plane: ControlPlane, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.Event()
    call = ProcessPool.call

    async def call_and_tell(self: ProcessPool, *args: object) -> object:
        began.set()
        return await call(self, *args)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ProcessPool, "call", call_and_tell)
    async with running(settings.model_copy(update={"drain_s": 0.0}), pages=True):
        handle = await markdown.submit(url=f"{site}/hostile")
        await began.wait()
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 10
    assert await plane.state(handle.id) is State.QUEUED


async def test_what_a_function_raises_in_a_process_is_described() -> None:
    async with ProcessPool([]) as pool:
        assert await pool.call(to_markdown, ("<b>x</b>",), DEADLINE_S) == "**x**"
        with pytest.raises(RemoteError, match="RecursionError") as caught:
            await pool.call(to_markdown, ("<div>" * 5000,), DEADLINE_S)
        assert caught.value.retry_in_s is None, "the same page would only raise it again"
        with pytest.raises(TimeoutError):
            await pool.call(time.sleep, (3600,), 0.1)
        with pytest.raises(RemoteError) as exceeded:
            await pool.call(bytearray, (2 * 1024**3,), DEADLINE_S)
        assert (exceeded.value.type, exceeded.value.message) == (
            MemoryLimitExceeded.__name__,
            "its process needed more than 1024 MiB of memory",
        )


async def test_outside_of_a_worker_a_conversion_runs_in_a_thread() -> None:
    assert await run_blocking(to_markdown, "<b>x</b>", timeout_s=DEADLINE_S) == "**x**"
    with pytest.raises(TimeoutError):
        await run_blocking(time.sleep, 0.3, timeout_s=0.01)
