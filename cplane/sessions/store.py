"""Browser sessions in Postgres: encrypted, each held by one attempt at a time.

A hold ends by itself: when its record no longer runs with that attempt, when the record's lease ends, at the latest after `hold_s`.
What a session holds leaves only towards whoever acquired it; everybody else sees its metadata.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from cplane.errors import InvalidSession, SecretUnreadable, SessionInUse, SessionNotFound
from cplane.jobs.names import SESSION_NAME
from cplane.keyring import Keyring, Sealed
from cplane.postgres.database import Database
from cplane.sessions import statements, storage_state
from cplane.sessions.storage_state import StorageState

HOLD_S = 86_400.0
"""After so long a session is free again, whatever its holder does."""


@dataclass(frozen=True, slots=True)
class Held:
    """A session that one attempt of a record holds."""

    name: str
    record_id: UUID
    attempt: int
    version: int
    """How often it was saved; 0: it is empty."""
    storage_state: StorageState = field(repr=False)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What may be known of a session: nothing of what it holds."""

    name: str
    size: int
    """Bytes of its JSON."""
    version: int
    """How often it was saved; 0: it is empty."""
    key_id: str | None
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None
    held_by: UUID | None
    held_attempt: int | None


@dataclass(frozen=True, slots=True)
class Rotated:
    """One session that a rotation came by: `problem` says why it could not be encrypted anew."""

    name: str
    problem: str | None = None


class Sessions:
    """The verbs. Every one raises DatabaseUnavailable within 6 seconds when Postgres does not answer."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self.keyring = keyring

    # what a worker does

    async def acquire(self, name: str, record_id: UUID, attempt: int, *, hold_s: float = HOLD_S) -> Held | None:
        """Hold a session for a running attempt; one that is missing is made, empty. Asking again answers the same hold.

        None: another running job holds it, or the asker itself is not running (any more). A newer attempt of a record takes over from
        the one before. A record is needed: transient jobs cannot hold a session.

        Raises:
            InvalidSession: this cannot be the name of a session.
            SecretKeyMissing: there is no key.
            SecretUnreadable: it is encrypted with a key that is not set, or was changed.
        """
        check_name(name)
        _ = self.keyring.first
        values = {"name": name, "record_id": record_id, "attempt": attempt, "hold_s": hold_s}
        rows = await self._database.fetch(statements.ACQUIRE, values)
        if not rows:
            return None
        state = await asyncio.to_thread(self._open, name, rows[0])
        return Held(name, record_id, attempt, rows[0]["version"], state)

    async def save(self, held: Held, state: Mapping[str, Any]) -> bool:
        """Keep the state, while the record runs: before it is finished. False: the attempt no longer holds the session; nothing was kept.

        Raises:
            InvalidSession: it is no storage_state.
            SessionTooLarge: it has more than 5 MiB.
        """
        values = {"name": held.name, "record_id": held.record_id, "attempt": held.attempt}
        return bool(await self._database.fetch(statements.SAVE, values | await self._sealed(held.name, state)))

    async def release(self, held: Held) -> None:
        """Let go of a session; of one that is no longer held, nothing happens."""
        values = {"name": held.name, "record_id": held.record_id, "attempt": held.attempt}
        await self._database.fetch(statements.RELEASE, values)

    # what those do who look after them

    async def list(self, *, after: str = "", limit: int = 100) -> list[SessionInfo]:
        """Sessions by name, those after the name `after`."""
        rows = await self._database.fetch(statements.LIST, {"after": after, "limit": limit})
        return [SessionInfo(**row) for row in rows]

    async def get(self, name: str) -> SessionInfo:
        """One session.

        Raises:
            SessionNotFound: there is none of that name.
        """
        rows = await self._database.fetch(statements.GET, {"name": name}) if SESSION_NAME.fullmatch(name) else []
        if not rows:
            raise SessionNotFound(f"there is no session '{name}'", hint="`cplane sessions list` shows those there are")
        return SessionInfo(**rows[0])

    async def put(self, name: str, state: Mapping[str, Any]) -> tuple[SessionInfo, bool]:
        """Keep a state from elsewhere under a name, in the place of what was there. Answers too whether the session is new.

        Raises:
            InvalidSession: it is no storage_state, or this cannot be the name of a session.
            SessionTooLarge: it has more than 5 MiB.
            SessionInUse: a running job holds the session.
            SecretKeyMissing: there is no key.
        """
        check_name(name)
        rows = await self._database.fetch(statements.PUT, {"name": name, **await self._sealed(name, state)})
        if not rows:
            raise _in_use(name)
        return SessionInfo(**{key: value for key, value in rows[0].items() if key != "created"}), rows[0]["created"]

    async def delete(self, name: str) -> None:
        """Forget a session.

        Raises:
            SessionNotFound: there is none of that name.
            SessionInUse: a running job holds it.
        """
        await self.get(name)
        if not await self._database.fetch(statements.DELETE, {"name": name}):
            await self.get(name)
            raise _in_use(name)

    async def keys(self) -> dict[str, int]:
        """The ids of the keys with which sessions are encrypted → how many."""
        return {row["key_id"]: row["number"] for row in await self._database.fetch(statements.KEYS, {})}

    async def rotate(self) -> AsyncIterator[Rotated]:
        """Encrypt with the first key what is encrypted with another; held sessions too. Answers each as it is done.

        It can be stopped at any time, and be called again. A session that cannot be decrypted is left as it is.

        Raises:
            SecretKeyMissing: there is no key.
        """
        after = ""
        while rows := await self._database.fetch(statements.STALE, {"first": self.keyring.first, "after": after}):
            row = rows[0]
            try:
                sealed = await asyncio.to_thread(self._reseal, row)
            except SecretUnreadable as error:
                after = row["name"]
                yield Rotated(row["name"], error.message)
                continue
            values = {"name": row["name"], "version": row["version"], "created_at": row["created_at"]}
            values |= {"old_key_id": row["key_id"], "key_id": sealed.key_id, "ciphertext": sealed.ciphertext}
            if await self._database.fetch(
                statements.REKEY, values
            ):  # else it was saved meanwhile: it is looked at again
                after = row["name"]
                yield Rotated(row["name"])

    # encrypting takes milliseconds for each megabyte: it is done in threads

    async def _sealed(self, name: str, state: Mapping[str, Any]) -> dict[str, object]:
        size, sealed = await asyncio.to_thread(self._seal, name, state)
        return {"ciphertext": sealed.ciphertext, "key_id": sealed.key_id, "size": size}

    def _seal(self, name: str, state: Mapping[str, Any]) -> tuple[int, Sealed]:
        plain = storage_state.encode(state)
        return len(plain), self.keyring.encrypt(plain, name)

    def _open(self, name: str, row: Any) -> StorageState:
        if row["ciphertext"] is None:
            return storage_state.empty()
        return storage_state.decode(self.keyring.decrypt(Sealed(row["key_id"], row["ciphertext"]), name))

    def _reseal(self, row: Any) -> Sealed:
        plain = self.keyring.decrypt(Sealed(row["key_id"], row["ciphertext"]), row["name"])
        return self.keyring.encrypt(plain, row["name"])


def check_name(name: str) -> None:
    """Whether a session can have this name.

    Raises:
        InvalidSession: it cannot.
    """
    if not SESSION_NAME.fullmatch(name):
        hint = "letters, digits, '_', '.', ':', '@', '-'; the first a letter, a digit or '_'; at most 200"
        raise InvalidSession("this cannot be the name of a session", hint=hint)


def _in_use(name: str) -> SessionInUse:
    return SessionInUse(f"a running job holds the session '{name}'", hint="wait for it to end, or cancel it")
