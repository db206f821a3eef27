"""Who runs Postgres: it refuses to be root."""

import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cplane.dev.process import ServerProcess
from cplane.errors import ServerStartError

PROBE_TIMEOUT_S = 10.0
UNSHARE = ("--user", "--map-user=1000", "--map-group=1000")
"""In a user namespace root's files are owned by the mapped user, so nothing has to change hands."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How a command is run: `prefix` goes before it, `account` is the uid and gid it changes to."""

    prefix: tuple[str, ...] = ()
    account: tuple[int, int] | None = None

    def own(self, folder: Path) -> None:
        """Give `folder` to the account, which must write there."""
        if self.account is not None:
            os.chown(folder, *self.account)


async def find_identity(postgres: Path, folder: Path, *, log: Path) -> tuple[Identity, int]:
    """The first identity that may run `postgres` and enter `folder`, and the major version `postgres` then tells.

    Raises:
        ServerStartError: none may.
    """
    check = ("/bin/sh", "-c", 'cd "$1" && exec "$0" --version', str(postgres), str(folder))
    problem = ServerStartError("there is no other user")
    for identity in _identities():
        probe = ServerProcess("Postgres", [*identity.prefix, *check], log=log, account=identity.account)
        try:
            printed = await probe.run(timeout_s=PROBE_TIMEOUT_S)
        except ServerStartError as error:
            problem = error
        else:
            return identity, int(printed.split()[2].partition(".")[0])
    if os.geteuid() != 0:
        raise problem
    raise ServerStartError(
        f"Postgres refuses to run as root, and could not be run otherwise: {problem.message}",
        hint="run as another user, or set CPLANE_DATABASE_URL to a server of your own",
    )


def _identities() -> Iterator[Identity]:
    if os.geteuid() != 0:
        yield Identity()
        return
    unshare = shutil.which("unshare")
    if unshare:
        yield Identity(prefix=(unshare, *UNSHARE))
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        yield Identity(account=(user.pw_uid, user.pw_gid))
