"""The checks for every engine, run with Chromium; and how the process of an engine without DevTools is found."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from cplane.browser import BrowserPool, BrowserSource, Engine
from cplane.browser.engine.process import Process, family
from cplane.errors import BrowserGone, BrowserNotFound
from tests.browser.engines import CHECKS, Check
from tests.browser.pools import until

STARTS_CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_chromium_passes_the_checks_for_every_engine(check: Check, site: str) -> None:
    await check(BrowserSource(), site)


async def test_a_process_is_found_by_a_variable_and_its_descendants_by_the_process() -> None:
    variable = f"CPLANE_TEST_ID={uuid4().hex}"
    name, _, value = variable.partition("=")
    environment = {**os.environ, name: value}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTS_CHILD, env=environment, start_new_session=True
    )
    try:
        await until(lambda: len(family(started.pid)) == 2)
        found = Process.find_by_variable(variable)
        assert found is not None
        assert found.pid == started.pid
        assert Process.find_by_variable(f"{name}={uuid4().hex}") is None
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        await started.wait()


async def test_a_program_that_is_not_firefox_does_not_start(tmp_path: Path) -> None:
    program = tmp_path / "firefox"
    program.write_text("#!/bin/sh\necho 'no display today' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(BrowserGone, match=r"firefox did not start: "):
        await BrowserPool(source=BrowserSource(engine=Engine.FIREFOX, executable=program)).__aenter__()


@pytest.mark.parametrize("engine", [*Engine])
async def test_the_error_names_an_executable_that_is_not_a_program(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(BrowserNotFound, match=rf"{tmp_path}/none, which is not a program .*correct or unset it"):
        await BrowserPool(source=BrowserSource(engine=engine, executable=tmp_path / "none")).__aenter__()
