"""Verdicts: a crash is billed to who caused it, and to nobody else."""

import signal

import pytest

from cplane.keeper.blame import Death, Verdict, explain, judge
from cplane.keeper.manifest import Entry
from tests.keeper.test_manifest import entry

ASYNC = entry(1)
OTHER = entry(2)
THREAD = entry(3, in_thread=True)

EXIT = 3
SEGFAULT = -int(signal.SIGSEGV)
KILL = -int(signal.SIGKILL)


def verdicts(entries: list[Entry], death: Death) -> list[str]:
    return list(judge(entries, death).values())


@pytest.mark.parametrize("code", [EXIT, 0, SEGFAULT, -int(signal.SIGABRT)])
def test_who_ran_when_its_own_code_ended_the_process_is_guilty(code: int) -> None:
    assert verdicts([ASYNC, OTHER], Death(code, step=1)) == ["crash", "innocent"]
    assert verdicts([OTHER, THREAD], Death(code, step=0)) == ["innocent", "crash"]


@pytest.mark.parametrize("code", [EXIT, SEGFAULT])
def test_nobody_is_guilty_if_several_ran(code: int) -> None:
    assert verdicts([ASYNC, THREAD], Death(code, step=1)) == ["unknown", "unknown"]
    assert verdicts([ASYNC, OTHER], Death(code, step=0)) == ["unknown", "unknown"]


def test_a_kill_from_outside_blames_nobody() -> None:
    assert verdicts([ASYNC, OTHER], Death(KILL, step=1)) == ["unknown", "unknown"]


def test_who_was_alone_is_guilty_of_any_end() -> None:
    assert verdicts([ASYNC], Death(KILL, step=0)) == ["crash"]


def test_a_step_of_an_attempt_that_is_not_aboard_blames_nobody() -> None:
    assert verdicts([ASYNC, OTHER], Death(EXIT, step=99)) == ["unknown", "unknown"]


def test_who_held_the_process_past_its_timeout_pays_a_retry() -> None:
    death = Death(KILL, step=1, blamed=1, killed_for="it was slow", timed_out=True)
    assert verdicts([ASYNC, OTHER], death) == ["timed_out", "innocent"]
    assert verdicts([entry(1, retries_left=0), OTHER], death) == ["gave_up", "innocent"]
    assert verdicts([entry(1, recorded=False), OTHER], death) == ["crash", "innocent"]


def test_a_process_that_was_to_stop_releases_what_was_aboard() -> None:
    assert verdicts([ASYNC, OTHER], Death(KILL, step=0, stopping=True)) == ["released", "released"]
    assert verdicts([ASYNC], Death(KILL, step=0, stopping=True)) == ["released"]
    guilty = Death(KILL, step=1, blamed=1, killed_for="it hung", stopping=True)
    assert verdicts([ASYNC, OTHER], guilty) == ["crash", "innocent"]


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (Death(3, 0), "exited with code 3"),
        (Death(SEGFAULT, 0), "was killed by SIGSEGV"),
        (Death(-99, 0), "was killed by signal 99"),
        (Death(KILL, 0, killed_for="it hung"), "was killed: it hung"),
    ],
)
def test_the_end_of_a_process_is_described(death: Death, text: str) -> None:
    assert death.described == text
    assert text in explain(ASYNC, Verdict.UNKNOWN, death, "")[1]


def test_errors_name_the_guilty_job() -> None:
    death = Death(EXIT, step=1)
    assert explain(ASYNC, Verdict.CRASH, death, "j") == (
        "WorkerLost", "its worker process exited with code 3, while 'j' was running"
    )  # fmt: skip
    assert explain(OTHER, Verdict.INNOCENT, death, "j") == (
        "WorkerLost", "its worker process exited with code 3, because of 'j' beside it"
    )  # fmt: skip
    held = Death(KILL, step=1, blamed=1, killed_for="'j' held the event loop for 9 s", timed_out=True)
    assert explain(ASYNC, Verdict.GAVE_UP, held, "j") == ("JobTimeout", "'j' held the event loop for 9 s")
