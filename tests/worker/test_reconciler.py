"""A Redis that lost its memory: it is noticed by a counter in both stores, and everything queued is scheduled again."""

import asyncio

import pytest

from cplane import ControlPlane, CplaneSettings, job
from cplane.jobs.states import Priority
from cplane.redis.keys import EPOCH, redis_name
from cplane.worker.reconciler import Reconciler
from tests.workers import DEADLINE_S, raw, running


@job
async def epoch_add(x: int) -> int:
    return x + 1


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages so small that one pass over the queued records does not see them all."""
    monkeypatch.setattr("cplane.worker.reconciler.PAGE_SIZE", 10)
    monkeypatch.setattr("cplane.worker.reconciler.OVERDUE_LIMIT", 5)


def reconciler(plane: ControlPlane, worker: str = "w") -> Reconciler:
    return Reconciler(worker, plane.store, plane.queue, plane.events, ["default"])


async def submit_some(plane: ControlPlane) -> None:
    """30 that are due, 30 that are due in future, some of each in every lane, and some in a queue that nobody serves."""
    for priority in Priority:
        await epoch_add.using(priority=priority).submit_many({"x": x} for x in range(10))
        await epoch_add.using(priority=priority, delay=3600).submit_many({"x": x} for x in range(10))
    await epoch_add.using(queue="elsewhere", delay=60).submit_many({"x": x} for x in range(15))


async def scores(plane: ControlPlane) -> dict[str, dict[bytes, float]]:
    """What each lane holds, with due times to the tenth of a minute."""
    held: dict[str, dict[bytes, float]] = {}
    for queue in ("default", "elsewhere"):
        for priority in Priority:
            lane = redis_name(queue, priority)
            held[lane] = {
                id_: round(due / 60_000) for id_, due in await raw(plane).zrange(lane, 0, -1, withscores=True)
            }
    return held


@pytest.mark.usefixtures("small_pages")
async def test_everything_is_scheduled_again_by_the_next_pass_what_is_due_in_future_too(plane: ControlPlane) -> None:
    await reconciler(plane).run()
    await submit_some(plane)
    before = await scores(plane)
    assert sum(map(len, before.values())) == 75
    await raw(plane).flushdb()
    await reconciler(plane).run()
    after = await scores(plane)
    assert {lane: set(ids) for lane, ids in after.items()} == {lane: set(ids) for lane, ids in before.items()}
    for lane, ids in after.items():
        assert all(abs(due - before[lane][id_]) <= 1 for id_, due in ids.items())
    assert await plane.queue.epoch() == await plane.store.epoch() > 0


@pytest.mark.usefixtures("small_pages")
async def test_a_redis_that_was_rolled_back_is_noticed(plane: ControlPlane) -> None:
    ours = reconciler(plane)
    for _ in range(5):
        await ours.run()
    epoch = await plane.queue.epoch()
    await submit_some(plane)
    held = await scores(plane)
    await raw(plane).set(EPOCH, epoch - 2)
    for lane in held:
        await raw(plane).delete(lane)
    await reconciler(plane).run()
    assert {lane: set(ids) for lane, ids in (await scores(plane)).items()} == {
        lane: set(ids) for lane, ids in held.items()
    }
    assert await plane.queue.epoch() > epoch


@pytest.mark.parametrize("value", ["no number", "-5", "1.5", ""])
async def test_a_counter_that_is_none_counts_as_lost_and_is_set_right(plane: ControlPlane, value: str) -> None:
    for _ in range(3):
        await reconciler(plane).run()
    noted = await plane.store.epoch()
    await epoch_add.using(delay=3600).submit(1)
    await raw(plane).flushdb()
    await raw(plane).set(EPOCH, value)
    await reconciler(plane).run()
    assert await plane.queue.depth("default") == 1
    assert await plane.queue.epoch() == await plane.store.epoch() > noted


async def test_nothing_is_restored_when_nothing_was_lost(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[str] = []

    async def claim_restore(worker: str, for_s: float) -> bool:
        restored.append(worker)
        return True

    monkeypatch.setattr(plane.store, "claim_restore", claim_restore)
    await submit_some(plane)
    ours, others = reconciler(plane, "a"), reconciler(plane, "b")
    for _ in range(3):
        await asyncio.gather(ours.run(), others.run(), ours.run())
    assert restored == []
    await raw(plane).delete(EPOCH)
    await ours.run()
    assert set(restored) == {"a"}


@pytest.mark.usefixtures("small_pages")
async def test_one_worker_restores_while_the_others_leave_it_alone(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await reconciler(plane).run()
    await submit_some(plane)
    await raw(plane).flushdb()
    under_way, go_on = asyncio.Event(), asyncio.Event()
    restoring: list[str] = []
    restore_all = Reconciler._restore_all  # pyright: ignore[reportPrivateUsage]  it is what is to be slow

    async def slowly(self: Reconciler) -> None:
        restoring.append(self._worker)  # pyright: ignore[reportPrivateUsage]
        under_way.set()
        await go_on.wait()
        await restore_all(self)

    monkeypatch.setattr(Reconciler, "_restore_all", slowly)
    first = asyncio.create_task(reconciler(plane, "first").run())
    await under_way.wait()
    await asyncio.gather(*(reconciler(plane, f"other {n}").run() for n in range(3)))
    assert restoring == ["first"]
    go_on.set()
    await first
    assert sum(map(len, (await scores(plane)).values())) == 75
    await reconciler(plane, "later").run()
    assert restoring == ["first"], "it is done"


async def test_who_dies_while_restoring_is_followed_by_another(plane: ControlPlane) -> None:
    await reconciler(plane).run()
    await submit_some(plane)
    await raw(plane).flushdb()
    assert await plane.store.claim_restore("dead", -1)
    assert await plane.store.claim_restore("dying", 3600)
    assert await plane.store.claim_restore("dying", -1), "whoever restores may ask again"
    await reconciler(plane, "heir").run()
    assert sum(map(len, (await scores(plane)).values())) == 75


async def test_jobs_run_although_redis_is_wiped_again_and_again(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.RECONCILE_INTERVAL_S", 0.1)
    monkeypatch.setattr("cplane.worker.poller.POLL_INTERVAL_S", 0.05)  # a wake list that is wiped wakes nobody
    monkeypatch.setattr("cplane.plane.waiters.POLL_INTERVAL_S", 0.1)
    async with running(settings):
        for wave in range(3):
            handles = await epoch_add.using(delay=0.2).submit_many({"x": x} for x in range(20))
            await raw(plane).flushdb()
            results = await asyncio.gather(*(handle.result(DEADLINE_S) for handle in handles))
            assert results == [x + 1 for x in range(20)], f"wave {wave}"
