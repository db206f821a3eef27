"""A job that never yields is named while it blocks the loop."""

import asyncio
import threading

import pytest
import structlog

from cplane import ControlPlane, CplaneSettings, job
from tests.workers import DEADLINE_S, running

told = threading.Event()


@job(record=False)
async def watchdog_blocks() -> None:
    told.wait(DEADLINE_S)  # as a computation would: the loop stands still until it was noticed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.worker.watchdog.CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr("cplane.worker.watchdog.BLOCKED_S", 0.1)
    told.clear()


async def test_a_job_that_never_yields_is_named_with_the_line_it_stands_at(settings: CplaneSettings) -> None:
    entries: list[structlog.typing.EventDict] = []

    def note(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        entries.append(entry)
        if "event_loop_blocked" in entry["event"] and entry["job"].startswith("watchdog_blocks"):
            told.set()  # a busy machine may hold the loop up elsewhere as well
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    try:
        async with ControlPlane(settings), running(settings), asyncio.timeout(DEADLINE_S):
            handle = await watchdog_blocks.submit()
            await handle.result(DEADLINE_S)
    finally:
        structlog.reset_defaults()
    (blocked,) = [entry for entry in entries if "event_loop_blocked" in entry["event"] and "watchdog" in entry["job"]]
    assert blocked["job"] == f"watchdog_blocks {handle.id}"
    assert "told.wait(DEADLINE_S)" in blocked["at"]
    assert blocked["blocked_s"] >= 0.1
