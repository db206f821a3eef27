"""The driver's process is gone when the driver was stopped, however slowly it starts."""

import asyncio
from collections.abc import Callable

import pytest

from cplane.browser.engine import driver as module
from cplane.browser.engine.driver import Driver


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
async def test_a_driver_that_does_not_start_in_time_is_killed(
    descendants: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> None:
    before = descendants()
    monkeypatch.setattr(module, "STOP_TIMEOUT_S", 0.01)  # less than any start takes
    driver = Driver()
    starting = asyncio.create_task(driver.start(), name="start a driver")
    await asyncio.wait([starting], timeout=delay_s)
    starting.cancel()
    await driver.stop()
    async with asyncio.timeout(5):
        while not descendants() <= before:
            await asyncio.sleep(0.01)
