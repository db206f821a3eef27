"""Announces waits: code that waits for the end of a job says so to whoever runs it."""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol


class Waits(Protocol):
    """Who counts waits."""

    def wait(self, waiting: Any) -> AbstractContextManager[None]:
        """Return the block of a wait.

        Args:
            waiting: who waits.
        """
        ...


FOLLOWED: ContextVar[tuple[Waits, object] | None] = ContextVar("cplane_followed_waits", default=None)
"""Who counts the waits of this code, and as whose they count. A worker sets it for each attempt: nothing is called for that."""


def announced_wait() -> AbstractContextManager[None]:
    """Return the block of a wait for a job. Outside of a worker's attempts it does nothing."""
    followed = FOLLOWED.get()
    if followed is None:
        return nullcontext()
    waits, waiting = followed
    return waits.wait(waiting)
