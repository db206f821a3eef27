"""Celery: `apply_async`; bulk is a `group` in chunks of 1,000 on one producer. Concurrent submitters are threads."""

import app
from celery import group

from benchmarks.kit.producer import serve_sync

JOBS = {"noop": app.noop, "sleep": app.sleep}


class CeleryClient:
    """The client of Celery."""

    def submit(self, job: str, slot: int) -> None:
        JOBS[job].apply_async((slot,))

    def submit_bulk(self, job: str, slots: range) -> None:
        with app.app.producer_pool.acquire(block=True) as producer:
            for first in range(0, len(slots), 1000):
                group(JOBS[job].s(slot) for slot in slots[first : first + 1000]).apply_async(producer=producer)


serve_sync(CeleryClient)
