"""Blocking functions of cplane itself, run where they can be stopped: in a process of the worker."""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")


class RemoteError(Exception):
    """An error that was raised in another process, which has described it.

    Attributes:
        type: name of its class.
        message: its text.
        traceback: its traceback, as text.
        retry_in_s: seconds until the job runs again, by its retry policy; None: it has failed for good.
    """

    def __init__(self, type: str, message: str, traceback: str, retry_in_s: float | None) -> None:  # noqa: A002  the field's word
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback
        self.retry_in_s = retry_in_s


class Offload(Protocol):
    """Calls a function in another process."""

    async def __call__(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        """Return what it returns."""
        ...


offload: ContextVar[Offload | None] = ContextVar("offload", default=None)
"""Set by the worker for the jobs that it runs."""


async def run_blocking(function: Callable[..., T], *args: Any, timeout_s: float) -> T:
    """Call a function that takes long, in a process of the worker; outside of a worker, in a thread.

    Args:
        function: a function at the top of a module of cplane.
        *args: its arguments: text, bytes, numbers.
        timeout_s: seconds from its start until its process is killed; a thread runs on.

    Returns:
        What the function returns: text, bytes, a number or None.

    Raises:
        TimeoutError: it took longer.
        RemoteError: it raised an error in its process; in a thread, the error itself is raised.
        ProcessDied: its process ended under it.
        InfrastructureError: there is no process to run it.
    """
    elsewhere = offload.get()
    if elsewhere is not None:
        return cast("T", await elsewhere(function, args, timeout_s))
    async with asyncio.timeout(timeout_s):
        return await asyncio.to_thread(function, *args)
