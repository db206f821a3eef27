"""A short version of the long run: it runs, ends and judges."""

import asyncio
import sys

import pytest

from tests.chaos.nursery import ROOT


@pytest.mark.timeout(300)  # it starts its own Postgres, which is slow on a busy machine
async def test_the_long_run_prints_its_verdict() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos", "--jobs", "40", "--minutes", "0.08", "--seed", "3", "--final", "60",
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    assert "seed 3: no violation; " in printed.decode().splitlines()[-1]
