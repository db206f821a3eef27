"""The user that runs Postgres, because Postgres refuses to run as root."""

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
"""In a user namespace, root's files belong to the mapped user, so no file has to change its owner."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How a command is run.

    Attributes:
        prefix: command that the actual command is appended to.
        account: uid and gid that the process changes to; None: no change.
    """

    prefix: tuple[str, ...] = ()
    account: tuple[int, int] | None = None

    def own(self, folder: Path) -> None:
        """Make the account the owner of `folder`, because it has to write there."""
        if self.account is not None:
            os.chown(folder, *self.account)


async def find_identity(postgres: Path, folder: Path, *, log: Path) -> tuple[Identity, int]:
    """Find the first identity that can run `postgres` and enter `folder`.

    Args:
        postgres: path of the binary.
        folder: folder that the identity must be able to enter.
        log: file for the output of the probes.

    Returns:
        The identity, and the major version of `postgres`.

    Raises:
        ServerStartError: there is no such identity.
    """
    check = ("/bin/sh", "-c", 'cd "$1" && exec "$0" --version', str(postgres), str(folder))
    problem = ServerStartError("there is no other user")
    for identity in _identities():
        probe = ServerProcess("Postgres", [*identity.prefix, *check], log=log, account=identity.account)
        try:
            output = await probe.run(timeout_s=PROBE_TIMEOUT_S)
        except ServerStartError as error:
            problem = error
        else:
            return identity, int(output.split()[2].partition(".")[0])
    if os.geteuid() != 0:
        raise problem
    raise ServerStartError(
        f"Postgres refuses to run as root, and no other user can run it: {problem.message}",
        hint="run as another user, or set CPLANE_DATABASE_URL to another server",
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
