"""Announces waits: code that waits for the end of a job says so to whoever runs it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

Announce = Callable[[], AbstractContextManager[None]]

ANNOUNCE: ContextVar[Announce | None] = ContextVar("cplane_announce_wait", default=None)
"""Called when this code begins to wait for a job; its block ends with the wait. A worker sets it for each attempt."""


def announced_wait() -> AbstractContextManager[None]:
    """Return the block of a wait for a job. Outside of a worker's attempts it does nothing."""
    announce = ANNOUNCE.get()
    return nullcontext() if announce is None else announce()
