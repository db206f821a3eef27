"""The benchmark suite: counting, verdicts and the generated page."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kit.slots import Slots
from benchmarks.suite.plots import write_report
from benchmarks.suite.requirements import judge
from benchmarks.suite.results import Results, load
from benchmarks.suite.tally import Count, Tally


@pytest.fixture
def tally() -> Iterator[Tally]:
    tally = Tally(10)
    yield tally
    tally.close()


def run(slots: Slots, slot: int) -> None:
    slots.begin(slot)
    slots.end(slot)


async def test_lost_and_doubled_jobs_are_counted(tally: Tally) -> None:
    slots = Slots(tally.path)
    for slot in (0, 1, 1, 3):
        run(slots, slot)
    assert await tally.count_errors(4) == Count(lost=1, doubled=1)


async def test_wait_returns_after_the_last_job(tally: Tally) -> None:
    slots = Slots(tally.path)
    waiting = asyncio.create_task(tally.wait(10))
    for slot in range(10):
        assert not waiting.done()
        run(slots, slot)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await waiting
    assert tally.per_s(10) > 0


async def test_latency_is_measured_from_submit_to_the_first_line(tally: Tally) -> None:
    slots = Slots(tally.path)
    slots.submit(0)
    await asyncio.sleep(0.02)
    slots.begin(0)
    run(slots, 1)  # submitted by another order: has no latency here
    (wait_ms,) = tally.waits_ms(2)
    assert wait_ms >= 20


def test_a_requirement_is_judged_against_the_best_peer() -> None:
    results = Results()
    for system, per_s in (("cplane transient", 30_000.0), ("arq", 1000.0), ("dramatiq", 5000.0)):
        results.add("throughput", "1 worker", system, "jobs/s", per_s)
    wrong, verdict, *_ = judge(results)
    assert (verdict.met, verdict.measured) == (False, "6.00 ×")
    assert (wrong.met, wrong.against) == (True, "0 lost, 0 doubled")
    assert verdict.against == "30,000 jobs/s against dramatiq's 5,000 jobs/s"


def test_a_requirement_that_was_not_measured_has_no_verdict() -> None:
    assert {verdict.met for verdict in judge(Results())} == {None}


def test_a_saved_run_generates_the_page(tmp_path: Path) -> None:
    results = Results({"arguments": "--quick"})
    results.add("throughput", "1 worker", "cplane recorded", "jobs/s", 4000, count=Count(0, 0))
    results.skip("throughput", "1 worker", "arq", "not there")
    results.add("scale", "1,000 queued, throughput", "cplane recorded", "jobs/s", 4000)
    results.add("scale", "1,000,000 queued, throughput", "cplane recorded", "jobs/s", 3900)
    results.save(tmp_path / "run.json")
    (tmp_path / "docs").mkdir()
    written = [path.name for path in write_report(load(tmp_path / "run.json"), tmp_path / "docs")]
    page = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert written == ["benchmarks-throughput.svg", "benchmarks-queued.svg", "benchmarks.md"]
    assert "python benchmarks/peers.py --quick" in page
    assert "| 1 worker | arq | n/a |" in page
    assert "0.97 ×" in page
