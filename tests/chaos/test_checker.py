"""Each rule of the checker, on handwritten histories: some that keep it and some that break it."""

from dataclasses import replace

import pytest

from tests.chaos.checker import RULES, Bounds, check
from tests.chaos.history import (
    Accepted,
    AttemptOutcome,
    Command,
    Exit,
    Fault,
    FaultKind,
    History,
    Move,
    Record,
    Run,
    Start,
    Submit,
    Transient,
)

BOUNDS = Bounds(lease_s=2.0, restart_s=5.0)

SUBMIT = Submit(tag="t", job="chaos_ok", at=100.0, record="r")
RUN = Run(record="r", attempt=1, pid=7, began=100.1, ended=100.2)
SECOND_RUN = Run(record="r", attempt=2, pid=8, began=104.0, ended=104.1)
RECORD = Record(id="r", tag="t", job="chaos_ok", state="succeeded", attempt=1, result_attempt=1)
FIRST = AttemptOutcome(record="r", attempt=1, cause="submit", state="succeeded")
SECOND = AttemptOutcome(record="r", attempt=2, cause="lost", state="succeeded")
KILL = Fault(kind=FaultKind.KILL, began=101.0, ended=101.0, pid=7)


def move(old: str | None, new: str, attempt: int = 0, cause: str = "submit") -> Move:
    return Move(record="r", old=old, new=new, attempt=attempt, cause=cause)


STARTED = (move(None, "queued"), move("queued", "running", 1))

QUIET = History(
    submits=(SUBMIT,),
    runs=(RUN,),
    moves=(*STARTED, move("running", "succeeded", 1)),
    accepted=(Accepted(record="r", attempt=1, state="succeeded"),),
    records=(RECORD,),
    attempts=(FIRST,),
)
"""One job that ran once."""

KILLED = History(
    submits=(SUBMIT,),
    runs=(replace(RUN, began=100.5, ended=None), SECOND_RUN),
    faults=(KILL,),
    moves=(
        *STARTED,
        move("running", "queued", 1, "lost"),
        move("queued", "running", 2, "lost"),
        move("running", "succeeded", 2, "lost"),
    ),
    accepted=(Accepted(record="r", attempt=2, state="succeeded"),),
    records=(replace(RECORD, attempt=2, result_attempt=2, crashes=1),),
    attempts=(replace(FIRST, state="lost"), SECOND),
    exits=(Exit(pid=7, at=101.0),),
)
"""One job whose first worker was killed."""

REPLAY = Command(record="r", verb="replay", at=103.0, state="queued")
CANCEL = Command(record="r", verb="cancel", at=100.0, state="cancelled")
PARTITION = Fault(kind=FaultKind.PARTITION, began=101.0, ended=103.0, pid=None)
WRITES = replace(RECORD, job="chaos_writes")
REPLAYED = History(
    runs=(RUN, SECOND_RUN),
    moves=(
        *STARTED,
        move("running", "failed", 1),
        move("failed", "queued", 1, "replay"),
        move("queued", "running", 2, "replay"),
        move("running", "succeeded", 2, "replay"),
    ),
    accepted=(Accepted(record="r", attempt=1, state="failed"), Accepted(record="r", attempt=2, state="succeeded")),
    commands=(REPLAY,),
    records=(replace(RECORD, attempt=2, result_attempt=2),),
    attempts=(replace(FIRST, state="failed"), replace(SECOND, cause="replay")),
)

TRANSIENT = History(
    transients=(Transient(id="t", at=100.0, state="succeeded"),),
    transient_runs=(replace(KILLED.runs[0], record="t"), replace(SECOND_RUN, record="t")),
    faults=(KILL,),
)
"""A transient job whose first worker was killed."""

BROKEN: list[tuple[str, History]] = [
    ("accepted is final", replace(QUIET, records=(), attempts=(FIRST,))),
    ("accepted is final", replace(QUIET, records=(replace(RECORD, state="queued"),))),
    ("accepted is final", replace(QUIET, records=(replace(RECORD, state="running"),))),
    ("runs once", replace(QUIET, runs=(RUN, replace(RUN, pid=8)))),
    ("runs alone", replace(KILLED, runs=(replace(RUN, ended=104.05), SECOND_RUN), faults=())),
    ("runs alone", replace(KILLED, runs=(replace(RUN, ended=None), SECOND_RUN), faults=(replace(KILL, pid=8),))),
    ("runs alone", replace(KILLED, runs=(replace(RUN, ended=104.05), SECOND_RUN), faults=(PARTITION,))),
    (
        "runs alone",
        replace(KILLED, runs=(replace(RUN, ended=109.5), SECOND_RUN), faults=(PARTITION,), records=(WRITES,)),
    ),
    (
        "runs alone",
        replace(KILLED, runs=(replace(RUN, ended=None), SECOND_RUN), faults=(PARTITION,), records=(WRITES,)),
    ),
    ("one finish", replace(KILLED, accepted=(*QUIET.accepted, *KILLED.accepted))),
    ("one finish", replace(QUIET, accepted=KILLED.accepted)),
    ("one finish", replace(KILLED, records=(replace(KILLED.records[0], result_attempt=1),))),
    ("one finish", replace(REPLAYED, commands=())),
    ("moves are legal", replace(QUIET, moves=(*QUIET.moves, move("succeeded", "succeeded", 1)))),
    ("moves are legal", replace(QUIET, moves=(*QUIET.moves, move("succeeded", "queued", 1, "replay")))),
    ("moves are legal", replace(QUIET, moves=(*QUIET.moves, move("succeeded", "running", 2)))),
    ("moves are legal", replace(QUIET, moves=(move(None, "queued"), move("queued", "succeeded")))),
    ("moves are legal", replace(QUIET, moves=(move(None, "queued"), move("queued", "running")))),
    ("moves are legal", replace(QUIET, moves=(move(None, "queued"), move("queued", "running", 2)))),
    ("moves are legal", replace(KILLED, moves=(*KILLED.moves[:2], move("running", "succeeded", 2)))),
    ("moves are legal", replace(REPLAYED, commands=())),
    ("attempts are told", replace(QUIET, attempts=())),
    ("attempts are told", replace(KILLED, attempts=(SECOND,))),
    ("attempts are told", replace(QUIET, attempts=(replace(FIRST, state="running"),))),
    ("attempts are told", replace(QUIET, runs=(RUN, SECOND_RUN))),
    ("attempts are explained", replace(KILLED, faults=())),
    ("attempts are explained", replace(KILLED, faults=(replace(KILL, began=99.0, ended=99.0),))),
    ("attempts are explained", replace(KILLED, faults=(replace(KILL, began=105.0, ended=105.0),))),
    ("attempts are explained", replace(KILLED, faults=(replace(KILL, kind=FaultKind.STOP),))),
    ("attempts are explained", replace(KILLED, faults=(replace(KILL, kind=FaultKind.CLOCK),))),
    ("attempts are explained", replace(KILLED, faults=(replace(KILL, kind=FaultKind.REDIS),))),
    ("attempts are explained", replace(KILLED, attempts=(FIRST, replace(SECOND, cause="submit")))),
    ("attempts are explained", replace(KILLED, attempts=(FIRST, replace(SECOND, cause="retry")))),
    ("attempts are explained", replace(KILLED, attempts=(FIRST, replace(SECOND, cause="replay")))),
    ("attempts are explained", replace(KILLED, attempts=(FIRST, replace(SECOND, cause="release")))),
    ("attempts are explained", replace(KILLED, attempts=(FIRST, replace(SECOND, cause="infrastructure")))),
    ("attempts are explained", replace(QUIET, attempts=(replace(FIRST, cause="lost"),))),
    ("transient jobs end", replace(TRANSIENT, faults=())),
    ("transient jobs end", replace(TRANSIENT, faults=(replace(KILL, kind=FaultKind.CLOCK),))),
    ("transient jobs end", replace(TRANSIENT, transients=(replace(TRANSIENT.transients[0], state=None),))),
    ("transient jobs end", replace(TRANSIENT, transients=(replace(TRANSIENT.transients[0], state="failed"),))),
    (
        "restarts in time",
        replace(TRANSIENT, transient_runs=(TRANSIENT.transient_runs[0], replace(SECOND_RUN, record="t", began=108.1))),
    ),
    ("restarts in time", replace(KILLED, runs=(KILLED.runs[0], replace(SECOND_RUN, began=108.1, ended=None)))),
    ("nothing runs early", replace(QUIET, submits=(replace(SUBMIT, delay_s=1.0),))),
    (
        "nothing runs early",
        replace(QUIET, submits=(replace(SUBMIT, delay_s=3.0),), commands=(replace(REPLAY, at=102.0),)),
    ),
    ("effects are exactly once", replace(QUIET, records=(WRITES,))),
    ("effects are exactly once", replace(QUIET, records=(WRITES,), effects={"r": 2})),
    ("effects are exactly once", replace(QUIET, records=(replace(WRITES, state="failed"),), effects={"r": 1})),
    (
        "keys lead to one record",
        replace(QUIET, submits=(replace(SUBMIT, key="k"),), records=(RECORD, replace(RECORD, id="s"))),
    ),
    (
        "keys lead to one record",
        replace(QUIET, submits=(replace(SUBMIT, key="k"), replace(SUBMIT, key="k", record="s"))),
    ),
    ("cancelled stays cancelled", replace(QUIET, commands=(CANCEL,))),
    (
        "cancelled stays cancelled",
        replace(QUIET, commands=(CANCEL,), records=(replace(RECORD, state="cancelled"),)),
    ),
    ("outcomes are right", replace(QUIET, records=(replace(RECORD, state="failed", error_type="IntentionalFailure"),))),
    (
        "outcomes are right",
        replace(QUIET, records=(replace(RECORD, state="failed", error_type="WorkerLost", crashes=2),)),
    ),
    ("outcomes are right", replace(QUIET, records=(replace(RECORD, state="cancelled"),))),
    ("outcomes are right", replace(QUIET, records=(replace(RECORD, job="chaos_poison"),))),
    ("crashes are counted", replace(KILLED, records=(replace(KILLED.records[0], crashes=2),))),
    ("crashes are counted", replace(KILLED, records=(replace(KILLED.records[0], crashes=0),))),
    ("workers live", replace(QUIET, exits=(Exit(pid=7, at=101.0),))),
    ("schedule is empty", replace(QUIET, scheduled=("r",))),
]


def test_a_history_without_faults_breaks_no_rule() -> None:
    assert check(QUIET, BOUNDS) == []


def test_a_kill_explains_the_next_attempt() -> None:
    assert check(KILLED, BOUNDS) == []


def test_a_replay_ends_the_delay_of_a_job() -> None:
    deferred = replace(QUIET, submits=(replace(SUBMIT, delay_s=60.0),), commands=(replace(REPLAY, at=100.05),))
    assert check(deferred, BOUNDS) == []


def test_a_kill_explains_the_next_run_of_a_transient_job() -> None:
    assert check(TRANSIENT, BOUNDS) == []


def test_data_loss_of_redis_excuses_a_lost_transient_job() -> None:
    lost = replace(TRANSIENT, transients=(replace(TRANSIENT.transients[0], state=None),))
    data_loss = replace(KILL, kind=FaultKind.REDIS, pid=None)
    assert check(replace(lost, faults=(KILL, data_loss)), BOUNDS) == []


def test_a_replay_allows_a_second_finish() -> None:
    assert check(REPLAYED, BOUNDS) == []


@pytest.mark.parametrize(("rule", "history"), BROKEN, ids=[f"{n}: {rule}" for n, (rule, _) in enumerate(BROKEN)])
def test_a_broken_rule_is_reported(rule: str, history: History) -> None:
    assert [violation for violation in RULES[rule](history, BOUNDS) if violation.rule == rule]


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _ in BROKEN} == set(RULES)


@pytest.mark.parametrize(
    "death",
    [
        replace(KILL, kind=FaultKind.KILL, pid=8, began=103.0, ended=103.0),
        replace(KILL, kind=FaultKind.POSTGRES, pid=None, began=102.0, ended=106.0),
    ],
)
def test_a_restart_has_more_time_while_something_else_is_broken(death: Fault) -> None:
    late = replace(KILLED, runs=(KILLED.runs[0], replace(SECOND_RUN, began=109.5, ended=109.6)))
    assert [violation.rule for violation in check(late, BOUNDS)] == ["restarts in time"]
    assert check(replace(late, faults=(KILL, death)), BOUNDS) == []


@pytest.mark.parametrize(
    ("others", "is_late"),
    [
        ((Start(pid=8, at=104.0),), False),
        ((Start(pid=8, at=90.0),), True),
        ((Start(pid=9, at=90.0), Start(pid=8, at=104.0)), True),
        ((Start(pid=6, at=90.0), Start(pid=8, at=104.0)), False),
    ],
    ids=["started late", "served", "another served", "another had ended"],
)
def test_a_restart_has_more_time_until_another_worker_serves(others: tuple[Start, ...], is_late: bool) -> None:
    late = replace(KILLED, runs=(KILLED.runs[0], replace(SECOND_RUN, began=109.5, ended=109.6)))
    late = replace(late, starts=(Start(pid=7, at=90.0), *others), exits=(Exit(pid=6, at=95.0), Exit(pid=7, at=101.1)))
    assert [violation.rule for violation in RULES["restarts in time"](late, BOUNDS)] == ["restarts in time"] * is_late


def test_a_poison_job_may_fail_after_three_crashes() -> None:
    lost = [
        AttemptOutcome(record="r", attempt=n, cause="lost" if n > 1 else "submit", state="lost") for n in range(1, 4)
    ]
    poisoned = History(
        submits=(SUBMIT,),
        faults=tuple(replace(KILL, kind=FaultKind.POISON, began=at, ended=at) for at in (100.2, 103.2, 106.2)),
        runs=tuple(replace(RUN, attempt=n, began=97.1 + 3 * n, ended=None) for n in range(1, 4)),
        records=(replace(RECORD, state="failed", error_type="WorkerLost", crashes=3, attempt=3, result_attempt=None),),
        attempts=tuple(lost),
    )
    assert check(poisoned, BOUNDS) == []
