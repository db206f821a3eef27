"""Browser sessions in Postgres: encrypted, each held by one attempt at a time.

A hold ends without a release when its record no longer runs with that attempt or the record's lease expires, at the
latest after `hold_s`. Only the attempt that acquired a session gets its content; all other callers get metadata.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from cplane.errors import InvalidSession, SecretUnreadable, SessionInUse, SessionNotFound
from cplane.jobs.names import SESSION_NAME
from cplane.keyring import Keyring, Sealed
from cplane.postgres.database import Database
from cplane.sessions import statements, storage_state
from cplane.sessions.binding import (
    SessionBinding,
    check_allowed_hosts,
    check_allowed_options,
    read_binding,
    stored_hosts,
)
from cplane.sessions.storage_state import StorageState

HOLD_S = 86_400.0
"""Maximum duration of a hold. After it the session is free, whatever its holder does."""


@dataclass(frozen=True, slots=True)
class SessionHold:
    """A session that one attempt of a record holds."""

    name: str
    record_id: UUID
    attempt: int
    version: int
    """Number of times it was saved; 0: it is empty."""
    storage_state: StorageState = field(repr=False)
    binding: SessionBinding
    """What the attempt may use it for."""
    visited: set[str] = field(default_factory=set[str])
    """The hosts whose pages the attempt opens: an empty session is bound to them when it is saved."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The metadata of a session, without its content."""

    name: str
    size: int
    """Size of its JSON in bytes."""
    version: int
    """Number of times it was saved; 0: it is empty."""
    key_id: str | None
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None
    hosts: list[str] | None
    """The hosts that it is bound to; None: it is empty, or was saved before there were bindings."""
    allowed_hosts: list[str]
    """Further hosts, allowed by name."""
    allowed_options: list[str]
    """Options that are refused with a session, and are allowed with this one."""
    held_by: UUID | None
    held_attempt: int | None


@dataclass(frozen=True, slots=True)
class RotationResult:
    """One session of a rotation. `problem` says why it could not be encrypted again; None: it was."""

    name: str
    problem: str | None = None


class SessionStore:
    """The sessions of one database.

    Every method raises DatabaseUnavailable within 6 seconds if Postgres does not respond.
    """

    def __init__(self, database: Database, keyring: Keyring) -> None:
        self._database = database
        self.keyring = keyring

    # used by workers

    async def acquire(self, name: str, record_id: UUID, attempt: int, *, hold_s: float = HOLD_S) -> SessionHold | None:
        """Acquire a session for a running attempt. A missing session is created, empty.

        The holder may acquire again: it gets the same hold. A newer attempt of a record takes the session over from an
        older one. A record is required: transient jobs cannot hold a session.

        Args:
            name: name of the session.
            record_id: the record that runs.
            attempt: number of its current attempt.
            hold_s: maximum duration of the hold, seconds.

        Returns:
            The hold with the content of the session. None: another running job holds it, or this attempt does not run.

        Raises:
            InvalidSession: `name` is not a valid session name.
            SecretKeyMissing: there is no key.
            SecretUnreadable: the session is encrypted with a key that is not set, or was changed in the database.
        """
        check_name(name)
        _ = self.keyring.first
        values = {"name": name, "record_id": record_id, "attempt": attempt, "hold_s": hold_s}
        rows = await self._database.fetch(statements.ACQUIRE, values)
        if not rows:
            return None
        row = rows[0]
        state = await asyncio.to_thread(self._open, name, row)
        binding = read_binding(row["hosts"], row["allowed_hosts"], row["allowed_options"], state)
        return SessionHold(name, record_id, attempt, row["version"], state, binding)

    async def save(self, held: SessionHold, state: Mapping[str, Any]) -> bool:
        """Save the state of a held session. It must be called before the record is finished.

        The first save binds the session to the hosts in `held.visited`, and to those that the state has data of.

        Args:
            held: the hold that `acquire` returned.
            state: what `context.storage_state()` returned.

        Returns:
            False if the attempt no longer holds the session; then nothing was saved.

        Raises:
            InvalidSession: `state` is not a storage_state.
            SessionTooLarge: `state` has more than 5 MiB.
        """
        values = {"name": held.name, "record_id": held.record_id, "attempt": held.attempt}
        values |= await self._sealed(held.name, state, held.visited)
        return bool(await self._database.fetch(statements.SAVE, values))

    async def release(self, held: SessionHold) -> None:
        """Release a session. Does nothing if it is no longer held."""
        values = {"name": held.name, "record_id": held.record_id, "attempt": held.attempt}
        await self._database.fetch(statements.RELEASE, values)

    # used by the control plane

    async def list(self, *, after: str = "", limit: int = 100) -> list[SessionInfo]:
        """Return the metadata of sessions, in the order of their names.

        Args:
            after: return only names after this one; "": from the start.
            limit: maximum number of sessions.
        """
        rows = await self._database.fetch(statements.LIST, {"after": after, "limit": limit})
        return [SessionInfo(**row) for row in rows]

    async def get(self, name: str) -> SessionInfo:
        """Return the metadata of one session.

        Raises:
            SessionNotFound: there is no session of that name.
        """
        rows = await self._database.fetch(statements.GET, {"name": name}) if SESSION_NAME.fullmatch(name) else []
        if not rows:
            raise SessionNotFound(f"there is no session '{name}'", hint="`cplane sessions list` shows all sessions")
        return SessionInfo(**rows[0])

    async def put(self, name: str, state: Mapping[str, Any]) -> tuple[SessionInfo, bool]:
        """Import a state: create the session, or replace its content. What it allows by name stays.

        It is bound to the hosts that the state has cookies or storage of.

        Args:
            name: name of the session.
            state: what `context.storage_state()` returned.

        Returns:
            The metadata, and whether the session is new.

        Raises:
            InvalidSession: `state` is not a storage_state, or `name` is not a valid session name.
            SessionTooLarge: `state` has more than 5 MiB.
            SessionInUse: a running job holds the session.
            SecretKeyMissing: there is no key.
        """
        check_name(name)
        rows = await self._database.fetch(statements.PUT, {"name": name, **await self._sealed(name, state)})
        if not rows:
            raise _in_use(name)
        return SessionInfo(**{key: value for key, value in rows[0].items() if key != "created"}), rows[0]["created"]

    async def allow(self, name: str, *, hosts: Iterable[str] = (), options: Iterable[str] = ()) -> SessionInfo:
        """Set what a session allows beyond the hosts that it is bound to. A missing session is created, empty.

        What was allowed before and is not given is refused again. A job that runs is not affected.

        Args:
            name: name of the session.
            hosts: further hosts whose pages may be opened: `example.com`, `*.example.com` for its subdomains, or `*`.
            options: options that sessions refuse otherwise: `add_script_tag`, `html`, `ignore_https_errors`, `proxy`.

        Returns:
            The metadata.

        Raises:
            InvalidSession: `name` is not a valid session name, or a host or an option is not one.
        """
        check_name(name)
        values = {"hosts": check_allowed_hosts(hosts), "options": check_allowed_options(options)}
        rows = await self._database.fetch(statements.ALLOW, {"name": name, **values})
        return SessionInfo(**rows[0])

    async def delete(self, name: str) -> None:
        """Delete a session.

        Raises:
            SessionNotFound: there is no session of that name.
            SessionInUse: a running job holds it.
        """
        await self.get(name)
        if not await self._database.fetch(statements.DELETE, {"name": name}):
            await self.get(name)
            raise _in_use(name)

    async def keys(self) -> dict[str, int]:
        """Return the number of sessions by the id of the key that encrypts them."""
        return {row["key_id"]: row["count"] for row in await self._database.fetch(statements.KEYS, {})}

    async def rotate(self) -> AsyncIterator[RotationResult]:
        """Encrypt all sessions with the first key that are encrypted with another one, held sessions too.

        It can be stopped at any time and called again. A session that cannot be decrypted stays unchanged.

        Yields:
            Each session, once it is done or has failed.

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
                yield RotationResult(row["name"], error.message)
                continue
            values = {"name": row["name"], "version": row["version"], "created_at": row["created_at"]}
            values |= {"old_key_id": row["key_id"], "key_id": sealed.key_id, "ciphertext": sealed.ciphertext}
            if await self._database.fetch(statements.REKEY, values):  # else it was saved concurrently: read it again
                after = row["name"]
                yield RotationResult(row["name"])

    # encryption takes milliseconds per megabyte, so it runs in threads

    async def _sealed(self, name: str, state: Mapping[str, Any], visited: Iterable[str] = ()) -> dict[str, object]:
        size, sealed, hosts = await asyncio.to_thread(self._seal, name, state, visited)
        return {"ciphertext": sealed.ciphertext, "key_id": sealed.key_id, "size": size, "hosts": list(hosts) or None}

    def _seal(self, name: str, state: Mapping[str, Any], visited: Iterable[str]) -> tuple[int, Sealed, tuple[str, ...]]:
        plain = storage_state.encode(state)
        return len(plain), self.keyring.encrypt(plain, name), stored_hosts(state, visited)

    def _open(self, name: str, row: Any) -> StorageState:
        if row["ciphertext"] is None:
            return storage_state.empty()
        return storage_state.decode(self.keyring.decrypt(Sealed(row["key_id"], row["ciphertext"]), name))

    def _reseal(self, row: Any) -> Sealed:
        plain = self.keyring.decrypt(Sealed(row["key_id"], row["ciphertext"]), row["name"])
        return self.keyring.encrypt(plain, row["name"])


def check_name(name: str) -> None:
    """Check the name of a session.

    Raises:
        InvalidSession: `name` is not a valid session name.
    """
    if not SESSION_NAME.fullmatch(name):
        hint = "use up to 200 letters, digits, '_', '.', ':', '@' and '-'; start with a letter, a digit or '_'"
        raise InvalidSession("not a valid session name", hint=hint)


def _in_use(name: str) -> SessionInUse:
    return SessionInUse(f"a running job holds the session '{name}'", hint="wait for it to end, or cancel it")
