"""The rescue on real servers: leases are renewed, and what was aboard of a dead process is requeued, by fence."""

from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import pytest
import pytest_asyncio

from cplane import ControlPlane, CplaneSettings, State, job
from cplane.jobs.names import quarantine_of
from cplane.jobs.states import ALONE_AFTER, MAX_CRASHES, AttemptState, Cause
from cplane.keeper.blame import Death
from cplane.keeper.channel import Hello
from cplane.keeper.manifest import Entry
from cplane.keeper.rescue import Rescue, open_rescue
from cplane.keeper.servers import Servers
from cplane.postgres.database import connect_arguments
from cplane.postgres.models import JobRecord
from cplane.redis.envelope import decode_envelope
from cplane.redis.messages import Lease

LEASE_S = 30.0
ALONE = quarantine_of("default")
CRASH = Death(3, step=1)
KILLED = Death(-9, step=0)


@job
async def rescue_me(n: int) -> int:
    return n


@job(record=False)
async def rescue_me_too(n: int) -> int:
    return n


@pytest.fixture
def addresses(settings: CplaneSettings) -> Servers:
    return Servers(settings.redis_url.get_secret_value(), connect_arguments(settings.database_url), LEASE_S)


@pytest_asyncio.fixture
async def rescue(addresses: Servers) -> AsyncIterator[Rescue]:
    async with open_rescue(addresses) as rescue:
        yield rescue


async def claimed(plane: ControlPlane, capacity: int = 10, *, queue: str = "default") -> list[Lease]:
    return (await plane.queue.claim(queue, capacity, LEASE_S)).leases


async def aboard(plane: ControlPlane, number: int, *, recorded: bool = True, **options: object) -> list[Entry]:
    """Submit jobs, and have them leased and started by a worker that does not run them."""
    await (rescue_me if recorded else rescue_me_too).submit_many([{"n": n} for n in range(number)])
    leases = await claimed(plane)
    assert len(leases) == number
    if recorded:
        await plane.store.start("w", [UUID(lease.id) for lease in leases], leases[0].token, LEASE_S)
    return [
        Entry(seq, lease, int(recorded), recorded, "rescue_me", 3.0, in_thread=False, retries_left=1)
        for seq, lease in enumerate(leases, 1)
    ]


async def records(plane: ControlPlane, entries: Sequence[Entry]) -> list[JobRecord]:
    return [await plane.store.get(UUID(entry.lease.id)) for entry in entries]


async def test_the_guilty_pays_and_the_innocent_do_not(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 3)
    assert await rescue.requeue(entries, CRASH) == 3
    guilty, *innocent = await records(plane, entries)
    assert (guilty.state, guilty.crashes, guilty.interruptions, guilty.cause) == (State.QUEUED, 1, 0, Cause.LOST)
    assert guilty.error_message == "its worker process exited with code 3, while 'rescue_me' was running"
    for record in innocent:
        assert (record.state, record.crashes, record.interruptions, record.failures) == (State.QUEUED, 0, 0, 0)
        assert record.cause is Cause.INFRASTRUCTURE
    attempts = [(await plane.store.attempts(record.id))[0].state for record in (guilty, *innocent)]
    assert attempts == [AttemptState.LOST, AttemptState.INTERRUPTED, AttemptState.INTERRUPTED]


async def test_all_are_ready_again_at_once(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 3) + await aboard(plane, 2, recorded=False)
    entries = [Entry(n, *_rest(entry)) for n, entry in enumerate(entries, 1)]
    await rescue.requeue(entries, CRASH)
    assert {lease.id for lease in await claimed(plane)} == {entry.lease.id for entry in entries}


async def test_a_job_fails_that_caused_three_crashes(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2)
    guilty = UUID(entries[0].lease.id)
    for crash in range(1, MAX_CRASHES + 1):
        await rescue.requeue(entries, CRASH)
        assert (await plane.store.get(guilty)).crashes == crash
        if crash < MAX_CRASHES:
            entries = await again(plane, entries)
    record = await plane.store.get(guilty)
    assert (record.state, record.finished_at is not None) == (State.FAILED, True)
    assert [lease.id for lease in await claimed(plane)] == [entries[1].lease.id], "only the innocent one is there"


async def again(plane: ControlPlane, entries: Sequence[Entry]) -> list[Entry]:
    """Start the same attempts once more, wherever they wait."""
    leases: dict[str, Lease] = {}
    numbers: dict[str, int] = {}
    for queue in ("default", ALONE):
        found = await claimed(plane, queue=queue)
        leases |= {lease.id: lease for lease in found}
        ids = [UUID(entry.lease.id) for entry in entries if entry.recorded and entry.lease.id in leases]
        if found and ids:
            started = await plane.store.start("w", ids, found[0].token, LEASE_S, alone=queue == ALONE)
            numbers |= {str(each.id): each.attempt for each in started}
    return [
        Entry(e.seq, leases[e.lease.id], numbers.get(e.lease.id, 0), *_rest(e)[2:])
        for e in entries
    ]  # fmt: skip


def _rest(entry: Entry) -> tuple[Lease, int, bool, str, float, bool, int]:
    return (
        entry.lease, entry.attempt, entry.recorded, entry.job, entry.timeout_s, entry.in_thread, entry.retries_left
    )  # fmt: skip


@pytest.mark.parametrize("recorded", [True, False])
async def test_after_two_crashes_whose_cause_is_unknown_jobs_run_alone(
    plane: ControlPlane, rescue: Rescue, recorded: bool
) -> None:
    entries = await aboard(plane, 2, recorded=recorded)
    await rescue.requeue(entries, KILLED)
    assert await rescue.quarantined(["default"]) == []
    entries = await again(plane, entries)
    await rescue.requeue(entries, KILLED)
    assert await rescue.quarantined(["default"]) == ["default"]
    assert await claimed(plane) == [], "they do not run in company"
    assert {lease.id for lease in await claimed(plane, queue=ALONE)} == {entry.lease.id for entry in entries}


async def test_only_crashes_while_alone_fail_a_job(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2)
    for _ in range(ALONE_AFTER):
        await rescue.requeue(entries, KILLED)
        entries = await again(plane, entries)
    suspect = UUID(entries[0].lease.id)
    for crash in range(1, MAX_CRASHES + 1):
        await rescue.requeue(entries[:1], KILLED)
        record = await plane.store.get(suspect)
        assert (record.suspicions, record.crashes) == (ALONE_AFTER, crash)
        if crash < MAX_CRASHES:
            entries[:1] = await again(plane, entries[:1])
    record = await plane.store.get(suspect)
    assert (record.state, record.error_type) == (State.FAILED, "WorkerLost")
    assert (await plane.store.get(UUID(entries[1].lease.id))).state is State.RUNNING


async def test_the_crashes_of_a_transient_job_in_company_are_forgiven(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2, recorded=False)
    await rescue.requeue(entries, KILLED)
    entries = await again(plane, entries)
    await rescue.requeue(entries, CRASH)
    (first,) = await claimed(plane, queue=ALONE)
    envelope = decode_envelope(first.payload)
    assert (first.tries, envelope.suspicions, envelope.crashes) == (3, 1, 1)


async def test_who_held_the_loop_too_long_pays_a_retry_or_fails(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2)
    held = Death(-9, step=1, blamed=1, killed_for="'rescue_me' held the event loop for 9 s", timed_out=True)
    await rescue.requeue(entries, held)
    record = await plane.store.get(UUID(entries[0].lease.id))
    assert (record.state, record.failures, record.cause) == (State.QUEUED, 1, Cause.RETRY)
    entries = await again(plane, entries)
    without_retries = Entry(1, *_rest(entries[0])[:-1], 0)
    await rescue.requeue([without_retries, entries[1]], held)
    record = await plane.store.get(UUID(entries[0].lease.id))
    assert (record.state, record.error_type) == (State.FAILED, "JobTimeout")
    (first, last) = await plane.store.attempts(record.id)
    assert (first.state, last.state) == (AttemptState.TIMED_OUT, AttemptState.TIMED_OUT)


async def test_a_wanted_cancel_is_followed(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2)
    await plane.store.cancel(UUID(entries[1].lease.id))
    await rescue.requeue(entries, CRASH)
    assert (await plane.store.get(UUID(entries[1].lease.id))).state is State.CANCELLED
    assert [lease.id for lease in await claimed(plane)] == [entries[0].lease.id]


async def test_what_has_ended_or_runs_elsewhere_is_not_touched(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2)
    await rescue.requeue(entries, KILLED)
    newer = await again(plane, entries)
    assert await rescue.requeue(entries, CRASH) == 0
    for record in await records(plane, newer):
        assert (record.state, record.attempt, record.crashes) == (State.RUNNING, 2, 0)


async def test_transient_jobs_pay_with_their_tries(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 3, recorded=False)
    assert [entry.lease.tries for entry in entries] == [1, 1, 1]
    await rescue.requeue(entries, CRASH)
    tries = {lease.id: lease.tries for lease in await claimed(plane)}
    assert [tries[entry.lease.id] for entry in entries] == [2, 1, 1]


async def test_a_transient_job_notes_an_unknown_cause_as_a_suspicion(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2, recorded=False)
    await rescue.requeue([Entry(e.seq, _without_payload(e.lease), *_rest(e)[1:]) for e in entries], KILLED)
    for lease in await claimed(plane):
        assert (lease.tries, decode_envelope(lease.payload).suspicions) == (2, 1)


def _without_payload(lease: Lease) -> Lease:
    return Lease(lease.queue, lease.priority, lease.id, b"", lease.tries, lease.due, lease.token)


async def test_renewals_say_whose_leases_are_lost(plane: ControlPlane, rescue: Rescue) -> None:
    entries = await aboard(plane, 2) + await aboard(plane, 1, recorded=False)
    entries = [Entry(n, *_rest(entry)) for n, entry in enumerate(entries, 1)]
    assert await rescue.renew(entries) == {1, 2, 3}
    await rescue.requeue(entries[:1], KILLED)
    assert await rescue.renew(entries) == {2, 3}


@pytest.mark.parametrize("dead", [False, True])
async def test_what_was_leased_but_has_not_begun_is_released(
    plane: ControlPlane, rescue: Rescue, addresses: Servers, dead: bool
) -> None:
    begun = await aboard(plane, 1)
    started = await aboard(plane, 1)
    await rescue_me_too.submit_many([{"n": 1}, {"n": 2}])
    leased = await claimed(plane)
    hello = Hello("w", addresses, ("default",), plane.queue.prefix, 25.0)
    assert await rescue.release_unboarded(hello, begun, dead=dead) == 3
    free = {lease.id for lease in await claimed(plane)}
    assert free == {entry.lease.id for entry in started} | {lease.id for lease in leased}
    (record,) = await records(plane, started)
    assert (record.state, record.crashes) == (State.QUEUED if dead else State.RUNNING, 0)
