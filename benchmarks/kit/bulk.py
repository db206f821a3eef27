"""Bulk submission for clients without a bulk call: concurrent single submissions."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def submit_concurrently(concurrency: int, submits: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all submissions, `concurrency` at a time."""
    pending = iter(submits)

    async def submit_next() -> None:
        for submit in pending:
            await submit

    await asyncio.gather(*(submit_next() for _ in range(concurrency)))
