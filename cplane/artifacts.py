"""The artifact store: files that jobs store, in a folder (file://) or a bucket (s3://, gs://, az://)."""

import asyncio
import hashlib
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from cplane.errors import ArtifactsUnavailable, ArtifactTooLarge, InvalidSettings
from cplane.jobs.context import Artifact

if TYPE_CHECKING:
    from obstore import GetResult

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
TIMEOUT_S = 60.0
"""Time to write, or to read, one chunk. What the job's own iterator takes does not count."""

HASH_IN_THREAD_BYTES = 1024 * 1024
"""Data of this size is hashed in a thread: it would hold the loop for milliseconds."""

CHUNK_BYTES = 1024 * 1024
"""Minimum size of a chunk that is read, except for the last one."""


class ArtifactStore:
    """Stores files under `jobs/{record}/{attempt}/{name}`.

    Args:
        store: the folder or bucket.
        max_bytes: size of the largest file, bytes; None: no limit.
    """

    def __init__(self, store: ObjectStore, max_bytes: int | None = None) -> None:
        self._store = store
        self._max_bytes = max_bytes

    async def put(
        self,
        record_id: UUID,
        attempt: int,
        name: str,
        data: bytes | AsyncIterator[bytes],
        media_type: str | None = None,
    ) -> tuple[Artifact, str]:
        """Write a file. A file of the same name and attempt is replaced.

        Args:
            record_id: id of the record.
            attempt: number of the attempt, from 1.
            name: name of the file: 1 to 200 letters, digits, '.', '_' and '-', the first one not '.'.
            data: the content, as bytes or as an async iterator of chunks.
            media_type: media type of the file; None guesses it from the name.

        Returns:
            The reference to the file, and its path in the store.

        Raises:
            ValueError: `name` is not valid.
            ArtifactTooLarge: the data are larger than `max_bytes`; nothing of them is stored.
            ArtifactsUnavailable: the store did not respond.
            Exception: what `data` itself raised, unchanged; nothing of it is stored.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"'{name}' is not an artifact name; use 1 to 200 letters, digits, '.', '_' and '-', the first not '.'"
            )
        path = f"jobs/{record_id}/{attempt}/{name}"
        media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        measured = _Measured(name, self._max_bytes)
        with _translated_errors(f"writing '{name}'", measured):
            async with asyncio.timeout(None) as deadline:
                if isinstance(data, bytes):
                    await measured.add(data)
                    _set(deadline, TIMEOUT_S)
                    await obstore.put_async(self._store, path, data)
                else:
                    await obstore.put_async(self._store, path, measured.chunks(data, deadline))
        return Artifact(name=name, media_type=media_type, size=measured.size, sha256=measured.digest.hexdigest()), path

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a file for reading.

        Args:
            path: path in the store, as `put` returned it.

        Yields:
            An async iterator of the chunks. It raises `ArtifactsUnavailable` as below.

        Raises:
            ArtifactsUnavailable: the store did not respond, or lost the file.
        """
        with _translated_errors(f"reading '{path.rpartition('/')[2]}'"):
            async with asyncio.timeout(TIMEOUT_S):
                found = await obstore.get_async(self._store, path)
        yield _chunks(found)


class _Measured:
    """Computes size and hash of data while it is written to the store, and ends data that are too large.

    Args:
        name: name of the file, for errors.
        max_bytes: size of the largest file, bytes; None: no limit.
    """

    def __init__(self, name: str, max_bytes: int | None) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: Exception | None = None
        """What the data raised, which is not an error of the store."""
        self._name = name
        self._max_bytes = max_bytes

    async def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self._max_bytes is not None and self.size > self._max_bytes:
            raise ArtifactTooLarge(
                f"'{self._name}' has {self.size:,} bytes or more, and a file may have {self._max_bytes:,} "
                "(CPLANE_ARTIFACT_MAX_MB)",
                hint="split it into several files",
            )
        if len(chunk) < HASH_IN_THREAD_BYTES:
            self.digest.update(chunk)
        else:
            await asyncio.to_thread(self.digest.update, chunk)

    async def chunks(self, data: AsyncIterator[bytes], deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        """Yield the chunks; the deadline counts only while the store has one."""
        try:
            async for chunk in data:
                await self.add(chunk)
                _set(deadline, TIMEOUT_S)
                yield chunk
                _set(deadline, None)
        except Exception as error:
            self.failure = error
            raise
        _set(deadline, TIMEOUT_S)


def _set(deadline: asyncio.Timeout, seconds: float | None) -> None:
    """Move a deadline to so many seconds from now; one that has passed stays."""
    with suppress(RuntimeError):
        deadline.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class _translated_errors:  # noqa: N801  used like the functions of contextlib
    """Raises `ArtifactsUnavailable` for errors of the store, and what the data raised as it was."""

    def __init__(self, doing: str, measured: _Measured | None = None) -> None:
        self._doing = doing
        self._measured = measured

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: object) -> None:
        failure = None if self._measured is None else self._measured.failure
        if failure is not None and failure is not exc and isinstance(exc, Exception):
            raise failure
        if failure is None and isinstance(exc, BaseError | OSError | TimeoutError):
            raise ArtifactsUnavailable(
                f"the artifact store failed while {self._doing}", hint="see CPLANE_ARTIFACTS_URL"
            ) from exc


async def _chunks(found: "GetResult") -> AsyncIterator[bytes]:
    stream = aiter(found.stream(min_chunk_size=CHUNK_BYTES))
    while True:
        with _translated_errors("reading a file"):
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    chunk = await anext(stream)
                except StopAsyncIteration:
                    return
        yield bytes(chunk)


def open_artifacts(url: str, max_bytes: int | None = None) -> ArtifactStore:
    """Return the artifact store at a URL. A missing folder is created.

    Args:
        url: `file:///absolute/path`, or the URL of a bucket: `s3://…`, `gs://…`, `az://…`.
        max_bytes: size of the largest file, bytes; None: no limit.

    Raises:
        InvalidSettings: the URL cannot be used; the message says why.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc not in {"", "localhost"}:
        raise InvalidSettings(
            f"CPLANE_ARTIFACTS_URL names the host '{parts.netloc}'", hint="a folder is file:///absolute/path"
        )
    try:
        if parts.scheme == "file":
            return ArtifactStore(LocalStore(Path(unquote(parts.path)), automatic_cleanup=True, mkdir=True), max_bytes)
        return ArtifactStore(from_url(url), max_bytes)
    except (BaseError, OSError, ValueError) as error:
        raise InvalidSettings(
            f"CPLANE_ARTIFACTS_URL cannot be used: {str(error).splitlines()[0]}",
            hint="write file:///folder or s3://bucket/prefix",
        ) from error
