"""What a running job knows of itself, and what it can tell."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from sqlmodel.ext.asyncio.session import AsyncSession
    from structlog.typing import FilteringBoundLogger


class Artifact(BaseModel):
    """A file a job left, by reference: fetch it with GET /api/v1/jobs/{id}/artifacts/{name}."""

    name: str = Field(description="the file's name, unique within the record")
    media_type: str = Field(description="for example image/png")
    size: int = Field(description="bytes")
    sha256: str = Field(description="64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` steps (`total` None: not known), with a note."""

    done: float
    total: float | None = None
    note: str = ""


class ArtifactSink(Protocol):
    """Keeps what `ctx.artifact` is given."""

    def __call__(self, name: str, data: bytes | AsyncIterator[bytes], media_type: str | None) -> Awaitable[Artifact]:
        """Store the file and its row."""
        ...


class ArtifactSource(Protocol):
    """Reads what a job has left."""

    def __call__(self, job: UUID, name: str, max_bytes: int) -> Awaitable[tuple[Artifact, bytes]]:
        """The file's reference, and what is in it."""
        ...


class Context:
    """The attempt that runs, for the job that asks for it: `async def f(ctx: Context, …)`."""

    def __init__(
        self,
        *,
        id: UUID,  # noqa: A002  the field's word
        key: str,
        job: str,
        attempt: int,
        log: "FilteringBoundLogger",
        tell_progress: Callable[[Progress], Awaitable[None]],
        keep_artifact: ArtifactSink,
        read_artifact: ArtifactSource,
        transaction: Callable[[], "AbstractAsyncContextManager[AsyncSession]"],
        cool_down: Callable[[float], Awaitable[bool]] | None = None,
    ) -> None:
        self.id = id
        self._key = key
        self.job = job
        self.attempt = attempt
        self.log = log
        self._tell_progress = tell_progress
        self._keep_artifact = keep_artifact
        self._read_artifact = read_artifact
        self._transaction = transaction
        self._cool_down = cool_down

    @property
    def key(self) -> str:
        """Stable over all attempts of this job: hand it to others as an idempotency key."""
        return self._key

    async def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell how far the job is; never fails, never waits for the network."""
        await self._tell_progress(Progress(done, total, note[:500]))

    async def artifact(
        self, name: str, data: bytes | AsyncIterator[bytes], *, media_type: str | None = None
    ) -> Artifact:
        """Keep a file with the record and answer its reference.

        Args:
            name: 1 to 200 of letters, digits, '.', '_', '-'; the same name again replaces the file.
            data: the bytes, or an async iterator of chunks.
            media_type: guessed from the name when absent.

        Raises:
            ValueError: a name that cannot be a file's name.
            ArtifactsUnavailable: the store did not answer.
        """
        return await self._keep_artifact(name, data, media_type)

    async def read_artifact(self, job: UUID, name: str, *, max_bytes: int = 64 * 1024 * 1024) -> tuple[Artifact, bytes]:
        """A file that a job has left: its reference, and what is in it.

        Raises:
            RecordNotFound: there is no such job.
            ArtifactNotFound: it has no file of that name.
            InvalidArguments: the file has more than `max_bytes`.
            ArtifactsUnavailable: the store did not answer, or has lost the file.
        """
        return await self._read_artifact(job, name, max_bytes)

    async def cool_down(self, seconds: float) -> bool:
        """Leave the job's host alone: no job of it starts for so long, on no worker, at most an hour. Those that run go on.

        Answers whether that is so: False for a job without a host (see `per_host`), and while Redis is away.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}")
        return self._cool_down is not None and await self._cool_down(seconds)

    def transaction(self) -> "AbstractAsyncContextManager[AsyncSession]":
        """A database session whose writes are committed together with the job's success, and never without it.

        A parameter annotated `AsyncSession` is this session.
        """
        return self._transaction()
