"""dramatiq: `send`; bulk is a `group`, which sends one message after another. Concurrent submitters are threads."""

import app
from dramatiq import group

from benchmarks.kit.producer import serve_sync

JOBS = {"noop": app.noop, "sleep": app.sleep}


class DramatiqClient:
    """The client of dramatiq."""

    def submit(self, job: str, slot: int) -> None:
        JOBS[job].send(slot)

    def submit_bulk(self, job: str, slots: range) -> None:
        for first in range(0, len(slots), 1000):
            group(JOBS[job].message(slot) for slot in slots[first : first + 1000]).run()


serve_sync(DramatiqClient)
