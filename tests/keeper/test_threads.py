"""Which thread of a blocked process holds its interpreter is read from the system."""

import asyncio
import sys

import pytest

from cplane.keeper.manifest import MAX_THREADS, ManifestReader, SharedMemory, ThreadTable
from cplane.keeper.threads import ThreadState, holder, thread_states

RUNS, SLEEPS, WAITS, UNKNOWN = ThreadState.RUNS, ThreadState.SLEEPS, ThreadState.WAITS, ThreadState.UNKNOWN
MAIN, FIRST, SECOND = 1, 2, 3


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ((WAITS, RUNS, WAITS), (WAITS, RUNS, WAITS), FIRST),
        ((WAITS, RUNS, SLEEPS), (WAITS, RUNS, SLEEPS), FIRST),  # the other sleeps, and would not run
        ((WAITS, SLEEPS, WAITS), (WAITS, SLEEPS, WAITS), FIRST),
        ((RUNS, WAITS, WAITS), (RUNS, WAITS, WAITS), MAIN),
        ((WAITS, SLEEPS, SLEEPS), (WAITS, SLEEPS, SLEEPS), 0),
        ((WAITS, SLEEPS, SLEEPS), (WAITS, SLEEPS, WAITS), FIRST),
        ((WAITS, WAITS, WAITS), (WAITS, RUNS, WAITS), 0),
        ((UNKNOWN, UNKNOWN, UNKNOWN), (UNKNOWN, UNKNOWN, UNKNOWN), 0),
    ],
)
def test_the_holder_is_the_only_one_that_does_not_wait(
    before: tuple[ThreadState, ...], now: tuple[ThreadState, ...], found: int
) -> None:
    threads = (MAIN, FIRST, SECOND)
    assert holder(dict(zip(threads, before, strict=True)), dict(zip(threads, now, strict=True))) == found


HOLDS = """
import ctypes, re, sys, threading, time

def innocent():
    time.sleep(0.5)  # and then waits for the interpreter

def culprit():
    time.sleep(0.2)
    {culprit}

threads = [threading.Thread(target=f, daemon=True) for f in (innocent, culprit)]
for thread in threads:
    thread.start()
print(*(thread.native_id for thread in threads), flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
@pytest.mark.parametrize(
    "culprit", ["re.match('(a+)+$', 'a' * 40 + '!')", "ctypes.PyDLL(None).sleep(60)"], ids=["regex", "sleeping C"]
)
async def test_it_is_found_in_a_real_process(culprit: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDS.format(culprit=culprit), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        innocent, guilty = map(int, (await process.stdout.readline()).split())
        states: dict[int, ThreadState] = {}
        async with asyncio.timeout(20):
            while True:
                before, states = states, thread_states(process.pid, [process.pid, innocent, guilty])
                if holder(before, states) == guilty and states[process.pid] is states[innocent] is WAITS:
                    break
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()


def test_threads_are_read_as_they_were_written() -> None:
    memory = SharedMemory.create()
    table, reader = ThreadTable(memory.header), ManifestReader(memory)
    assert reader.threads() == {}
    for number in (1, MAX_THREADS, MAX_THREADS + 1):
        table.enter(number)
        table.note(number, 7)
    (thread,) = reader.threads().values()  # one thread in two places
    assert thread.seq == 7
    table.note(1, 0)
    table.note(MAX_THREADS, 0)
    assert reader.threads() == {}
    memory.close()
