"""The files of jobs: what an attempt leaves, and what it reads of other jobs."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from cplane.artifacts import ArtifactStore
from cplane.errors import InvalidArguments
from cplane.jobs.context import Artifact
from cplane.postgres.store import Store


@dataclass(frozen=True, slots=True)
class JobFiles:
    """Data goes to the artifact store, its reference to Postgres."""

    store: Store
    artifacts: ArtifactStore

    async def keep(
        self,
        record_id: UUID,
        attempt: int,
        name: str,
        data: bytes | AsyncIterator[bytes],
        media_type: str | None,
    ) -> Artifact:
        """Store a file and its row, and return its reference.

        Raises:
            ValueError: a name that cannot be a file's name.
            ArtifactTooLarge: the data are too large; nothing is stored.
            ArtifactsUnavailable, DatabaseUnavailable: it is not stored.
        """
        artifact, path = await self.artifacts.put(record_id, attempt, name, data, media_type)
        await self.store.add_artifact(record_id, attempt, artifact, path)
        return artifact

    async def read(self, record_id: UUID, name: str, max_bytes: int) -> tuple[Artifact, bytes]:
        """Return the reference of a file and its data.

        Raises:
            RecordNotFound, ArtifactNotFound: there is none.
            InvalidArguments: it has more than `max_bytes`.
            ArtifactsUnavailable: the store did not respond, or has lost the file.
        """
        found = await self.store.artifact(record_id, name)
        if found.size > max_bytes:
            raise InvalidArguments(f"'{name}' has {found.size:,} bytes, more than {max_bytes:,}")
        async with self.artifacts.open(found.path) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        return Artifact(name=name, media_type=found.media_type, size=found.size, sha256=found.sha256), data
