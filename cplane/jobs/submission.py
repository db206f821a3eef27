"""Submissions: calls of a job, with their options, on the way to the control plane."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

import msgspec
from typing_extensions import ParamSpec, TypeVar

from cplane.errors import CplaneError, InvalidArguments, NoControlPlane, Problem
from cplane.jobs.handle import Handle
from cplane.jobs.names import QUEUE_NAME
from cplane.jobs.options import MAX_DURATION_S, read_priority
from cplane.jobs.per_host import PerHost, limit_keys_of
from cplane.jobs.states import Priority
from cplane.runtime.text import storable

if TYPE_CHECKING:
    from cplane.jobs.definition import AnyJob, Job

P = ParamSpec("P")
R = TypeVar("R")

CHUNK_SIZE = 1000
"""Submissions of `submit_many` that are recorded in one statement."""

MAX_CHUNKS_IN_FLIGHT = 2
"""Chunks of one `submit_many` that are recorded and scheduled while the next one is validated."""


class Submission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of a job on its way to the control plane; `args_json` is validated."""

    job: "AnyJob"
    args_json: bytes
    queue: str
    priority: Priority = Priority.NORMAL
    delay_s: float | None = None
    run_at: datetime | None = None
    key: str | None = None
    timeout_s: float | None = None
    """None: the timeout of the job."""

    def limit_keys(self, defaults: PerHost | None) -> tuple[str, ...]:
        """Return the limit keys of the job: its browser session and its host.

        Args:
            defaults: limits per host of the settings, for jobs without limits of their own.
        """
        session, host = self.job.session(self.args_json), self.job.host(self.args_json, defaults)
        return limit_keys_of(session, host)


class Submitter(Protocol):
    """Receiver of submissions; the control plane is one."""

    async def submit(self, submission: Submission) -> Handle[Any]:
        """Record and schedule one job; return its handle."""
        ...

    async def submit_many(self, submissions: list[Submission]) -> list[Handle[Any]]:
        """Record and schedule a chunk; return its handles in the same order."""
        ...

    def check_size(self, submission: Submission) -> None:
        """Raise `InvalidArguments` if the arguments are too large."""
        ...


class Call(Generic[P, R]):
    """A job with options for a submission: `job.using(delay=30).submit(…)`."""

    __slots__ = ("_at", "_delay_s", "_job", "_key", "_priority", "_queue", "_timeout_s")

    def __init__(
        self,
        job: "Job[P, R, ..., Any]",
        *,
        delay: float | timedelta | None,
        at: datetime | None,
        key: str | None,
        queue: str | None,
        priority: str | None,
        timeout: float | timedelta | None,
    ) -> None:
        if delay is not None and at is not None:
            raise InvalidArguments("delay and at exclude each other", hint="give only one of them")
        if at is not None and at.tzinfo is None:
            raise InvalidArguments(
                "at must be an aware datetime", hint="for example datetime.now(UTC) + timedelta(minutes=5)"
            )
        if at is not None and not _is_storable(at):
            raise InvalidArguments(f"at must be a moment of the years 1 to 9999 in UTC, not {at}")
        if key is not None and not job.options.record:
            hint = "leave out record=False, or the key"
            raise InvalidArguments(f"'{job.name}' keeps no record that a key could lead to", hint=hint)
        if key is not None and not 1 <= len(key) <= 255:
            raise InvalidArguments("an idempotency key has 1 to 255 characters")
        if key is not None and key != storable(key):
            raise InvalidArguments("an idempotency key has neither NUL nor lone surrogates")
        if queue is not None and not QUEUE_NAME.fullmatch(queue):
            raise InvalidArguments(f"'{queue}' is not a queue name", hint="letters, digits, '_', '.', '-', at most 100")
        delay_s = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if delay_s is not None and not 0 <= delay_s <= MAX_DURATION_S:
            raise InvalidArguments(f"delay must be 0 or more seconds and at most ten years, not {delay_s}")
        self._job = job
        self._delay_s = delay_s
        self._at = at
        self._key = key
        self._queue = queue or job.options.queue
        self._timeout_s = None if timeout is None else _read_timeout(timeout, job)
        self._priority = job.options.priority if priority is None else read_priority(priority, InvalidArguments)

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Submit the job with these options; see `Job.submit`."""
        return await current().submit(self.submission(self._job.encode(args, kwargs)))

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Alias of `submit`."""
        return await self.submit(*args, **kwargs)

    async def submit_many(
        self, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> list[Handle[R]]:
        """Submit one job for each mapping of arguments, with these options; see `Job.submit_many`.

        Raises:
            InvalidArguments: as for `Job.submit_many`, or the options have an idempotency key, which is for one job.
        """
        if self._key is not None:
            raise InvalidArguments(
                "one idempotency key cannot be used for many jobs", hint="submit them one by one, each with its own key"
            )
        plane = current()
        submitted: list[Handle[R]] = []
        in_flight: deque[asyncio.Task[list[Handle[Any]]]] = deque()
        try:
            # while one chunk is validated, the previous one is recorded and the one before that is scheduled
            async for submissions in self._chunks(plane, calls):
                if len(in_flight) == MAX_CHUNKS_IN_FLIGHT:
                    submitted += await in_flight[0]
                    in_flight.popleft()
                in_flight.append(asyncio.create_task(plane.submit_many(submissions), name=f"submit {self._job.name}"))
                await asyncio.sleep(0)
            while in_flight:
                submitted += await in_flight[0]
                in_flight.popleft()
        except BaseException as error:
            # the chunks in flight complete before the caller receives the error, which has their handles
            outcomes = await asyncio.gather(*in_flight, return_exceptions=True)
            _attach_submitted(error, submitted, outcomes)
            raise
        return submitted

    async def _chunks(
        self, plane: Submitter, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> AsyncIterator[list[Submission]]:
        """Yield the calls in chunks, validated as they are read.

        No call is kept, so a large batch leaves little to Python's garbage collector.
        """
        if not isinstance(calls, AsyncIterable):
            if not isinstance(calls, Iterable):
                raise _not_mappings(calls)
            numbered = enumerate(calls)
            while chunk := [self._validate(plane, index, call) for index, call in islice(numbered, CHUNK_SIZE)]:
                yield chunk
            return
        gathered: list[Submission] = []
        index = 0
        async for call in calls:
            gathered.append(self._validate(plane, index, call))
            index += 1
            if len(gathered) == CHUNK_SIZE:
                yield gathered
                gathered = []
        if gathered:
            yield gathered

    def _validate(self, plane: Submitter, index: int, call: object) -> Submission:
        """Return the submission of one call of a batch; errors name the call by its index."""
        try:
            if not isinstance(call, Mapping):
                raise _not_mappings(call)
            submission = self.submission(self._job.encode((), cast("Mapping[str, object]", call)))
            plane.check_size(submission)
        except InvalidArguments as error:
            problems = [Problem(f"/{index}{problem.path}", problem.message) for problem in error.problems]
            raise InvalidArguments(f"calls[{index}]: {error.message}", problems, hint=error.hint) from None
        return submission

    def submission(self, args_json: bytes) -> Submission:
        """Return the submission for validated arguments, a JSON object."""
        return Submission(
            job=self._job,
            args_json=args_json,
            queue=self._queue,
            priority=self._priority,
            delay_s=self._delay_s,
            run_at=self._at,
            key=self._key,
            timeout_s=self._timeout_s,
        )


_open_planes: list[Submitter] = []


def current() -> Submitter:
    """Return the current control plane of the process: the one opened last.

    Raises:
        NoControlPlane: none is open.
    """
    if not _open_planes:
        raise NoControlPlane(
            "no control plane is open in this process", hint="submit inside `async with ControlPlane():`"
        )
    return _open_planes[-1]


def enter(plane: Submitter) -> None:
    """Make `plane` the current control plane."""
    _open_planes.append(plane)


def leave(plane: Submitter) -> None:
    """Remove a closed `plane`; the one opened before it is current again."""
    _open_planes.remove(plane)


def _is_storable(at: datetime) -> bool:
    """Return whether a moment can be expressed in UTC, as every store does."""
    try:
        at.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _read_timeout(timeout: object, job: "AnyJob") -> float:
    """Return the timeout of a submission in seconds. Raises InvalidArguments unless the job's own allows it."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= job.timeout_s:
        raise InvalidArguments(
            f"the timeout of '{job.name}' must be more than 0 and at most {job.timeout_s:g} seconds, not {timeout!r}",
            hint=f"leave it out, or give at most the job's own: {job.timeout_s:g}",
            option="timeout",
        )
    return float(seconds)


def _not_mappings(given: object) -> InvalidArguments:
    return InvalidArguments(
        f"submit_many takes a mapping of arguments for each job, not a value of type {type(given).__name__}",
        hint='write submit_many([{"name": value}, …])',
    )


def _attach_submitted(
    error: BaseException, submitted: Sequence[Handle[Any]], outcomes: Sequence[list[Handle[Any]] | BaseException]
) -> None:
    """Attach to the error of a batch the handles of the submitted jobs: the first ones, and later successful chunks."""
    by_index = dict(enumerate(submitted))
    for number, handles in enumerate(outcomes):
        if not isinstance(handles, BaseException):
            by_index |= enumerate(handles, len(submitted) + number * CHUNK_SIZE)
    if not by_index:
        return
    note = f"{len(by_index):,} jobs of the batch were submitted and stay submitted"
    if isinstance(error, CplaneError):
        error.submitted = by_index
        note += ": error.submitted has their handles"
    error.add_note(note)
