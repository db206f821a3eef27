"""No job hurts its neighbour: innocent jobs run next to every offender, on two workers that are started once.

Offenders that leave their process alive run together, the others one after the other; each of those ends one process.
`python -m tests.neighbours` gives each offender innocents of its own, and lets it die until it has failed for good.
"""

import asyncio
import time

import pytest

from cplane import CplaneSettings, State
from tests.keepers import DEADLINE_S, load_factor
from tests.neighbours.cases import CASES, STAYING
from tests.neighbours.cluster import Cluster, open_cluster
from tests.neighbours.measures import HARM_S, STOPPED_S, rerun_after_kill
from tests.neighbours.trial import run_trial, until_whole

INNOCENTS = 200
FEWER = 80
SLOW = {"4 GB allocation", "C extension that never returns"}
"""The first needs more memory than CI has, the second is the regex's case again."""

TOGETHER = [offender for offender in CASES if not offender.kills and offender.name not in SLOW]
IN_TURN = [offender for offender in CASES if offender.kills and offender.name not in SLOW]


@pytest.mark.timeout(400)
async def test_no_job_hurts_its_neighbour(settings: CplaneSettings) -> None:
    async with open_cluster(settings, quick=True) as cluster:
        await until_whole(cluster, time.time())
        together = await run_trial(cluster, TOGETHER, INNOCENTS)
        # next to several threads, a keeper does not know which of them ended or holds the interpreter
        in_turn = await run_trial(cluster, IN_TURN, FEWER, in_turn=True, threads=False)
        again = await rerun_after_kill(cluster)
        stopped_s = await stop_with_offenders_aboard(cluster)
    factor = load_factor()
    assert together.misses(factor) == []
    assert together.interrupted == 0, "none of their processes died"
    assert in_turn.misses(factor) == []
    assert again.measured_s < again.target_s * factor
    assert stopped_s < STOPPED_S * factor


async def stop_with_offenders_aboard(cluster: Cluster) -> float:
    """Stop both workers while offenders are aboard, and return how many seconds that took. Nothing runs then."""
    handles = await cluster.submit([each.call(cluster.url, quick=True) for each in STAYING if not each.blocks] * 2)
    async with asyncio.timeout(DEADLINE_S):
        while State.QUEUED in [await handle.state() for handle in handles]:
            await asyncio.sleep(0.02)
    handles += await cluster.submit([each.call(cluster.url, quick=True) for each in STAYING if each.blocks] * 2)
    await asyncio.sleep(HARM_S)
    stopped_s = await asyncio.gather(*(keeper.stop() for keeper in cluster.keepers))
    assert State.RUNNING not in [await handle.state() for handle in handles]
    return max(stopped_s)
