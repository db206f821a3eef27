"""The lock on the folder of a stack: allows one stack at a time and contains the pid of its owner."""

import asyncio
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from cplane.errors import ServerStartError

LEFTOVER_TIMEOUT_S = 30.0
RETRY_INTERVAL_S = 0.02


class FolderLock:
    """An exclusive flock on the file `path`.

    The servers inherit `fileno`, so the lock is free only when they have ended too. After a kill -9 of its owner, the
    next stack waits for them and then knows that no process uses the data.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    @property
    def fileno(self) -> int:
        """The file descriptor that holds the lock."""
        if self._fd is None:
            raise RuntimeError("the lock is not held")
        return self._fd

    async def __aenter__(self) -> Self:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async with asyncio.timeout(LEFTOVER_TIMEOUT_S):
                await self._acquire(self._fd)
        except BaseException as error:
            self._close()
            if isinstance(error, TimeoutError):
                raise ServerStartError(
                    f"servers of an earlier run in {self._path.parent} are still running",
                    hint="find and stop them with ps and kill",
                ) from None
            raise
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.truncate(self.fileno, 0)  # a process that still holds the lock now is a leftover server
        self._close()

    async def _acquire(self, fd: int) -> None:
        while not _try_lock(fd):
            owner = os.pread(fd, 32, 0).decode()
            if owner and _is_alive(int(owner)):
                raise ServerStartError(
                    f"another stack runs in {self._path.parent.parent} (pid {owner})",
                    hint="use that one, or stop it first",
                )
            await asyncio.sleep(RETRY_INTERVAL_S)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
