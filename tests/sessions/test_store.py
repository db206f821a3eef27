"""Browser sessions on real Postgres: one attempt at a time holds a session and reads its content."""

import asyncio
import random
import traceback
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlmodel import text

from cplane import ControlPlane, CplaneSettings
from cplane.errors import (
    InvalidSession,
    SecretKeyMissing,
    SecretUnreadable,
    SessionInUse,
    SessionNotFound,
    SessionTooLarge,
)
from cplane.jobs.states import AttemptState, Cause, State
from cplane.keyring import Keyring, new_key
from cplane.postgres.database import Database
from cplane.postgres.rows import Finish, NewRecord, Started
from cplane.postgres.store import Store
from cplane.runtime.ids import new_id
from cplane.sessions.storage_state import MAX_BYTES, empty
from cplane.sessions.store import SessionHold, SessionStore

OLD, NEW = new_key(), new_key()
LEASE_S = 30.0
EXPIRED_S = -1.0


def keyring(*keys: str) -> Keyring:
    return Keyring(SecretStr(",".join(keys)) if keys else None)


def state(value: str = "hunter2", size: int = 0) -> dict[str, Any]:
    cookie = {"name": "sid", "value": value, "domain": "example.com", "path": "/"}
    items = [{"name": "n", "value": "v" * size}]
    return {"cookies": [cookie], "origins": [{"origin": "https://example.com", "localStorage": items}]}


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(SecretStr(database_url)) as database:
        yield database


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


@pytest.fixture
def sessions(database: Database) -> SessionStore:
    return SessionStore(database, keyring(NEW))


async def start(store: Store, record_id: UUID | None = None, *, lease_s: float = LEASE_S) -> Started:
    if record_id is None:
        record_id = new_id()
        await store.submit([NewRecord(id=record_id, job="j", queue="q", args_json=b"{}")])
    (started,) = await store.start("w", [record_id], new_id().hex, lease_s)
    return started


async def finish(store: Store, started: Started, to: State = State.SUCCEEDED) -> None:
    attempt_state = AttemptState.SUCCEEDED if to is State.SUCCEEDED else AttemptState.RELEASED
    result = b"1" if to is State.SUCCEEDED else None
    end = Finish(
        id=started.id,
        attempt=started.attempt,
        token=started.token,
        state=to,
        attempt_state=attempt_state,
        result_json=result,
        cause=Cause.RELEASE,
    )
    assert await store.finish([end]) == {(started.id, started.attempt): to}


async def acquire(sessions: SessionStore, started: Started, name: str = "shop", **options: Any) -> SessionHold | None:
    return await sessions.acquire(name, started.id, started.attempt, **options)


async def held_by(sessions: SessionStore, started: Started, name: str = "shop") -> SessionHold:
    held = await acquire(sessions, started, name)
    assert held is not None
    return held


async def run(database: Database, statement: str) -> list[dict[str, Any]]:
    async with database.session() as session:
        result = await (await session.connection()).execute(text(statement))
        return [dict(row) for row in result.mappings()] if result.returns_rows else []


# holds


async def test_a_missing_session_is_created_empty_and_keeps_what_is_saved(store: Store, sessions: SessionStore) -> None:
    first = await start(store)
    held = await held_by(sessions, first)
    assert (held.name, held.version, held.storage_state) == ("shop", 0, empty())
    assert await sessions.save(held, state("one"))
    assert await sessions.save(held, state("two")), "a state may be saved several times"
    await finish(store, first)

    again = await held_by(sessions, await start(store))
    assert (again.version, again.storage_state) == (2, state("two"))


async def test_the_first_save_binds_a_session_to_its_hosts_and_an_import_to_those_of_its_content(
    store: Store, sessions: SessionStore
) -> None:
    first = await start(store)
    held = await held_by(sessions, first)
    assert held.binding.hosts is None
    held.visited.add("www.example.com")
    assert await sessions.save(held, state())
    held.visited.add("later.example.com")
    assert await sessions.save(held, state())
    assert (await sessions.get("shop")).hosts == ["example.com", "www.example.com"]
    await finish(store, first)

    other: dict[str, Any] = state() | {"origins": [{"origin": "https://other.example", "localStorage": []}]}
    info, _ = await sessions.put("shop", other)
    assert info.hosts == ["example.com", "other.example"]
    assert (await sessions.put("shop", empty()))[0].hosts is None


async def test_a_session_older_than_bindings_is_bound_to_what_it_stores(
    database: Database, store: Store, sessions: SessionStore
) -> None:
    await sessions.put("shop", state())
    await run(database, "UPDATE cplane.sessions SET hosts = NULL")
    held = await held_by(sessions, await start(store))
    assert held.binding.hosts == ("example.com",)
    assert await sessions.save(held, state())
    assert (await sessions.get("shop")).hosts == ["example.com"]


async def test_what_a_session_allows_is_set_as_a_whole_and_survives_an_import(
    store: Store, sessions: SessionStore
) -> None:
    info = await sessions.allow("shop", hosts=["IDP.example"], options=["proxy"])
    assert (info.version, info.allowed_hosts, info.allowed_options) == (0, ["idp.example"], ["proxy"])
    info, _ = await sessions.put("shop", state())
    assert (info.allowed_hosts, info.allowed_options) == (["idp.example"], ["proxy"])
    held = await held_by(sessions, await start(store))
    assert held.binding.permits("idp.example")
    info = await sessions.allow("shop", hosts=["*.example"])
    assert (info.allowed_hosts, info.allowed_options) == (["*.example"], [])
    with pytest.raises(InvalidSession, match="not a valid session name"):
        await sessions.allow("../x")


async def test_one_running_job_at_a_time_holds_a_session(store: Store, sessions: SessionStore) -> None:
    first, second = await start(store), await start(store)
    held = await held_by(sessions, first)
    assert await acquire(sessions, second) is None
    assert await acquire(sessions, second, "other") is not None
    await sessions.release(held)
    taken = await held_by(sessions, second)

    await sessions.release(held)
    assert not await sessions.save(held, state()), "a released hold cannot save"
    assert (await sessions.get("shop")).held_by == second.id
    assert await sessions.save(taken, state())


async def test_one_of_many_concurrent_callers_acquires_the_session(
    store: Store, sessions: SessionStore, database: Database
) -> None:
    for _ in range(5):
        running = [await start(store) for _ in range(8)]
        results = await asyncio.gather(*(acquire(sessions, started) for started in running))
        holders = [held for held in results if held is not None]
        assert len(holders) == 1
        assert (await sessions.get("shop")).held_by == holders[0].record_id
        await sessions.release(holders[0])
        await sessions.delete("shop")


async def test_acquiring_again_returns_the_same_hold(store: Store, sessions: SessionStore) -> None:
    started = await start(store)
    held = await held_by(sessions, started)
    await sessions.save(held, state())
    again = await held_by(sessions, started)
    assert (again.storage_state, again.version) == (state(), 1)
    assert await sessions.save(held, state("two")), "both objects represent the hold"


@pytest.mark.parametrize("ending", ["finished", "lease expired", "hold expired", "record deleted"])
async def test_a_hold_ends_without_a_release(
    store: Store, sessions: SessionStore, database: Database, ending: str
) -> None:
    first = await start(store)
    held = await acquire(sessions, first, hold_s=EXPIRED_S if ending == "hold expired" else 60)
    assert held is not None
    match ending:
        case "finished":
            await finish(store, first)
        case "lease expired":
            await run(database, "UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 s'")
        case "record deleted":
            await run(database, "DELETE FROM cplane.jobs")
        case _:
            pass
    assert (await sessions.get("shop")).held_by is None
    second = await start(store)
    taken = await held_by(sessions, second)
    assert not await sessions.save(held, state("late")), "the previous holder cannot save"
    assert await sessions.save(taken, state("mine"))
    assert (await held_by(sessions, second)).storage_state == state("mine")


async def test_a_newer_attempt_takes_over_and_the_older_one_is_fenced(store: Store, sessions: SessionStore) -> None:
    first = await start(store, lease_s=EXPIRED_S)
    assert await acquire(sessions, first) is None, "an expired lease cannot hold a session"
    await store.reap(10)
    second = await start(store, first.id)
    held = await held_by(sessions, second)
    await finish(store, second, State.QUEUED)
    assert not await sessions.save(held, state()), "an attempt that has ended cannot save"

    third = await start(store, first.id)
    assert third.attempt == 3
    assert await acquire(sessions, second) is None
    assert not await sessions.save(held, state()), "nor while the next attempt runs that has not acquired yet"
    taken = await held_by(sessions, third)
    assert not await sessions.save(held, state())
    await sessions.release(held)
    assert (await sessions.get("shop")).held_attempt == 3
    assert await sessions.save(taken, state())


async def test_a_save_after_the_lease_expired_is_kept_if_no_other_attempt_took_over(
    store: Store, sessions: SessionStore, database: Database
) -> None:
    started = await start(store)
    held = await held_by(sessions, started)
    await run(database, "UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 s'")
    assert await sessions.save(held, state()), "the record could still be finished as well"


async def test_an_attempt_that_does_not_run_cannot_acquire(store: Store, sessions: SessionStore) -> None:
    started = await start(store)
    assert await sessions.acquire("shop", new_id(), 1) is None
    assert await sessions.acquire("shop", started.id, started.attempt + 1) is None
    await finish(store, started)
    assert await acquire(sessions, started) is None
    assert await sessions.list() == []


async def test_a_holder_that_started_after_the_snapshot_keeps_its_session(
    store: Store, sessions: SessionStore, database: Database
) -> None:
    """While an acquire waits for the row lock, a job starts and takes the session: it must not be considered dead."""
    before = await start(store)
    await sessions.release(await held_by(sessions, before))
    second = await start(store)
    async with database.session() as session:
        connection = await session.connection()
        await connection.execute(text("SELECT FROM cplane.sessions FOR UPDATE"))
        pending = asyncio.create_task(acquire(sessions, second), name="second acquire")
        await until_a_lock_is_awaited(database)
        first = await start(store)
        await connection.execute(
            text(
                "UPDATE cplane.sessions SET held_by = :id, held_attempt = 1, held_since = clock_timestamp(), "
                "held_until = clock_timestamp() + interval '60 s'"
            ),
            {"id": first.id},
        )
    assert await pending is None
    assert (await sessions.get("shop")).held_by == first.id


class Users:
    """Jobs that share a session.

    Each appends its mark to the content, then finishes, releases, dies, or saves too late.
    """

    def __init__(self, store: Store, sessions: SessionStore, database: Database, seed: int) -> None:
        self._store, self._sessions, self._database = store, sessions, database
        self._random = random.Random(seed)
        self._late = list[tuple[SessionHold, str]]()
        self.kept = list[str]()
        """The marks whose save returned True."""

    async def work(self, user: int, rounds: int) -> None:
        for number in range(rounds):
            started, mark = await start(self._store), f"{user}.{number}"
            while (held := await acquire(self._sessions, started)) is None:
                await asyncio.sleep(0)
            ending = self._random.choice([self._finish, self._release, self._die, self._save_late])
            await ending(started, held, mark)
            if self._late and self._random.random() < 0.5:
                await self._save(*self._late.pop())

    async def _save(self, held: SessionHold, mark: str) -> None:
        if await self._sessions.save(held, state(f"{value_of(held)} {mark}")):
            self.kept.append(mark)

    async def _finish(self, started: Started, held: SessionHold, mark: str) -> None:
        await self._save(held, mark)
        await finish(self._store, started)

    async def _release(self, started: Started, held: SessionHold, mark: str) -> None:
        await self._save(held, mark)
        await self._sessions.release(held)
        await self._save(held, "after the release")

    async def _die(self, started: Started, held: SessionHold, mark: str) -> None:
        await expire(self._database, started)

    async def _save_late(self, started: Started, held: SessionHold, mark: str) -> None:
        await expire(self._database, started)
        self._late.append((held, mark))


@pytest.mark.parametrize("seed", range(4))
async def test_no_save_is_lost_when_jobs_die_or_save_too_late(
    store: Store, sessions: SessionStore, database: Database, seed: int
) -> None:
    users = Users(store, sessions, database, seed)
    async with asyncio.TaskGroup() as group:
        for user in range(4):
            group.create_task(users.work(user, 6), name=f"user {user}")
    held = await held_by(sessions, await start(store))
    assert sorted(value_of(held).split()) == sorted(users.kept)
    assert held.version == len(users.kept) > 0


def value_of(held: SessionHold) -> str:
    cookies: Any = held.storage_state["cookies"]
    return str(cookies[0]["value"]) if cookies else ""


async def expire(database: Database, started: Started) -> None:
    await run(
        database, f"UPDATE cplane.jobs SET lease_until = clock_timestamp() - interval '1 s' WHERE id = '{started.id}'"
    )


async def until_a_lock_is_awaited(database: Database) -> None:
    async with asyncio.timeout(30):
        while not await run(
            database,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        ):
            await asyncio.sleep(0)


# administration


async def test_a_held_session_cannot_be_replaced_or_deleted(store: Store, sessions: SessionStore) -> None:
    started = await start(store)
    held = await held_by(sessions, started)
    for change in (sessions.put("shop", state()), sessions.delete("shop")):
        with pytest.raises(SessionInUse, match="a running job holds the session 'shop'") as caught:
            await change
        assert caught.value.hint
    await finish(store, started)
    info, created = await sessions.put("shop", state("three"))
    assert (info.version, created, info.held_by) == (1, False, None)
    assert not await sessions.save(held, state())
    await sessions.delete("shop")
    with pytest.raises(SessionNotFound, match="there is no session 'shop'"):
        await sessions.get("shop")
    with pytest.raises(SessionNotFound):
        await sessions.delete("shop")


async def test_the_next_job_gets_an_imported_state(store: Store, sessions: SessionStore) -> None:
    info, created = await sessions.put("shop:jane@example.com", state("a"))
    assert (created, info.version, info.used_at) == (True, 1, None)
    info, created = await sessions.put("shop:jane@example.com", state("b"))
    assert (created, info.version) == (False, 2)
    held = await held_by(sessions, await start(store), "shop:jane@example.com")
    assert (held.storage_state, held.version) == (state("b"), 2)


async def test_the_list_is_sorted_by_name_and_paged(store: Store, sessions: SessionStore) -> None:
    for name in ("b", "B", "a_1", "a.1", "c"):
        await sessions.put(name, state())
    held = await held_by(sessions, await start(store), "a.1")
    first = await sessions.list(limit=3)
    rest = await sessions.list(after=first[-1].name)
    assert [info.name for info in (*first, *rest)] == ["B", "a.1", "a_1", "b", "c"]
    info = first[1]
    assert (info.held_by, info.held_attempt, info.version) == (held.record_id, 1, 1)
    assert info.used_at is not None
    assert info.size == len('{"cookies":[{"name":"sid","value":"hunter2","domain":"example.com","path":"/"}],') + len(
        '"origins":[{"origin":"https://example.com","localStorage":[{"name":"n","value":""}]}]}'
    )
    assert info.key_id == sessions.keyring.first


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "ä", "x" * 201, "a\n", "a\0", "a?b"])
async def test_an_invalid_name_is_rejected(sessions: SessionStore, name: str) -> None:
    for use in (sessions.put(name, state()), sessions.acquire(name, new_id(), 1)):
        with pytest.raises(InvalidSession, match="not a valid session name") as caught:
            await use
        assert caught.value.hint
    with pytest.raises(SessionNotFound):
        await sessions.get(name)
    with pytest.raises(SessionNotFound):
        await sessions.delete(name)


async def test_an_invalid_or_too_large_state_is_rejected_and_the_session_unchanged(
    store: Store, sessions: SessionStore
) -> None:
    held = await held_by(sessions, await start(store))
    await sessions.save(held, state("good"))
    for use in (sessions.save(held, {"x": 1}), sessions.put("other", {"cookies": 1})):
        with pytest.raises(InvalidSession):
            await use
    for use in (sessions.save(held, state(size=MAX_BYTES)), sessions.put("other", state(size=MAX_BYTES))):
        with pytest.raises(SessionTooLarge):
            await use
    assert [(info.name, info.version) for info in await sessions.list()] == [("shop", 1)]
    large = state(size=MAX_BYTES - 1000)
    assert await sessions.save(held, large)
    again = await sessions.acquire("shop", held.record_id, held.attempt)
    assert again is not None
    assert again.storage_state == large


# keys


async def test_a_rotation_encrypts_with_the_first_key_and_keeps_unreadable_sessions(
    store: Store, database: Database
) -> None:
    old, both, new = (SessionStore(database, keyring(*keys)) for keys in ((OLD,), (NEW, OLD), (NEW,)))
    lost = SessionStore(database, keyring(new_key()))
    for number in range(5):
        await old.put(f"s{number}", state(str(number)))
    await lost.put("s2x", state())
    await new.put("s9", state("9"))
    started = await start(store)
    held = await held_by(both, started, "s3")
    assert await both.keys() == {old.keyring.first: 5, new.keyring.first: 1, lost.keyring.first: 1}

    rotated = [each async for each in both.rotate()]
    assert [each.name for each in rotated] == ["s0", "s1", "s2", "s2x", "s3", "s4"]
    assert [each.name for each in rotated if each.problem is not None] == ["s2x"]
    assert await both.keys() == {new.keyring.first: 6, lost.keyring.first: 1}
    assert [info.version for info in await new.list()] == [1] * 7, "a rotation is not a save"
    for number in (0, 1, 2, 4, 9):
        assert (await held_by(new, await start(store), f"s{number}")).storage_state == state(str(number))
    assert await both.save(held, state("saved")), "a hold outlives a rotation"
    assert [each.name async for each in both.rotate()] == ["s2x"]


async def test_a_save_during_a_rotation_is_not_overwritten(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, both = SessionStore(database, keyring(OLD)), SessionStore(database, keyring(NEW, OLD))
    await old.put("shop", state("before"))
    held = await held_by(old, await start(store))
    decrypt, saved = both.keyring.decrypt, asyncio.Event()
    loop = asyncio.get_running_loop()

    def save_concurrently(*args: Any) -> bytes:
        if not saved.is_set():
            asyncio.run_coroutine_threadsafe(old.save(held, state("after")), loop).result(30)
            loop.call_soon_threadsafe(saved.set)
        return decrypt(*args)

    monkeypatch.setattr(both.keyring, "decrypt", save_concurrently)
    assert [each.name async for each in both.rotate()] == ["shop"]
    assert await both.keys() == {both.keyring.first: 1}
    again = await both.acquire("shop", held.record_id, held.attempt)
    assert again is not None
    assert again.storage_state == state("after")


async def test_without_its_key_a_session_is_unreadable_and_without_any_key_none_is_created(
    store: Store, sessions: SessionStore, database: Database
) -> None:
    await sessions.put("shop", state())
    started = await start(store)
    with pytest.raises(SecretUnreadable, match="'shop' is encrypted with the key"):
        await acquire(SessionStore(database, keyring(OLD)), started)
    keyless = SessionStore(database, keyring())
    for use in (keyless.acquire("new", started.id, 1), keyless.put("new", state()), anext(keyless.rotate())):
        with pytest.raises(SecretKeyMissing):
            await use
    assert [info.name for info in await keyless.list()] == ["shop"]
    await finish(store, started)
    await keyless.delete("shop")


async def test_a_session_renamed_in_the_database_cannot_be_read(
    store: Store, sessions: SessionStore, database: Database
) -> None:
    await sessions.put("mine", state())
    await run(database, "UPDATE cplane.sessions SET name = 'yours'")
    with pytest.raises(SecretUnreadable, match="'yours' was changed in the database, or belongs to another name"):
        await acquire(sessions, await start(store), "yours")


async def test_the_content_of_a_session_is_never_shown(
    store: Store, sessions: SessionStore, database: Database, capfd: pytest.CaptureFixture[str]
) -> None:
    held = await held_by(sessions, await start(store))
    await sessions.save(held, state("hunter2"))
    again = await sessions.acquire("shop", held.record_id, held.attempt)
    shown = repr((sessions, sessions.keyring, again, await sessions.list(), asdict(await sessions.get("shop"))))
    await run(database, "UPDATE cplane.sessions SET ciphertext = substr(ciphertext, 2)")
    for use in (sessions.acquire("shop", held.record_id, 1), sessions.save(held, {"cookies": ["hunter2"]})):
        with pytest.raises((SecretUnreadable, InvalidSession)) as caught:
            await use
        shown += "".join(traceback.format_exception(caught.value))
    stored = await run(database, "SELECT row_to_json(sessions)::text AS row FROM cplane.sessions")
    output = capfd.readouterr()
    for secret in ("hunter2", NEW.rstrip("=")):
        assert secret not in shown + str(stored) + output.out + output.err
    assert "shop" in shown


async def test_the_control_plane_uses_the_keys_of_the_settings(settings: CplaneSettings) -> None:
    async with ControlPlane(settings.model_copy(update={"secret_key": SecretStr(NEW)})) as plane:
        await plane.sessions.put("shop", state())
        held = await held_by(plane.sessions, await start(plane.store))
        assert held.storage_state == state()
