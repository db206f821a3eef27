"""The artifact store: files that jobs store, in a folder (file://) or a bucket (s3://, gs://, az://)."""

import asyncio
import hashlib
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from cplane.errors import ArtifactsUnavailable, InvalidSettings
from cplane.jobs.context import Artifact

if TYPE_CHECKING:
    from obstore import GetResult

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
TIMEOUT_S = 60.0
"""Time to write one file, or to read one chunk."""

CHUNK_BYTES = 1024 * 1024
"""Minimum size of a chunk that is read, except for the last one."""


class ArtifactStore:
    """Stores files under `jobs/{record}/{attempt}/{name}`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

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
            ArtifactsUnavailable: the store did not respond.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"'{name}' is not an artifact name; use 1 to 200 letters, digits, '.', '_' and '-', the first not '.'"
            )
        path = f"jobs/{record_id}/{attempt}/{name}"
        media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        measured = _Measured(data)
        with _translated_errors(f"writing '{name}'"):
            async with asyncio.timeout(TIMEOUT_S):
                await obstore.put_async(self._store, path, data if isinstance(data, bytes) else measured.chunks(data))
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
    """Computes size and hash of data while it is written to the store."""

    def __init__(self, data: bytes | AsyncIterator[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        if isinstance(data, bytes):
            self.add(data)

    def add(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)

    async def chunks(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in data:
            self.add(chunk)
            yield chunk


class _translated_errors:  # noqa: N801  used like the functions of contextlib
    """Raises `ArtifactsUnavailable` for errors of the store."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, BaseError | OSError | TimeoutError):
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


def open_artifacts(url: str) -> ArtifactStore:
    """Return the artifact store at a URL. A missing folder is created.

    Args:
        url: `file:///absolute/path`, or the URL of a bucket: `s3://…`, `gs://…`, `az://…`.

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
            return ArtifactStore(LocalStore(Path(unquote(parts.path)), automatic_cleanup=True, mkdir=True))
        return ArtifactStore(from_url(url))
    except (BaseError, OSError, ValueError) as error:
        raise InvalidSettings(
            f"CPLANE_ARTIFACTS_URL cannot be used: {str(error).splitlines()[0]}",
            hint="write file:///folder or s3://bucket/prefix",
        ) from error
