"""The outcome of an attempt, and what an error means: the job ends, or runs again, at once or later, with a retry spent or none."""

import random
from typing import TYPE_CHECKING, Any

import msgspec

from cplane.errors import MAX_COOL_DOWN_S, InfrastructureError, JobTimeout, PageCrashed, SessionBusy, TooManyRequests
from cplane.jobs.states import MAX_CRASHES, MAX_INTERRUPTIONS, AttemptState, Cause, State
from cplane.runtime.error_text import Error, describe

if TYPE_CHECKING:
    from cplane.worker.runnable import Runnable

INITIAL_COOLDOWN_S = 10
"""How long a host cools down first that does not say for how long."""


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The outcome of an attempt, decided once."""

    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    value: Any = None
    """What an arq function returned."""
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    failures: int = 0
    interruptions: int = 0
    recorded: bool = False
    """The job's own transaction has recorded it already."""


def allowed_s(timeout_s: float, job_timeout_s: float) -> float:
    """Return the timeout of an attempt whose submission set one: at most the job's own, which may be another by now.

    It is the job's own for a number that no submission can have: any client of arq can write an envelope.
    """
    return timeout_s if 0 < timeout_s < job_timeout_s else job_timeout_s


def timed_out(job: "Runnable", timeout_s: float) -> JobTimeout:
    """Return the error of an attempt that ran longer than its timeout."""
    where = "@job(timeout=…)" if timeout_s == job.timeout_s else "using(timeout=…), where it was submitted"
    return JobTimeout(f"'{job.name}' ran longer than {timeout_s:g} s", hint=f"raise it with {where}")


def of_job(error: BaseException) -> BaseException:
    """Return an error as one of the job: it fails with SystemExit and KeyboardInterrupt, and does not take the worker along."""
    return RuntimeError(f"the job raised {error!r}") if isinstance(error, SystemExit | KeyboardInterrupt) else error


def decide(
    error: BaseException,
    job: "Runnable",
    *,
    failures: int,
    interruptions: int,
    number: int,
    described: Error | None = None,
) -> Outcome:
    """Return what an error of an attempt means: again later, again without spending a retry, or failed.

    Args:
        error: what the attempt raised, or the cause behind it.
        job: its job, which has the retry policy.
        failures: retries that were spent before it.
        interruptions: how often the job was interrupted before, through no fault of its own.
        number: the number of the attempt, from 1.
        described: the error as text, if it has been read already.
    """
    error = of_job(error)
    described = described or describe(error)
    if isinstance(error, SessionBusy):
        return _wait_for_session(described, number)
    if isinstance(error, InfrastructureError):
        return _interrupted(error, described, interruptions)
    attempt_state = AttemptState.TIMED_OUT if isinstance(error, JobTimeout) else AttemptState.FAILED
    delay_s = job.retry_in_s(error, failures)
    if delay_s is None:
        return Outcome(state=State.FAILED, attempt_state=attempt_state, error=described, failures=1)
    return Outcome(
        state=State.QUEUED,
        attempt_state=attempt_state,
        error=described,
        cause=Cause.RETRY,
        delay_s=delay_s,
        failures=1,
    )


def _interrupted(error: InfrastructureError, described: Error, interruptions: int) -> Outcome:
    """What the job depends on failed: it runs again without spending a retry, but not for ever."""
    limit = MAX_CRASHES - 1 if isinstance(error, PageCrashed) else MAX_INTERRUPTIONS
    if interruptions >= limit:
        return Outcome(state=State.FAILED, attempt_state=AttemptState.INTERRUPTED, error=described, interruptions=1)
    return Outcome(
        state=State.QUEUED,
        attempt_state=AttemptState.INTERRUPTED,
        error=described,
        cause=Cause.INFRASTRUCTURE,
        delay_s=cooldown_s(error, interruptions)
        if isinstance(error, TooManyRequests)
        else min(0.1 * 3**interruptions, 60.0),
        interruptions=1,
    )


def cooldown_s(error: TooManyRequests, interruptions: int) -> float:
    """Return how long the host cools down, in seconds: what it says, or else twice as long each time."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    return float(min(INITIAL_COOLDOWN_S * 2**interruptions, MAX_COOL_DOWN_S))


def _wait_for_session(described: Error, number: int) -> Outcome:
    """The job is requeued, holding nothing and spending nothing; the delay grows with each attempt, up to 10 s."""
    return Outcome(
        state=State.QUEUED,
        attempt_state=AttemptState.RELEASED,
        error=described,
        cause=Cause.RELEASE,
        delay_s=min(0.25 * 1.3 ** min(number, 20), 10.0) * random.uniform(0.75, 1.25),  # noqa: S311  no secret
    )
