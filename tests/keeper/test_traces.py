"""The line at which a worker process hangs, from a traceback that needs neither its loop nor its lock."""

import asyncio
import faulthandler
import os
import threading
from collections.abc import Iterator

import pytest

from cplane.keeper.traces import where_blocked
from cplane.worker.threads import JobThreads


@pytest.fixture
def traces() -> Iterator[int]:
    fd = os.memfd_create("traces")
    yield fd
    os.close(fd)


def dump(fd: int) -> None:
    faulthandler.dump_traceback(fd, all_threads=True)


def a_job_that_hangs(fd: int) -> None:
    dump(fd)


def test_the_innermost_line_of_the_main_thread(traces: int) -> None:
    a_job_that_hangs(traces)
    assert where_blocked(traces).endswith("in dump")
    assert where_blocked(traces).startswith("test_traces.py:")


async def test_the_line_of_a_job_in_a_thread(traces: int) -> None:
    inside, go = threading.Event(), threading.Event()

    def a_job_in_a_thread() -> None:
        inside.set()
        go.wait()

    threads = JobThreads({"default": 2}, stuck_after_s=60)
    running = threads.run(a_job_in_a_thread, queue="default")
    await asyncio.to_thread(inside.wait)
    dump(traces)
    go.set()
    await running
    threads.close()
    assert where_blocked(traces, in_thread=True).endswith("in a_job_in_a_thread")


def test_there_may_be_no_traceback(traces: int) -> None:
    assert where_blocked(traces) == ""
    os.write(traces, b"what is this")
    assert where_blocked(traces) == ""
    assert where_blocked(traces, in_thread=True) == ""
