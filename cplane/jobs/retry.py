"""When a failed job runs again."""

import random
from dataclasses import dataclass

MAX_BACKOFF_S = 10 * 366 * 86_400
"""A delay has to fit a date."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, after how long, and for which errors a failed job runs again.

    The delay before retry n (1, 2, …) is `backoff_s * factor ** (n - 1)`, at most `max_backoff_s`, of which a share of up to
    `jitter` (0 to 1) is taken off at random so that jobs that failed together do not return together.

    Args:
        retries: runs after the first, 0 to 1000.
        backoff_s: seconds before the first retry.
        factor: growth from one retry to the next, 1 to 1000.
        max_backoff_s: the longest delay, seconds, at most ten years.
        jitter: the random share, 0 (none) to 1 (anything between 0 and the delay).
        on: retry only errors of these types.
        never: fail at once on errors of these types, whatever `on` says.
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
        """Whether a job that has failed `failures` times, this one included, runs again after `error`."""
        return failures <= self.retries and isinstance(error, self.on) and not isinstance(error, self.never)

    def delay_s(self, failures: int) -> float:
        """Seconds until the job runs again after its `failures`-th failure."""
        exponent = min(failures - 1, 64)  # beyond it every delay is max_backoff_s, and floats overflow
        delay_s = min(self.backoff_s * self.factor**exponent, self.max_backoff_s)
        return delay_s * (1 - self.jitter * random.random())  # noqa: S311  spreading load, not keeping a secret


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
