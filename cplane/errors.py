"""Every error cplane raises.

    CplaneError
    ├── JobError                 the job's fault
    │   ├── JobFailed            what a handle raises for a failed job
    │   ├── JobCancelled         what a handle raises for a cancelled job
    │   ├── JobTimeout           the job ran longer than its timeout
    │   ├── EgressBlocked        a page requested a host that the egress rules forbid
    │   ├── HostUnreachable      a page's host has no address, or does not respond
    │   ├── PageTooLarge         a page used more memory than it may, or opened too many windows
    │   ├── ResultNotSerializable
    │   ├── ResultTooLarge
    │   ├── ProcessDied          the process of a job ended under it
    │   ├── MemoryLimitExceeded  the job needed more than its `memory_mb`
    │   ├── ArtifactTooLarge
    │   ├── TooManyArtifacts
    │   └── Retry                raised by a job that wants to run again
    ├── InfrastructureError      a server, a browser or the network failed: the job is requeued and no retry is used
    │   ├── DatabaseUnavailable
    │   ├── QueueUnavailable
    │   ├── ArtifactsUnavailable
    │   ├── ServerStartError
    │   ├── ThreadsStuck         plain jobs outlive their attempts: the worker stops
    │   ├── TooManyRequests      raised by a job that its host rate limits: the host cools down
    │   └── BrowserError
    │       ├── BrowserNotFound
    │       ├── BrowserGone
    │       ├── PageCrashed
    │       └── PoolTimeout
    └── UsageError               the caller's fault
        ├── InvalidJob           a `@job` that cannot work, raised at import
        ├── InvalidSettings
        ├── InvalidArguments
        ├── UnknownJob
        ├── RecordNotFound
        ├── ArtifactNotFound
        ├── SessionNotFound
        ├── SessionInUse         a running job holds the session
        ├── SessionTooLarge
        ├── InvalidSession       not a storage state of Playwright, or not a session name
        ├── SecretKeyMissing     sessions need CPLANE_SECRET_KEY
        ├── SecretUnreadable     no key of the keyring decrypts it, or the ciphertext was modified
        ├── InvalidTransition    the state of the record does not allow it
        ├── IdempotencyConflict
        │   └── KeyInUse
        ├── SchemaMismatch       the database needs `cplane db upgrade`
        └── NoControlPlane       submit outside `async with ControlPlane()`

`message` says what is wrong, `hint` says what to do next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class CplaneError(Exception):
    """Root of all errors of cplane.

    Args:
        message: one sentence that says what is wrong.
        hint: what to do next, or None. `str(error)` shows it in parentheses after the message.
    """

    submitted: Mapping[int, Any] = MappingProxyType({})
    """Handles of the jobs that were submitted before the error, by index in the batch from 0; set by `submit_many`."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class JobError(CplaneError):
    """The job is at fault."""


class JobFailed(JobError):
    """A job ended as failed. `error_type`, `error_message` and `traceback` (text) describe the last attempt's error."""

    def __init__(self, name: str, error_type: str, error_message: str, traceback: str) -> None:
        super().__init__(f"job '{name}' failed with {error_type}: {error_message}")
        self.name = name
        self.error_type = error_type
        self.error_message = error_message
        self.traceback = traceback


class JobCancelled(JobError):
    """A job ended as cancelled."""


class JobTimeout(JobError):
    """A job ran longer than its `timeout`."""


class EgressBlocked(JobError):
    """A page requested a host that the egress rules forbid; the message names both. Retrying does not help."""


class HostUnreachable(JobError):
    """The host of a page has no address, or does not respond; the message names it. A later retry may succeed."""


class PageTooLarge(JobError):
    """A page used more memory than it may, or opened too many windows; the message says which. It is not retried."""


class SessionRefused(JobError):
    """A browser session does not allow a host or an option of the job; the message names it. Retrying does not help."""


class ResultNotSerializable(JobError):
    """The value that a job returned cannot be stored as JSON."""


class ResultTooLarge(JobError):
    """The value that a job returned is larger than `CPLANE_MAX_RESULT_BYTES`. Retrying does not help."""


class ProcessDied(JobError):
    """The process of a job with `runs_in="process"` was killed, or exited by itself; the message says how."""


class MemoryLimitExceeded(JobError, MemoryError):
    """A job with `runs_in="process"` needed more memory than its `memory_mb`."""


class ArtifactTooLarge(JobError):
    """A file of a job is larger than `CPLANE_ARTIFACT_MAX_MB`; nothing of it is stored. Retrying does not help."""


class TooManyArtifacts(JobError):
    """A job stores more files than `CPLANE_ARTIFACT_MAX_COUNT`. Retrying does not help."""


class Retry(JobError):
    """Raise it in a job to run the job again.

    Args:
        message: the reason, for the record.
        delay: seconds until the next attempt, a negative one counts as 0, one of more than ten years as ten years; None
            uses the backoff of the job's retry policy.

    Raises:
        ValueError: `delay` is not a finite number.
    """

    def __init__(self, message: str = "the job asked to run again", *, delay: float | None = None) -> None:
        super().__init__(message)
        if delay is not None and not float("-inf") < delay < float("inf"):
            raise ValueError(f"delay must be a finite number of seconds, not {delay!r}")
        self.delay = delay


class InfrastructureError(CplaneError):
    """A service that cplane depends on failed; the job is not at fault."""


class DatabaseUnavailable(InfrastructureError):
    """Postgres did not respond."""


class QueueUnavailable(InfrastructureError):
    """Redis did not respond."""


class ArtifactsUnavailable(InfrastructureError):
    """The artifact store did not respond."""


class ServerStartError(InfrastructureError):
    """An embedded server could not be started."""


class ThreadsStuck(InfrastructureError):
    """As many plain jobs outlive their attempts as a queue may run at once; the worker drains, and exits with 1."""


MAX_COOL_DOWN_S = 3600
"""The longest cooldown of a host, seconds."""


class TooManyRequests(InfrastructureError):
    """Raise it in a job when the host rate limits it: no job of the host starts while the host cools down.

    The job itself runs again after the cooldown, up to 20 times, and no retry is used.

    Args:
        message: the reason, for the record.
        retry_after_s: length of the cooldown, seconds; longer than an hour counts as an hour. None: 10 seconds the
            first time, doubled each time.

    Raises:
        ValueError: `retry_after_s` is negative or not finite.
    """

    def __init__(
        self, message: str = "the host received too many requests", *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        if retry_after_s is not None and not 0 <= retry_after_s < float("inf"):
            raise ValueError(f"retry_after_s must be 0 or more seconds, not {retry_after_s!r}")
        self.retry_after_s = None if retry_after_s is None else min(float(retry_after_s), float(MAX_COOL_DOWN_S))


class BrowserError(InfrastructureError):
    """The browser failed; the job is not at fault."""


class BrowserNotFound(BrowserError):
    """No browser is installed on this machine."""


class BrowserGone(BrowserError):
    """The browser process or its connection ended while a job used it."""


class PageCrashed(BrowserError):
    """The renderer of a job's page died."""


class PoolTimeout(BrowserError):
    """No page became free, or could be opened, before the deadline."""


class UsageError(CplaneError):
    """The caller is at fault: the request cannot be fulfilled."""


class InvalidJob(UsageError):
    """A `@job` that cannot work; raised at import."""


class InvalidSettings(UsageError):
    """The configuration is incomplete or wrong."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a caller's input. `path` is a JSON pointer (RFC 6901) to the field; "" is the whole input."""

    path: str
    message: str


class InvalidArguments(UsageError):
    """Arguments that do not fit the job; `problems` has one entry for each field.

    `option` names the option of the submission that is wrong, if it is one of those instead.
    """

    def __init__(
        self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None, option: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)
        self.option = option


class UnknownJob(UsageError):
    """No imported job has this name."""


class RecordNotFound(UsageError):
    """No record has this id."""


class ArtifactNotFound(UsageError):
    """The record has no artifact of this name."""


class SessionNotFound(UsageError):
    """No browser session has this name."""


class SessionInUse(UsageError):
    """A running job holds the browser session."""


class SessionBusy(CplaneError):
    """Another attempt holds the browser session although the limiter granted this job its slot.

    This happens after Redis was wiped, and while the session is being replaced.
    """


class SessionTooLarge(UsageError):
    """A browser session is larger than the limit."""


class InvalidSession(UsageError):
    """The name or the state of a browser session is invalid; `problems` names parts of the state, never a value."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class SecretKeyMissing(UsageError):
    """CPLANE_SECRET_KEY is not set."""


class SecretUnreadable(UsageError):
    """A ciphertext cannot be decrypted: its key is not set, or it was modified."""


class InvalidTransition(UsageError):
    """The state of the record does not allow the requested transition."""


class IdempotencyConflict(UsageError):
    """The idempotency key was used before, for another submission."""


class KeyInUse(IdempotencyConflict):
    """Another request with this idempotency key is in flight."""


class SchemaMismatch(UsageError):
    """The database tables are older or newer than this version of cplane."""


class NoControlPlane(UsageError):
    """No `ControlPlane` is open in this process."""
