"""Files that jobs leave, in an object store: a folder (file://) or a bucket (s3://, gs://, az://)."""

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
"""For one file to be written, or one chunk to be read."""

CHUNK_BYTES = 1024 * 1024


class ArtifactStore:
    """Keeps files under `jobs/{record}/{attempt}/{name}`."""

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
        """Write a file; answers its reference and its path in the store.

        Raises:
            ValueError: `name` cannot be a file's name.
            ArtifactsUnavailable: the store did not answer.
        """
        if not NAME.fullmatch(name):
            raise ValueError(
                f"'{name}' cannot name an artifact: use 1 to 200 of letters, digits, '.', '_', '-', no '.' first"
            )
        path = f"jobs/{record_id}/{attempt}/{name}"
        media_type = media_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        counted = _Counted(data)
        with _translated(f"writing '{name}'"):
            async with asyncio.timeout(TIMEOUT_S):
                await obstore.put_async(self._store, path, data if isinstance(data, bytes) else counted.chunks(data))
        return Artifact(name=name, media_type=media_type, size=counted.size, sha256=counted.digest.hexdigest()), path

    @asynccontextmanager
    async def open(self, path: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Read a file in chunks.

        Raises:
            ArtifactsUnavailable: the store did not answer, or has lost the file.
        """
        with _translated(f"reading '{path.rpartition('/')[2]}'"):
            async with asyncio.timeout(TIMEOUT_S):
                found = await obstore.get_async(self._store, path)
        yield _chunks(found)


class _Counted:
    """Size and hash of data on its way into the store."""

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


class _translated:  # noqa: N801  used like the functions of contextlib
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
        with _translated("reading a file"):
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    chunk = await anext(stream)
                except StopAsyncIteration:
                    return
        yield bytes(chunk)


def open_artifacts(url: str) -> ArtifactStore:
    """The store at `url`; a folder that is not there is made when the first file is written.

    Raises:
        InvalidSettings: the URL is not of a kind we know.
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
