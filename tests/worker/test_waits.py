"""Waits of jobs for jobs: a queue whose slots are all held by them is named in the log, once a minute."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from cplane import ControlPlane, CplaneSettings, job
from cplane.runtime.waiting import FOLLOWED, announced_wait
from cplane.worker import waits
from cplane.worker.slots import JobBudget, Slots
from tests.workers import DEADLINE_S, running


@job
async def waits_child() -> None:
    """End at once."""


@job
async def waits_parent() -> None:
    child = await waits_child.submit()
    await child.result(DEADLINE_S)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "WARN_AFTER_S", 0.0)


class Parents:
    """Jobs of a queue with two slots, each of which waits for jobs until `done` is set."""

    def __init__(self) -> None:
        self.slots = Slots(2, JobBudget(None))
        self.done = asyncio.Event()
        self.attempts: list[Any] = []

    async def run(self, name: str, *, children: int = 1) -> None:
        """Run one."""
        reserved = self.slots.reserve(1)
        slot = reserved.take()
        attempt: Any = type("Parent", (SimpleNamespace,), {"__hash__": object.__hash__})(
            slot=slot, job=SimpleNamespace(name=name), lease=SimpleNamespace(queue="default", id=f"id-of-{name}")
        )
        self.attempts.append(attempt)
        FOLLOWED.set((self.slots.waits, attempt))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(children):
                    group.create_task(self.wait(), name="wait for a child")
        finally:
            slot.release()

    async def wait(self) -> None:
        """Wait for a child."""
        with announced_wait():
            await self.done.wait()


async def logged(parents: Parents, *jobs: Any, times: int = 1) -> list[Any]:
    with structlog.testing.capture_logs() as lines:
        async with asyncio.TaskGroup() as group:
            for number, job in enumerate(jobs):
                group.create_task(job, name=f"parent {number}")
            for _ in range(10 * times):
                await asyncio.sleep(0.001)
            parents.done.set()
    return lines


async def test_a_queue_is_named_when_all_of_its_slots_are_held_by_jobs_that_wait_for_jobs() -> None:
    parents = Parents()
    [line] = await logged(parents, parents.run("one"), parents.run("other"))
    assert (line["event"], line["log_level"], line["queue"]) == ("slots_held_by_waits", "warning", "default")
    assert line["jobs"] == "one id-of-one, other id-of-other"
    assert "queue of their own" in line["hint"]


async def test_it_is_repeated_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "WARN_AGAIN_AFTER_S", 0.001)
    parents = Parents()
    assert len(await logged(parents, parents.run("one"), parents.run("other"), times=3)) > 1


async def test_one_job_that_waits_for_several_holds_one_slot() -> None:
    parents = Parents()
    assert await logged(parents, parents.run("one", children=3)) == []


async def test_a_job_whose_slot_is_vacated_holds_none() -> None:
    parents = Parents()

    async def vacate() -> None:
        parents.attempts[0].slot.vacate()

    assert await logged(parents, parents.run("one"), parents.run("other"), vacate()) == []


async def test_a_wait_outside_of_an_attempt_is_not_counted() -> None:
    assert FOLLOWED.get() is None
    with announced_wait():
        pass


async def test_a_worker_names_the_job_that_waits_in_its_only_slot_for_its_child(
    settings: CplaneSettings, plane: ControlPlane
) -> None:
    settings = settings.model_copy(update={"queues": {"default": 1}})
    with structlog.testing.capture_logs() as lines:
        async with running(settings):
            parent = await waits_parent.submit()
            async with asyncio.timeout(DEADLINE_S):
                while not (found := [line for line in lines if line["event"] == "slots_held_by_waits"]):
                    await asyncio.sleep(0.01)
            await parent.cancel()
    assert found[0]["jobs"] == f"waits_parent {parent.id}"
