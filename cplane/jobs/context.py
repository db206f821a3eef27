"""What a running job knows about itself, and what it can report and store."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from pydantic import BaseModel, Field

from cplane.errors import UsageError
from cplane.runtime.text import storable

if TYPE_CHECKING:
    from sqlmodel.ext.asyncio.session import AsyncSession
    from structlog.typing import FilteringBoundLogger


class Artifact(BaseModel):
    """Reference to a file that a job stored. `GET /api/v1/jobs/{id}/artifacts/{name}` returns the file itself."""

    name: str = Field(description="name of the file, unique within the record")
    media_type: str = Field(description="for example image/png")
    size: int = Field(description="size of the file in bytes")
    sha256: str = Field(description="64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job: `done` of `total` steps (None: not known), with a note."""

    done: float
    total: float | None = None
    note: str = ""


class ArtifactSink(Protocol):
    """Where `ctx.artifact` stores files."""

    def __call__(
        self, name: str, data: bytes | AsyncIterator[bytes], media_type: str | None
    ) -> Coroutine[Any, Any, Artifact]:
        """Store the file and its row; return its reference."""
        ...


class ArtifactSource(Protocol):
    """Where `ctx.read_artifact` reads files."""

    def __call__(self, job: UUID, name: str, max_bytes: int) -> Coroutine[Any, Any, tuple[Artifact, bytes]]:
        """Return the reference and the content of a file of at most `max_bytes`."""
        ...


class Reported:
    """The reply to a progress report: there is nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


REPORTED = Reported()


def _require_loop(method: str) -> None:
    """Refuse what a plain `def` cannot await: the coroutine would be dropped without a word."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        hint = "make the job async; a plain one has ctx.progress() and ctx.log"
        raise UsageError(f"{method} has to be awaited, which a plain `def` cannot do", hint=hint) from None


async def _never(_seconds: float) -> bool:
    return False


class Context:
    """The running attempt, for a job that has a parameter annotated `Context`.

    Attributes:
        id: id of the record; of the transient job, if it has no record.
        job: name of the job.
        attempt: number of the attempt, from 1.
        log: structlog logger with the fields of the attempt.

    Example:
        ```python
        from cplane import Context, ControlPlane, job


        @job
        async def report(ctx: Context, rows: int) -> int:
            for row in range(rows):
                await ctx.progress(row, rows, note="writing rows")
            artifact = await ctx.artifact("report.csv", b"row;" * rows)
            ctx.log.info("report_written", key=ctx.key, size=artifact.size)
            return artifact.size


        async with ControlPlane():
            handle = await report.submit(3)
            assert await handle.result(timeout=30) == 12
        ```
    """

    def __init__(
        self,
        *,
        id: UUID,  # noqa: A002  the field's word
        key: str,
        job: str,
        attempt: int,
        log: "FilteringBoundLogger",
        report_progress: Callable[[Progress], None],
        store_artifact: ArtifactSink,
        read_artifact: ArtifactSource,
        transaction: Callable[[], "AbstractAsyncContextManager[AsyncSession]"],
        cool_down: Callable[[float], Coroutine[Any, Any, bool]] | None = None,
    ) -> None:
        self.id = id
        self._key = key
        self.job = job
        self.attempt = attempt
        self.log = log
        self._report_progress = report_progress
        self._keep_artifact = store_artifact
        self._read_artifact = read_artifact
        self._transaction = transaction
        self._cool_down = cool_down

    @property
    def key(self) -> str:
        """A text that is the same in all attempts of this job: pass it to other services as the idempotency key."""
        return self._key

    def progress(self, done: float, total: float | None = None, note: str = "") -> Awaitable[None]:
        """Report the progress of the job. Never fails, and never waits for the network.

        A value that is not a finite number is not reported; the log says so.

        Args:
            done: completed steps, in any unit.
            total: all steps, in the same unit; None if not known.
            note: text for people; the first 500 characters are kept.

        Returns:
            Something to await in an async job; a plain `def` calls `ctx.progress(…)` and ignores it.
        """
        try:
            progress = Progress(_number(done), None if total is None else _number(total), storable(str(note)[:500]))
        except (TypeError, ValueError, OverflowError) as error:
            self.log.warning("progress_not_reported", reason=storable(str(error)[:500]))
        else:
            self._report_progress(progress)
        return REPORTED

    def artifact(
        self, name: str, data: bytes | AsyncIterator[bytes], *, media_type: str | None = None
    ) -> Coroutine[Any, Any, Artifact]:
        """Store a file with the record.

        Args:
            name: name of the file: 1 to 200 letters, digits, '.', '_' and '-', the first one not '.'. A file of the
                same name is replaced.
            data: the content, as bytes or as an async iterator of chunks.
            media_type: media type of the file; None guesses it from the name.

        Returns:
            The reference to the file.

        Raises:
            ValueError: `name` is not valid.
            ArtifactTooLarge: the file is larger than `CPLANE_ARTIFACT_MAX_MB`; nothing of it is stored.
            TooManyArtifacts: the job has `CPLANE_ARTIFACT_MAX_COUNT` files already.
            ArtifactsUnavailable: the artifact store did not respond.
            UsageError: the job is a plain `def`, which cannot await it.
        """
        _require_loop("ctx.artifact()")
        return self._keep_artifact(name, data, media_type)

    def read_artifact(
        self, job: UUID, name: str, *, max_bytes: int = 64 * 1024 * 1024
    ) -> Coroutine[Any, Any, tuple[Artifact, bytes]]:
        """Read a file that a job stored.

        Args:
            job: id of the record that the file belongs to.
            name: name of the file.
            max_bytes: size up to which a file is read, bytes; 64 MiB by default.

        Returns:
            The reference to the file, and its content.

        Raises:
            RecordNotFound: no record has this id.
            ArtifactNotFound: the record has no file of this name.
            InvalidArguments: the file is larger than `max_bytes`.
            ArtifactsUnavailable: the artifact store did not respond, or lost the file.
            UsageError: the job is a plain `def`, which cannot await it.
        """
        _require_loop("ctx.read_artifact()")
        return self._read_artifact(job, name, max_bytes)

    def cool_down(self, seconds: float) -> Coroutine[Any, Any, bool]:
        """Cool down the job's host: no job of the host starts, on any worker. Running jobs continue.

        Args:
            seconds: length of the cooldown, 0 or more; longer than an hour counts as an hour.

        Returns:
            True if the host cools down; False for a job without a host (see `per_host`), and while Redis is
            unavailable.

        Raises:
            ValueError: `seconds` is negative or not finite.
            UsageError: the job is a plain `def`, which cannot await it.
        """
        _require_loop("ctx.cool_down()")
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}")
        return _never(seconds) if self._cool_down is None else self._cool_down(seconds)

    def transaction(self) -> "AbstractAsyncContextManager[AsyncSession]":
        """Open a database session whose writes are committed together with the job's success, and never without it.

        A parameter annotated `AsyncSession` is this session.

        Returns:
            An async context manager of the session.
        """
        return self._transaction()


def _number(value: float) -> float:
    """Return a value as a float. Raises TypeError, ValueError or OverflowError for one that is not a finite number."""
    number = float(value)
    if isinstance(value, str | bytes) or not isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number
