"""Retry policies: whether and when a failed job runs again."""

import random
from dataclasses import dataclass

from cplane.errors import (
    ArtifactTooLarge,
    EgressBlocked,
    InvalidArguments,
    InvalidSession,
    PageTooLarge,
    ResultNotSerializable,
    ResultTooLarge,
    Retry,
    SecretKeyMissing,
    SecretUnreadable,
    SessionRefused,
    SessionTooLarge,
    TooManyArtifacts,
)

MAX_BACKOFF_S = 10 * 366 * 86_400
"""Ten years: a delay has to fit into a date."""


FINAL_ERRORS = (
    ArtifactTooLarge,
    EgressBlocked,
    InvalidArguments,
    InvalidSession,
    PageTooLarge,
    ResultNotSerializable,
    ResultTooLarge,
    SecretKeyMissing,
    SecretUnreadable,
    SessionRefused,
    SessionTooLarge,
    TooManyArtifacts,
)
"""Errors that another try would only repeat, whatever the job's policy says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, with what backoff, and for which errors a failed job runs again.

    The delay before retry n (1, 2, …) is `backoff_s * factor ** (n - 1)`, at most `max_backoff_s`, minus a random share
    of up to `jitter` (0 to 1), so that jobs that failed together do not run again together.

    Args:
        retries: maximum number of retries after the first attempt, 0 to 1000.
        backoff_s: delay before the first retry, seconds, 0 or more.
        factor: growth of the delay from one retry to the next, 1 to 1000.
        max_backoff_s: longest delay, seconds, at most ten years.
        jitter: largest random share taken off a delay, 0 (none) to 1 (anything between 0 and the delay).
        on: types of errors that are retried.
        never: types of errors that fail the job immediately, even if `on` has them.

    Raises:
        ValueError: a value is out of its range.

    Example:
        ```python
        from cplane import Context, ControlPlane, RetryPolicy, job


        @job(retries=RetryPolicy(retries=5, backoff_s=0.1, max_backoff_s=60, on=(OSError,), never=(FileNotFoundError,)))
        async def unreliable(ctx: Context) -> int:
            if ctx.attempt < 3:
                raise ConnectionError("the server closed the connection")
            return ctx.attempt


        async with ControlPlane():
            handle = await unreliable.submit()
            assert await handle.result(timeout=30) == 3
        ```
    """

    retries: int = 3
    backoff_s: float = 1.0
    factor: float = 2.0
    max_backoff_s: float = 600.0
    jitter: float = 0.25
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        checks = {
            f"retries must be 0 to 1000, not {self.retries!r}": _is_int(self.retries) and 0 <= self.retries <= 1000,
            f"backoff_s must be 0 or more, not {self.backoff_s!r}": self.backoff_s >= 0,
            f"factor must be 1 to 1000, not {self.factor!r}": 1 <= self.factor <= 1000,
            f"max_backoff_s must be 0 to {MAX_BACKOFF_S}, not {self.max_backoff_s!r}": 0
            <= self.max_backoff_s
            <= MAX_BACKOFF_S,
            f"jitter must be 0 to 1, not {self.jitter!r}": 0 <= self.jitter <= 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)

    def allows(self, error: BaseException, failures: int) -> bool:
        """Return whether the job runs again.

        Args:
            error: the error of the last attempt.
            failures: number of failures of the job, this one included.
        """
        return failures <= self.retries and isinstance(error, self.on) and not isinstance(error, self.never)

    def delay_s(self, failures: int) -> float:
        """Return the delay before the next attempt, seconds.

        Args:
            failures: number of failures of the job, 1 or more.
        """
        exponent = min(failures - 1, 64)  # beyond it, floats overflow and every delay is max_backoff_s
        delay_s = min(self.backoff_s * self.factor**exponent, self.max_backoff_s)
        return delay_s * (1 - self.jitter * random.random())  # noqa: S311  it spreads load, it protects nothing


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def retry_in_s(policy: RetryPolicy, error: BaseException, failures: int) -> float | None:
    """Return the seconds until a job runs again after its own failure; None: it has failed for good.

    Args:
        policy: the job's.
        error: the error of the last attempt.
        failures: number of failures of the job before this one.
    """
    failures += 1
    if isinstance(error, FINAL_ERRORS):
        return None
    if isinstance(error, Retry) and failures <= policy.retries:
        delay_s = policy.delay_s(failures) if error.delay is None else error.delay
        return min(max(0.0, delay_s), MAX_BACKOFF_S)
    return policy.delay_s(failures) if policy.allows(error, failures) else None
