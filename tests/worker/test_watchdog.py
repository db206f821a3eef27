"""The watchdog logs which job blocks the event loop, while it does so."""

import asyncio
import threading

import pytest
import structlog

from cplane import ControlPlane, CplaneSettings, job
from tests.workers import DEADLINE_S, running

reported = threading.Event()


@job(record=False)
async def watchdog_blocks() -> None:
    reported.wait(DEADLINE_S)  # like a long computation: it blocks the event loop until the watchdog has reported it


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cplane.worker.watchdog.CHECK_INTERVAL_S", 0.02)
    monkeypatch.setattr("cplane.worker.watchdog.BLOCKED_S", 0.1)
    reported.clear()


async def test_a_job_that_blocks_the_event_loop_is_logged_with_its_current_line(settings: CplaneSettings) -> None:
    entries: list[structlog.typing.EventDict] = []

    def capture(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        entries.append(entry)
        if "event_loop_blocked" in entry["event"] and entry["job"].startswith("watchdog_blocks"):
            reported.set()  # a busy machine may block the loop elsewhere too
        raise structlog.DropEvent

    structlog.configure(processors=[capture])
    try:
        async with ControlPlane(settings), running(settings), asyncio.timeout(DEADLINE_S):
            handle = await watchdog_blocks.submit()
            await handle.result(DEADLINE_S)
    finally:
        structlog.reset_defaults()
    (blocked,) = [entry for entry in entries if "event_loop_blocked" in entry["event"] and "watchdog" in entry["job"]]
    assert blocked["job"] == f"watchdog_blocks {handle.id}"
    assert "reported.wait(DEADLINE_S)" in blocked["at"]
    assert blocked["blocked_s"] >= 0.1
