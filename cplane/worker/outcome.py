"""What came of an attempt, and what that means: the job ends, or runs again, at once or later, with a retry spent or none."""

import random
import traceback
from pathlib import Path
from typing import Any

import msgspec

from cplane.errors import (
    MAX_COOL_DOWN_S,
    EgressBlocked,
    InfrastructureError,
    InvalidArguments,
    InvalidSession,
    JobTimeout,
    PageCrashed,
    ResultNotSerializable,
    Retry,
    SecretKeyMissing,
    SecretUnreadable,
    SessionBusy,
    SessionTooLarge,
    TooManyRequests,
)
from cplane.jobs.definition import AnyJob
from cplane.jobs.states import MAX_CRASHES, MAX_INTERRUPTIONS, AttemptState, Cause, State
from cplane.postgres.rows import Error
from cplane.worker.arq_functions import PlainFunction

FIRST_COOLDOWN_S = 10
"""How long a host is left alone first that does not say for how long."""

TRACEBACK_CHARS = 16_000
FINAL_ERRORS = (
    EgressBlocked,
    InvalidArguments,
    InvalidSession,
    ResultNotSerializable,
    SecretKeyMissing,
    SecretUnreadable,
    SessionTooLarge,
)
"""Errors that another try would only repeat, whatever the job's policy says."""
OURS = str(Path(__file__).parents[1])


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What came of an attempt, decided once."""

    state: State
    attempt_state: AttemptState
    result_json: bytes | None = None
    value: Any = None
    """What a plain function returned."""
    error: Error | None = None
    delay_s: float = 0.0
    cause: Cause = Cause.SUBMIT
    failures: int = 0
    interruptions: int = 0
    recorded: bool = False
    """The job's own transaction has told Postgres already."""


def decide(
    error: BaseException, job: AnyJob | PlainFunction, *, number: int, failures: int, interruptions: int
) -> Outcome:
    """What an error of an attempt means: again later, again without spending a retry, or failed.

    Args:
        error: what the attempt raised, or what really happened to it.
        job: its job, which has the policy.
        number: which attempt it is.
        failures: retries that were spent before it.
        interruptions: how often it was interrupted before, through no fault of its own.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        error = RuntimeError(f"the job raised {error!r}")  # it fails; it does not take the worker along
    described = describe(error)
    if isinstance(error, SessionBusy):
        return _wait_for_session(described, number)
    if isinstance(error, InfrastructureError):
        return _interrupted(error, described, interruptions)
    attempt_state = AttemptState.TIMED_OUT if isinstance(error, JobTimeout) else AttemptState.FAILED
    delay_s = _retry_in_s(error, job, failures)
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
    most = MAX_CRASHES - 1 if isinstance(error, PageCrashed) else MAX_INTERRUPTIONS
    if interruptions >= most:
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
    """How long the host is left alone; one that does not say is left alone for longer each time."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    return float(min(FIRST_COOLDOWN_S * 2**interruptions, MAX_COOL_DOWN_S))


def _wait_for_session(described: Error, number: int) -> Outcome:
    """The job goes back to the schedule, holding nothing and spending nothing; who has waited often waits longer, up to 10 s."""
    return Outcome(
        state=State.QUEUED,
        attempt_state=AttemptState.RELEASED,
        error=described,
        cause=Cause.RELEASE,
        delay_s=min(0.25 * 1.3 ** min(number, 20), 10.0) * random.uniform(0.75, 1.25),  # noqa: S311  no secret
    )


def _retry_in_s(error: BaseException, job: AnyJob | PlainFunction, failures: int) -> float | None:
    """Seconds until the job runs again after its own failure; None: it has failed for good."""
    if isinstance(job, PlainFunction):
        return job.retry_in_s(error)
    policy, failures = job.options.retry, failures + 1
    if isinstance(error, FINAL_ERRORS):
        return None
    if isinstance(error, Retry) and failures <= policy.retries:
        return max(0.0, error.delay) if error.delay is not None else policy.delay_s(failures)
    return policy.delay_s(failures) if policy.allows(error, failures) else None


def describe(error: BaseException) -> Error:
    """An error as text: its type, its message, and a traceback that begins where the job's own code does."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in {"builtins", "cplane.errors"}
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    told = traceback.TracebackException.from_exception(error)
    theirs = (
        n for n, frame in enumerate(told.stack) if not frame.filename.startswith(OURS) or "/tasks/" in frame.filename
    )
    first = next(theirs, len(told.stack))  # an error of ours alone needs no traceback: its message says it all
    del told.stack[:first]
    text = "".join(told.format())
    if len(text) > TRACEBACK_CHARS:
        text = f"{text[: TRACEBACK_CHARS // 2]}\n…\n{text[-TRACEBACK_CHARS // 2 :]}"
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    return Error(name, message[:TRACEBACK_CHARS], text)
