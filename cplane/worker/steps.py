"""Steps: while the code of an attempt runs on the event loop, its number is where the keeper reads it.

A task is resumed step by step. Each step of an attempt's task, and of every task that it starts, is noted: a process that
dies or hangs in the middle of one names who did it. This costs about 0.2 µs a step.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

from cplane.keeper.manifest import Field

CURRENT: ContextVar[int] = ContextVar("cplane_attempt", default=0)
"""The number of the attempt that this task belongs to; 0: none."""

STEP = int(Field.STEP)


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine that notes each of its steps.

    Args:
        coroutine: what is run.
        seq: the number of its attempt.
        header: where it is noted.
    """

    __slots__ = ("_coroutine", "_header", "_send", "_seq")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], seq: int, header: "memoryview[int]") -> None:
        self._coroutine = coroutine
        self._send = coroutine.send
        self._seq = seq
        self._header = header

    def send(self, value: Any) -> Any:
        """Run the next step."""
        header = self._header
        header[STEP] = self._seq
        try:
            return self._send(value)
        finally:
            header[STEP] = 0

    def throw(self, *error: Any) -> Any:
        """Run the next step with an error."""
        self._header[STEP] = self._seq
        try:
            return self._coroutine.throw(*error)
        finally:
            self._header[STEP] = 0

    def close(self) -> None:
        """Close the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        """Return what a task reads of its coroutine, for its `repr` and its stack."""
        return getattr(self._coroutine, name)


class TaskFactory:
    """Creates the tasks of an event loop; those that the code of an attempt starts note their steps, too."""

    def __init__(self, header: "memoryview[int]") -> None:
        self._header = header

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        """Create a task."""
        seq = CURRENT.get()
        followed = Steps(coroutine, seq, self._header) if seq and not isinstance(coroutine, Steps) else coroutine
        return asyncio.Task(followed, loop=loop, **options)

    def follow(self, coroutine: Coroutine[Any, Any, Any], seq: int) -> Steps:
        """Return the coroutine of an attempt's own task."""
        return Steps(coroutine, seq, self._header)
