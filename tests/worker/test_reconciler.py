"""Redis loses its data: an epoch counter in both stores detects it, and every queued job is rescheduled."""

import asyncio

import pytest

from cplane import ControlPlane, CplaneSettings, job
from cplane.jobs.states import Priority
from cplane.redis.keys import EPOCH, redis_name
from cplane.worker.reconciler import Reconciler
from tests.workers import DEADLINE_S, no_quarantines, raw, running


@job
async def epoch_add(x: int) -> int:
    return x + 1


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set page sizes so small that one page does not hold all queued records."""
    monkeypatch.setattr("cplane.worker.reconciler.PAGE_SIZE", 10)
    monkeypatch.setattr("cplane.worker.reconciler.OVERDUE_LIMIT", 5)


def reconciler(plane: ControlPlane, worker: str = "w") -> Reconciler:
    return Reconciler(worker, plane.store, plane.queue, plane.events, ["default"], quarantines=no_quarantines())


async def submit_75(plane: ControlPlane) -> None:
    """Submit 30 ready jobs, 30 delayed ones, some of each in every lane, and 15 in a queue that no worker serves."""
    for priority in Priority:
        await epoch_add.using(priority=priority).submit_many({"x": x} for x in range(10))
        await epoch_add.using(priority=priority, delay=3600).submit_many({"x": x} for x in range(10))
    await epoch_add.using(queue="elsewhere", delay=60).submit_many({"x": x} for x in range(15))


async def due_times(plane: ControlPlane) -> dict[str, dict[bytes, float]]:
    """Return the job ids of each lane with their due times, rounded to minutes."""
    held: dict[str, dict[bytes, float]] = {}
    for queue in ("default", "elsewhere"):
        for priority in Priority:
            lane = redis_name(queue, priority)
            held[lane] = {
                id_: round(due / 60_000) for id_, due in await raw(plane).zrange(lane, 0, -1, withscores=True)
            }
    return held


@pytest.mark.usefixtures("small_pages")
async def test_after_redis_is_wiped_the_next_pass_reschedules_ready_and_delayed_jobs(plane: ControlPlane) -> None:
    await reconciler(plane).run()
    await submit_75(plane)
    before = await due_times(plane)
    assert sum(map(len, before.values())) == 75
    await raw(plane).flushdb()
    await reconciler(plane).run()
    after = await due_times(plane)
    assert {lane: set(ids) for lane, ids in after.items()} == {lane: set(ids) for lane, ids in before.items()}
    for lane, ids in after.items():
        assert all(abs(due - before[lane][id_]) <= 1 for id_, due in ids.items())
    assert await plane.queue.epoch() == await plane.store.epoch() > 0


@pytest.mark.usefixtures("small_pages")
async def test_a_redis_that_was_rolled_back_is_detected_and_restored(plane: ControlPlane) -> None:
    first = reconciler(plane)
    for _ in range(5):
        await first.run()
    epoch = await plane.queue.epoch()
    await submit_75(plane)
    held = await due_times(plane)
    await raw(plane).set(EPOCH, epoch - 2)
    for lane in held:
        await raw(plane).delete(lane)
    await reconciler(plane).run()
    assert {lane: set(ids) for lane, ids in (await due_times(plane)).items()} == {
        lane: set(ids) for lane, ids in held.items()
    }
    assert await plane.queue.epoch() > epoch


@pytest.mark.parametrize("value", ["not a number", "-5", "1.5", ""])
async def test_a_malformed_epoch_counter_counts_as_lost_and_is_repaired(plane: ControlPlane, value: str) -> None:
    for _ in range(3):
        await reconciler(plane).run()
    epoch_before = await plane.store.epoch()
    await epoch_add.using(delay=3600).submit(1)
    await raw(plane).flushdb()
    await raw(plane).set(EPOCH, value)
    await reconciler(plane).run()
    assert await plane.queue.depth("default") == 1
    assert await plane.queue.epoch() == await plane.store.epoch() > epoch_before


async def test_nothing_is_restored_if_redis_lost_nothing(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[str] = []

    async def claim_restore(worker: str, for_s: float) -> bool:
        restored.append(worker)
        return True

    monkeypatch.setattr(plane.store, "claim_restore", claim_restore)
    await submit_75(plane)
    first, second = reconciler(plane, "a"), reconciler(plane, "b")
    for _ in range(3):
        await asyncio.gather(first.run(), second.run(), first.run())
    assert restored == []
    await raw(plane).delete(EPOCH)
    await first.run()
    assert set(restored) == {"a"}


@pytest.mark.usefixtures("small_pages")
async def test_only_one_worker_restores_at_a_time(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    await reconciler(plane).run()
    await submit_75(plane)
    await raw(plane).flushdb()
    restore_started, may_continue = asyncio.Event(), asyncio.Event()
    restoring: list[str] = []
    restore_all = Reconciler._restore_all  # pyright: ignore[reportPrivateUsage]  the test slows it down

    async def restore_slowly(self: Reconciler) -> None:
        restoring.append(self._worker)  # pyright: ignore[reportPrivateUsage]
        restore_started.set()
        await may_continue.wait()
        await restore_all(self)

    monkeypatch.setattr(Reconciler, "_restore_all", restore_slowly)
    first = asyncio.create_task(reconciler(plane, "first").run())
    await restore_started.wait()
    await asyncio.gather(*(reconciler(plane, f"other {n}").run() for n in range(3)))
    assert restoring == ["first"]
    may_continue.set()
    await first
    assert sum(map(len, (await due_times(plane)).values())) == 75
    await reconciler(plane, "late").run()
    assert restoring == ["first"], "the restore is already done"


async def test_another_worker_takes_over_a_restore_if_the_first_dies(plane: ControlPlane) -> None:
    await reconciler(plane).run()
    await submit_75(plane)
    await raw(plane).flushdb()
    assert await plane.store.claim_restore("dead", -1)
    assert await plane.store.claim_restore("dying", 3600)
    assert await plane.store.claim_restore("dying", -1), "the worker that restores may renew its claim"
    await reconciler(plane, "successor").run()
    assert sum(map(len, (await due_times(plane)).values())) == 75


async def test_jobs_run_even_if_redis_is_wiped_repeatedly(
    settings: CplaneSettings, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.worker.worker.RECONCILE_INTERVAL_S", 0.1)
    monkeypatch.setattr("cplane.worker.poller.POLL_INTERVAL_S", 0.05)  # a wiped wake list does not wake workers
    monkeypatch.setattr("cplane.plane.waiters.POLL_INTERVAL_S", 0.1)
    async with running(settings):
        for wave in range(3):
            handles = await epoch_add.using(delay=0.2).submit_many({"x": x} for x in range(20))
            await raw(plane).flushdb()
            results = await asyncio.gather(*(handle.result(DEADLINE_S) for handle in handles))
            assert results == [x + 1 for x in range(20)], f"wave {wave}"
