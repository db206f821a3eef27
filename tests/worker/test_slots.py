"""Slots of a queue: claims reserve them, attempts take them over, outcomes release them; none is counted twice."""

import asyncio

import pytest

from cplane.worker.slots import MAX_UNRECORDED, JobBudget, Slot, Slots


def slots(concurrency: int = 4, limit: int | None = None) -> Slots:
    return Slots(concurrency, JobBudget(limit))


def test_a_reservation_occupies_slots_and_keeps_one_per_claimed_job() -> None:
    queue = slots()
    reserved = queue.reserve(3)
    assert (len(reserved), queue.free) == (3, 1)
    reserved.claimed(2)
    assert (len(reserved), queue.free) == (2, 2)


def test_leaving_the_block_releases_slots_that_no_attempt_took_over() -> None:
    queue = slots()
    with queue.reserve(3) as reserved:
        reserved.claimed(3)
        slot = reserved.take()
        reserved.release(1)
        assert queue.free == 2
    assert queue.free == 3, "one slot belongs to the attempt"
    slot.release()
    assert queue.free == 4


def test_an_error_in_the_block_releases_slots_that_no_attempt_took_over() -> None:
    queue = slots()

    def start() -> None:
        with queue.reserve(4) as reserved:
            reserved.claimed(4)
            reserved.take().vacate()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        start()
    assert queue.free == 4


def test_vacating_or_releasing_a_slot_again_has_no_effect() -> None:
    queue = slots(1)
    reserved = queue.reserve(1)
    slot = reserved.take()
    assert queue.free == 0
    slot.vacate()
    slot.vacate()
    assert queue.free == 1
    slot.release()
    assert queue.free == 1


def test_no_slot_is_free_while_too_many_outcomes_wait_to_be_recorded() -> None:
    queue = slots(2)
    waiting: list[Slot] = []
    for _ in range(MAX_UNRECORDED + 2):
        slot = queue.reserve(1).take()
        slot.vacate()
        waiting.append(slot)
    assert queue.free == 0, "all slots are vacant, but no outcome is recorded yet"
    waiting.pop().release()
    assert queue.free == 1


async def test_releasing_a_slot_wakes_a_waiting_claimer() -> None:
    queue = slots(1)
    slot = queue.reserve(1).take()
    queue.expect_free()
    waiting = asyncio.create_task(queue.wait_freed())
    await asyncio.sleep(0)
    assert not waiting.done()
    slot.release()
    await asyncio.wait_for(waiting, 5)


def test_the_job_budget_limits_claims_across_queues() -> None:
    budget = JobBudget(3)
    one, other = Slots(10, budget), Slots(10, budget)
    first = one.reserve(2)
    second = other.reserve(5)
    assert (len(first), len(second)) == (2, 1)
    first.claimed(1)  # one job fewer than reserved: another queue may use the rest of the budget
    second.claimed(1)
    third = other.reserve(5)
    assert len(third) == 1
    assert not one.spent
    third.claimed(1)
    assert one.spent
    assert other.spent


def test_a_claimed_job_that_is_not_started_is_returned_to_the_budget() -> None:
    queue = slots(limit=1)
    with queue.reserve(1) as reserved:
        reserved.claimed(1)
        assert queue.spent
        reserved.put_back(1)
    assert not queue.spent
    assert (queue.free, len(queue.reserve(4))) == (4, 1)
