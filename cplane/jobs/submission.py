"""Submissions: the calls of a job on their way to the control plane."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

import msgspec
from typing_extensions import ParamSpec, TypeVar

from cplane.errors import CplaneError, InvalidArguments, NoControlPlane, Problem
from cplane.jobs.handle import Handle
from cplane.jobs.names import QUEUE_NAME
from cplane.jobs.options import read_priority
from cplane.jobs.per_host import PerHost, limit_keys_of
from cplane.jobs.states import Priority

if TYPE_CHECKING:
    from cplane.jobs.definition import AnyJob, Job

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 1000
"""Submissions of `submit_many` that are recorded in one statement."""


CHUNKS_UNDER_WAY = 2
"""Chunks of one `submit_many` that are being recorded and scheduled, while the next is validated."""


class Submission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of a job on its way to the control plane; `args_json` has been validated."""

    job: "AnyJob"
    args_json: bytes
    queue: str
    priority: Priority = Priority.NORMAL
    delay_s: float | None = None
    run_at: datetime | None = None
    key: str | None = None

    def limit_keys(self, defaults: PerHost | None) -> tuple[str, ...]:
        """Return the keys that the job is limited by: its browser session and its host."""
        session, host = self.job.session(self.args_json), self.job.host(self.args_json, defaults)
        return limit_keys_of(session, host)


class Submitter(Protocol):
    """Where submissions go; the control plane is one."""

    async def submit(self, submission: Submission) -> Handle[Any]:
        """Record and schedule one job."""
        ...

    async def submit_many(self, submissions: list[Submission]) -> list[Handle[Any]]:
        """Record and schedule a batch."""
        ...

    def check_size(self, submission: Submission) -> None:
        """Raise InvalidArguments if its arguments are too large."""
        ...


class Call(Generic[P, R]):
    """A job with options for one submission: `job.using(delay=30).submit(…)`."""

    __slots__ = ("_at", "_delay_s", "_job", "_key", "_priority", "_queue")

    def __init__(
        self,
        job: "Job[P, R, ..., Any]",
        *,
        delay: float | timedelta | None,
        at: datetime | None,
        key: str | None,
        queue: str | None,
        priority: str | None,
    ) -> None:
        if delay is not None and at is not None:
            raise InvalidArguments("delay and at exclude each other", hint="give one of them")
        if at is not None and at.tzinfo is None:
            raise InvalidArguments(
                "at must be an aware datetime", hint="for example datetime.now(UTC) + timedelta(minutes=5)"
            )
        if key is not None and not job.options.record:
            hint = "leave out record=False, or the key"
            raise InvalidArguments(f"'{job.name}' keeps no record that a key could lead to", hint=hint)
        if key is not None and not 1 <= len(key) <= 255:
            raise InvalidArguments("an idempotency key has 1 to 255 characters")
        if queue is not None and not QUEUE_NAME.fullmatch(queue):
            raise InvalidArguments(f"'{queue}' is not a queue name", hint="letters, digits, '_', '.', '-', at most 100")
        delay_s = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if delay_s is not None and not 0 <= delay_s <= 10 * 366 * 86400:
            raise InvalidArguments(f"delay must be 0 or more seconds and at most ten years, not {delay_s}")
        self._job = job
        self._delay_s = delay_s
        self._at = at
        self._key = key
        self._queue = queue or job.options.queue
        self._priority = job.options.priority if priority is None else read_priority(priority, InvalidArguments)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """As `Job.submit`, with these options."""
        return await current().submit(self.submission(self._job.encode(args, kwargs)))

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Alias of `submit`."""
        return await self.submit(*args, **kwargs)

    async def submit_many(
        self, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> list[Handle[R]]:
        """As `Job.submit_many`, with these options; an idempotency key cannot stand for many jobs."""
        if self._key is not None:
            raise InvalidArguments(
                "one key cannot stand for many jobs", hint="submit them one by one, each with its own key"
            )
        plane = current()
        submitted: list[Handle[R]] = []
        under_way: deque[asyncio.Task[list[Handle[Any]]]] = deque()
        try:
            # while one chunk is validated, the one before is recorded and the one before that is scheduled
            async for submissions in self._chunks(plane, calls):
                if len(under_way) == CHUNKS_UNDER_WAY:
                    submitted += await under_way[0]
                    under_way.popleft()
                under_way.append(asyncio.create_task(plane.submit_many(submissions), name=f"submit {self._job.name}"))
                await asyncio.sleep(0)
            while under_way:
                submitted += await under_way[0]
                under_way.popleft()
        except BaseException as error:
            # what was begun is done before anybody hears of the error
            ended = await asyncio.gather(*under_way, return_exceptions=True)
            _tell_submitted(error, submitted, ended)
            raise
        return submitted

    async def _chunks(
        self, plane: Submitter, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> AsyncIterator[list[Submission]]:
        """The calls, validated as they are read: none is kept, and a large batch gives Python's garbage collector little to do."""
        if not isinstance(calls, AsyncIterable):
            if not isinstance(calls, Iterable):
                raise _not_mappings(calls)
            left = enumerate(calls)
            while chunk := [self._one_of_many(plane, place, call) for place, call in islice(left, CHUNK)]:
                yield chunk
            return
        gathered: list[Submission] = []
        read = 0
        async for call in calls:
            gathered.append(self._one_of_many(plane, read, call))
            read += 1
            if len(gathered) == CHUNK:
                yield gathered
                gathered = []
        if gathered:
            yield gathered

    def _one_of_many(self, plane: Submitter, place: int, call: object) -> Submission:
        try:
            if not isinstance(call, Mapping):
                raise _not_mappings(call)
            submission = self.submission(self._job.encode((), cast("Mapping[str, object]", call)))
            plane.check_size(submission)
        except InvalidArguments as error:
            problems = [Problem(f"/{place}{problem.path}", problem.message) for problem in error.problems]
            raise InvalidArguments(f"calls[{place}]: {error.message}", problems, hint=error.hint) from None
        return submission

    def submission(self, args_json: bytes) -> Submission:
        """What goes to the control plane for these validated arguments."""
        return Submission(
            job=self._job,
            args_json=args_json,
            queue=self._queue,
            priority=self._priority,
            delay_s=self._delay_s,
            run_at=self._at,
            key=self._key,
        )


_open_planes: list[Submitter] = []


def current() -> Submitter:
    """The process's current control plane: the one opened last.

    Raises:
        NoControlPlane: none is open.
    """
    if not _open_planes:
        raise NoControlPlane(
            "no control plane is open in this process", hint="submit inside `async with ControlPlane():`"
        )
    return _open_planes[-1]


def enter(plane: Submitter) -> None:
    """Make `plane` the current one."""
    _open_planes.append(plane)


def leave(plane: Submitter) -> None:
    """`plane` is closed; the one opened before it is current again."""
    _open_planes.remove(plane)


def _not_mappings(given: object) -> InvalidArguments:
    return InvalidArguments(
        f"submit_many takes a mapping of arguments for each job, not a value of type {type(given).__name__}",
        hint='write submit_many([{"name": value}, …])',
    )


def _tell_submitted(
    error: BaseException, submitted: Sequence[Handle[Any]], ended: Sequence[list[Handle[Any]] | BaseException]
) -> None:
    """Have the error of a batch say what was submitted: the first jobs, and those of whole chunks after them."""
    by_place = dict(enumerate(submitted))
    for number, handles in enumerate(ended):
        if not isinstance(handles, BaseException):
            by_place |= enumerate(handles, len(submitted) + number * CHUNK)
    if not by_place:
        return
    said = f"{len(by_place):,} jobs of the batch were submitted, and stay so"
    if isinstance(error, CplaneError):
        error.submitted = by_place
        said += ": error.submitted has their handles"
    error.add_note(said)
