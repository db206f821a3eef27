"""Bulk for clients that have no bulk call: so many submits side by side."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def side_by_side(many: int, submits: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of them, `many` at a time."""
    waiting = iter(submits)

    async def one_after_another() -> None:
        for submit in waiting:
            await submit

    await asyncio.gather(*(one_after_another() for _ in range(many)))
