"""taskiq: `kiq`, awaited; there is no bulk call, so bulk is 64 of them concurrently."""

import app

from benchmarks.kit.bulk import submit_concurrently
from benchmarks.kit.producer import serve

JOBS = {"noop": app.noop, "sleep": app.sleep}


class TaskiqClient:
    """The client of taskiq."""

    async def open(self) -> None:
        await app.broker.startup()

    async def close(self) -> None:
        await app.broker.shutdown()

    async def submit(self, job: str, slot: int) -> None:
        await JOBS[job].kiq(slot)

    async def submit_bulk(self, job: str, slots: range) -> None:
        await submit_concurrently(64, (self.submit(job, slot) for slot in slots))


serve(TaskiqClient)
