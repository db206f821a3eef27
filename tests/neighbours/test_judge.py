"""The judge: who could have started earlier, and who ran twice without a reason."""

from uuid import UUID

import pytest

from tests.neighbours.cluster import Process
from tests.neighbours.judge import Attempt, Slots, ran_twice

FOREVER = float("inf")
TWO_SLOTS = {"default": 2}


def attempt(number: int, started: float, finished: float, *, worker: str = "a", created: float = 0.0) -> Attempt:
    return Attempt(
        job_id=UUID(int=number), attempt=1, worker=worker, state="succeeded", error_type=None, error_message=None,
        job=f"job {number}", queue="default", crashes=0, failures=0, created=created, started=started, finished=finished,
    )  # fmt: skip


def late(*attempts: Attempt, processes: list[Process], blockers: list[int] | None = None) -> list[float]:
    own = {each.job_id: [each] for each in attempts}
    found = Slots(own, processes, [UUID(int=number) for number in blockers or []], TWO_SLOTS).late()
    return [found[each.job_id] for each in attempts]


def serving(name: str = "a", since: float = 0.0, until: float = FOREVER) -> Process:
    return Process(name, 1, since, until, died=until < FOREVER)


def test_a_job_that_waits_while_all_slots_are_taken_is_not_late() -> None:
    assert late(attempt(1, 0, 9), attempt(2, 0, 8), attempt(3, 8, 9), processes=[serving()]) == [0, 0, 0]


def test_a_job_that_waits_while_a_slot_is_free_is_late() -> None:
    assert late(attempt(1, 0, 9), attempt(2, 6, 9), processes=[serving()]) == [0, 6]


def test_a_free_slot_is_for_the_job_that_waited_first() -> None:
    first, second = attempt(2, 5, 9), attempt(3, 5, 9, created=0.5)
    assert late(attempt(1, 0, 5), first, second, processes=[serving()]) == [0, 5, 0]


def test_a_slot_of_a_process_that_has_died_or_not_started_is_not_free() -> None:
    processes = [serving("a", until=2), serving("b", since=7)]
    assert late(attempt(1, 8, 9, worker="b"), processes=processes) == [pytest.approx(2 + 1)]


def test_a_slot_of_a_blocked_process_is_not_free_and_one_of_its_neighbour_is() -> None:
    blocking, waiting = attempt(1, 0, 6), attempt(2, 6, 7, worker="b")
    assert late(blocking, waiting, processes=[serving()], blockers=[1]) == [0, 0]
    assert late(blocking, waiting, processes=[serving(), serving("b")], blockers=[1]) == [0, 6]


def test_an_attempt_is_held_up_only_while_its_process_is_not_blocked() -> None:
    own = {UUID(int=number): [attempt(number, 0, 9)] for number in (1, 2)}
    slots = Slots(own, [serving()], [UUID(int=1)], TWO_SLOTS)
    assert slots.held_up_s(attempt(2, 1, 12), 11) == 2


def test_a_job_may_run_twice_only_where_its_process_died() -> None:
    again = [attempt(1, 0, 1), attempt(1, 2, 3)]
    assert ran_twice(again, set()) == "attempt 1 on a: succeeded, None"
    assert ran_twice(again, {"a"}) == "attempt 1 was succeeded, not interrupted"
    assert ran_twice(again[:1], set()) == ""
