"""cplane: `submit`, awaited; bulk is `submit_many`. CPLANE_IMPORTS selects recorded or transient jobs."""

import importlib
import os
from contextlib import AsyncExitStack
from typing import Any

from benchmarks.kit.producer import serve, unavailable
from cplane import ControlPlane
from cplane.errors import InvalidJob

try:
    jobs: Any = importlib.import_module(os.environ["CPLANE_IMPORTS"])
except InvalidJob as error:
    unavailable(str(error))


class CplaneClient:
    """The client of cplane."""

    async def open(self) -> None:
        self._open = AsyncExitStack()
        await self._open.enter_async_context(ControlPlane())

    async def close(self) -> None:
        await self._open.aclose()

    async def submit(self, job: str, slot: int) -> None:
        await getattr(jobs, job).submit(slot)

    async def submit_bulk(self, job: str, slots: range) -> None:
        await getattr(jobs, job).submit_many({"slot": slot} for slot in slots)


serve(CplaneClient)
