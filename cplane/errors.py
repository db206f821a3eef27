"""Every error cplane raises.

    CplaneError
    ├── JobError                 the job's fault
    │   ├── JobFailed            what a handle raises for a failed job
    │   ├── JobCancelled         what a handle raises for a cancelled job
    │   ├── JobTimeout           the job ran longer than its timeout
    │   ├── EgressBlocked        a page was to reach what pages may not reach
    │   ├── HostUnreachable      a page's host has no address, or does not answer
    │   ├── ResultNotSerializable
    │   └── Retry                raised by a job that wants to run again
    ├── InfrastructureError             a server, a browser or the network: the job is run again without spending a retry
    │   ├── DatabaseUnavailable
    │   ├── QueueUnavailable
    │   ├── ArtifactsUnavailable
    │   ├── ServerStartError
    │   ├── TooManyRequests      raised by a job whose host has had enough: the host is left alone for a while
    │   └── BrowserError
    │       ├── BrowserNotFound
    │       ├── BrowserGone
    │       ├── PageCrashed
    │       └── PoolTimeout
    └── UsageError               the caller's fault
        ├── InvalidJob           a decorator that cannot work, at import
        ├── InvalidSettings
        ├── InvalidArguments
        ├── UnknownJob
        ├── RecordNotFound
        ├── ArtifactNotFound
        ├── SessionNotFound
        ├── SessionInUse         a job holds the session
        ├── SessionTooLarge
        ├── InvalidSession       not a storage_state of Playwright, or not the name of a session
        ├── SecretKeyMissing     sessions need CPLANE_SECRET_KEY
        ├── SecretUnreadable     none of the keys fits, or what is stored was changed
        ├── InvalidTransition          the record's state does not allow it
        ├── IdempotencyConflict
        │   └── KeyInUse
        ├── SchemaMismatch       the database needs `cplane db upgrade`
        └── NoControlPlane       submit outside `async with ControlPlane()`

A message says what is wrong; `hint` says what to do next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class CplaneError(Exception):
    """The root: `str(error)` is one clear sentence, `error.hint` the next step or None."""

    submitted: Mapping[int, Any] = MappingProxyType({})
    """Raised by `submit_many`: the handles of those jobs of the batch that were submitted all the same, by place, from 0."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class JobError(CplaneError):
    """The job's own fault."""


class JobFailed(JobError):
    """A job ended as failed: `error_type`, `error_message` and `traceback` (text) are what its last attempt raised."""

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
    """A page was to reach a host that pages may not reach; the message names the host and the rule. No other try changes that."""


class HostUnreachable(JobError):
    """The host of a page has no address, or does not answer; the message names it. A try later may find it."""


class ResultNotSerializable(JobError):
    """What a job returned cannot be stored as JSON."""


class Retry(JobError):
    """Raise it in a job to run again after `delay` seconds; without a delay the job's retry policy decides."""

    def __init__(self, message: str = "the job asked to run again", *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class InfrastructureError(CplaneError):
    """Something cplane depends on failed; no job is to blame."""


class DatabaseUnavailable(InfrastructureError):
    """Postgres did not answer."""


class QueueUnavailable(InfrastructureError):
    """Redis did not answer."""


class ArtifactsUnavailable(InfrastructureError):
    """The artifact store did not answer."""


class ServerStartError(InfrastructureError):
    """An embedded server could not be started."""


MAX_COOL_DOWN_S = 3600
"""The longest that a host is left alone at a time."""


class TooManyRequests(InfrastructureError):
    """Raise it in a job when its host has had enough: no job of the host starts for `retry_after_s` seconds, at most an hour.

    The job itself runs again after it, without spending a retry, up to 20 times. Without `retry_after_s` the wait begins with
    10 seconds and doubles each time.
    """

    def __init__(
        self, message: str = "the host has had too many requests", *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        if retry_after_s is not None and not 0 <= retry_after_s < float("inf"):
            raise ValueError(f"retry_after_s must be 0 or more seconds, not {retry_after_s!r}")
        self.retry_after_s = None if retry_after_s is None else min(float(retry_after_s), float(MAX_COOL_DOWN_S))


class BrowserError(InfrastructureError):
    """The browser failed, not the job."""


class BrowserNotFound(BrowserError):
    """There is no browser on this machine."""


class BrowserGone(BrowserError):
    """The browser process or its connection ended while a job used it."""


class PageCrashed(BrowserError):
    """The renderer of a job's page died."""


class PoolTimeout(BrowserError):
    """No page became free, or none could be opened, in time."""


class UsageError(CplaneError):
    """The caller asked for something that cannot be."""


class InvalidJob(UsageError):
    """A `@job` that cannot work."""


class InvalidSettings(UsageError):
    """The configuration is incomplete or wrong."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a caller's input: `path` is a JSON pointer to the field."""

    path: str
    message: str


class InvalidArguments(UsageError):
    """Arguments that do not fit the job; `problems` names each field."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class UnknownJob(UsageError):
    """No job of that name was imported."""


class RecordNotFound(UsageError):
    """There is no record with that id."""


class ArtifactNotFound(UsageError):
    """The record has no artifact of that name."""


class SessionNotFound(UsageError):
    """There is no browser session of that name."""


class SessionInUse(UsageError):
    """A job that runs holds the browser session."""


class SessionBusy(CplaneError):
    """The browser session that a job asks for is another's, though the job had its turn: Redis was wiped, or the session is being replaced."""


class SessionTooLarge(UsageError):
    """A browser session is larger than what is kept."""


class InvalidSession(UsageError):
    """The name or the state of a browser session does not fit; `problems` names each part of the state, never its value."""

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class SecretKeyMissing(UsageError):
    """CPLANE_SECRET_KEY is not set."""


class SecretUnreadable(UsageError):
    """What was encrypted cannot be decrypted: its key is not set, or it was changed."""


class InvalidTransition(UsageError):
    """The state of the record does not allow what was asked."""


class IdempotencyConflict(UsageError):
    """The idempotency key was used before, for something else."""


class KeyInUse(IdempotencyConflict):
    """Another request with this idempotency key is under way."""


class SchemaMismatch(UsageError):
    """The tables are older or newer than this cplane."""


class NoControlPlane(UsageError):
    """There is no open ControlPlane in this process."""
