"""The folder for the Unix sockets of the servers: private, with a short path, removed when the servers end."""

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from cplane.errors import ServerStartError

PATH_LIMIT = 103
"""Maximum bytes in the path of a socket: 103 on macOS, 107 on Linux."""

MAX_NAME_BYTES = 30


class SocketFolder:
    """`with SocketFolder(root) as folder:` creates the socket folder of the stack in `root`; its name is stable."""

    def __init__(self, root: Path) -> None:
        key = f"{os.geteuid()}:{root.resolve()}"
        self._name = f"cplane-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
        self._folder: Path | None = None

    def __enter__(self) -> Path:
        self._folder = self._make(_base())
        return self._folder

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, base: Path) -> Path:
        folder = base / self._name
        if _is_ours(folder):  # left by a stack that was killed
            shutil.rmtree(folder)
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            return Path(tempfile.mkdtemp(prefix="cplane-", dir=base))
        return folder


def check_length(socket: Path) -> None:
    """Reject a path that the kernel cannot bind.

    Raises:
        ServerStartError: the path is too long.
    """
    if len(os.fsencode(socket)) > PATH_LIMIT:
        raise ServerStartError(
            f"the socket path {socket} is longer than {PATH_LIMIT} bytes", hint="set TMPDIR to a shorter folder"
        )


def _base() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    candidates = [tempfile.gettempdir(), "/tmp"]  # noqa: S108  the folder that is created there is private
    if runtime and os.geteuid() != 0:  # root's folder is not accessible to the user that runs Postgres
        candidates.insert(0, runtime)
    for candidate in candidates:
        if len(os.fsencode(candidate)) + MAX_NAME_BYTES <= PATH_LIMIT - MAX_NAME_BYTES and os.access(
            candidate, os.W_OK
        ):
            return Path(candidate)
    raise ServerStartError("there is no writable folder with a short path for sockets", hint="set TMPDIR to one")


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.geteuid() in {found.st_uid, 0}
