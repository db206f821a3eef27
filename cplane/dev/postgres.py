"""The embedded Postgres: one data folder, one server on a Unix socket."""

import asyncio
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from cplane.dev.binaries import find_postgres
from cplane.dev.identity import Identity, find_identity
from cplane.dev.process import ServerProcess
from cplane.dev.sockets import check_length
from cplane.errors import InfrastructureError, ServerStartError

INITDB_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0

PORT = "5432"
READY = "ready"
"""The eighth line of postmaster.pid once the server accepts connections."""

NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")


class EmbeddedPostgres:
    """A Postgres server with a database `cplane` on a Unix socket.

    Two servers must not use the same data folder. The lock of DevStack prevents it, and the server keeps that lock
    open.

    Args:
        data: the data folder; created if it does not exist. The log is next to it.
        sockets: folder of the socket.
        durable: if false, data may be lost when the machine crashes.
        keep_open: file descriptors that the server inherits, for the lock.
    """

    def __init__(self, data: Path, sockets: Path, *, durable: bool = True, keep_open: Sequence[int] = ()) -> None:
        self._data = data
        self._sockets = sockets
        self._durable = durable
        self._keep_open = keep_open
        self._log = data.with_suffix(".log")
        self._server: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The URL, for example postgresql://app@/cplane?host=/run/user/1000/cplane-3f2a&port=5432."""
        return f"postgresql://app@/cplane?host={quote(str(self._sockets))}&port={PORT}"

    async def __aenter__(self) -> Self:
        check_length(self._sockets / f".s.PGSQL.{PORT}.lock")
        postgres = find_postgres()
        identity, major = await find_identity(postgres, self._data.parent, log=self._log)
        if not self._data.exists():
            await self._create(postgres, identity, major)
        self._check_version(major)
        identity.own(self._sockets)
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # left by a server that was killed
        self._server = self._process(identity, [str(postgres), *self._options()], stop_signal=signal.SIGINT)
        await self._server.start(self._is_ready, timeout_s=START_TIMEOUT_S)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._server is not None:
            await self._server.stop(timeout_s=STOP_TIMEOUT_S)

    async def ended(self) -> InfrastructureError:
        """Wait until the server ends, and return the reason as an error."""
        if self._server is None:
            raise RuntimeError("Postgres was not started")
        return await self._server.ended()

    async def _create(self, postgres: Path, identity: Identity, major: int) -> None:
        unfinished = self._data.with_suffix(
            ".new"
        )  # renamed at the end, so that a folder with the final name is complete
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        identity.own(unfinished)
        initdb = [str(postgres.with_name("initdb")), "--pgdata", str(unfinished), *_initdb_options(major)]
        await self._process(identity, initdb).run(timeout_s=INITDB_TIMEOUT_S)
        single = [str(postgres), "--single", "-F", "-D", str(unfinished), "postgres"]
        output = await self._process(identity, single).run(b"CREATE DATABASE cplane\n", timeout_s=INITDB_TIMEOUT_S)
        if "ERROR:" in output:  # single-user mode still exits with code 0
            raise ServerStartError(f"the database cplane could not be created: {output}", hint=f"see {self._log}")
        unfinished.rename(self._data)

    def _process(
        self, identity: Identity, command: Sequence[str], stop_signal: signal.Signals = signal.SIGTERM
    ) -> ServerProcess:
        return ServerProcess(
            "Postgres",
            [*identity.prefix, *command],
            log=self._log,
            stop_signal=stop_signal,
            orphan_signal=signal.SIGQUIT,  # unlike SIGKILL, it leaves no backend and no shared memory behind
            account=identity.account,
            keep_open=self._keep_open,
        )

    def _options(self) -> list[str]:
        settings = [
            "listen_addresses=",
            f'unix_socket_directories="{self._sockets}"',
            "unix_socket_permissions=0700",
            f"port={PORT}",
            "max_connections=200",
            "timezone=UTC",
            "log_timezone=UTC",
            "log_checkpoints=off",
            *(() if self._durable else NOT_DURABLE),
        ]
        return ["-D", str(self._data), *(part for setting in settings for part in ("-c", setting))]

    def _check_version(self, major: int) -> None:
        try:
            data_major = (self._data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise ServerStartError(
                f"{self._data} is not a Postgres data folder", hint="move it away; the next start creates a new one"
            ) from error
        if data_major != str(major):
            raise ServerStartError(
                f"{self._data} was created by Postgres {data_major}, but the installed version is {major}",
                hint=f"move the folder away to start empty, or run Postgres {data_major} yourself",
            )

    async def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == READY


def _initdb_options(major: int) -> list[str]:
    options = ["--username=app", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    if major >= 17:  # the same sort order and case folding on every system
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return options
