"""The `@job` decorator: a function becomes a job with a name, options, a schema and a typed `submit`."""

import asyncio
import inspect
import sys
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial, update_wrapper
from itertools import islice
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    Protocol,
    cast,
    overload,
)

import msgspec
from pydantic import (
    JsonValue,
)
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import ParamSpec, TypeVar

from cplane.errors import (
    CplaneError,
    InvalidArguments,
    InvalidJob,
    NoControlPlane,
    Problem,
    ResultNotSerializable,
    UnknownJob,
    UsageError,
)
from cplane.jobs.handle import Handle
from cplane.jobs.names import JOB_NAME, QUEUE_NAME, SESSION_NAME
from cplane.jobs.page_options import PageOptions
from cplane.jobs.per_host import Declared, PerHost, host_of, limits, places_of
from cplane.jobs.retry import RetryPolicy
from cplane.jobs.signature import ArgumentsSchema, Signature, has_nul, place, read_signature
from cplane.jobs.states import Priority

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page
    from sqlalchemy.ext.asyncio import AsyncSession as SqlAlchemySession
    from sqlmodel.ext.asyncio.session import AsyncSession

    from cplane.jobs.context import Context

    I1 = TypeVar("I1", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I2 = TypeVar("I2", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I3 = TypeVar("I3", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)

P = ParamSpec("P")
R = TypeVar("R")
CallP = ParamSpec("CallP", default=...)
CallR = TypeVar("CallR", default=Any)

DEFAULT_QUEUE = "default"
BROWSER_QUEUE = "browser"
DEFAULT_TIMEOUT_S = 300.0
RESULT_TTL_S = 3600.0
"""How long Redis keeps the result of a transient job, and always at least why one failed."""
CHUNK = 1000
"""Submissions of `submit_many` that are recorded in one statement."""

CHUNKS_UNDER_WAY = 2
"""Chunks of one `submit_many` that are being recorded and scheduled, while the next is validated."""

OPTIONS = ("name", "queue", "priority", "timeout", "retries", "record", "result_ttl", "browser", "check", "per_host")

Arguments = Mapping[str, Any]
"""A job's typed arguments by name: those that were given, and the defaults of the others."""

BrowserOptions = Mapping[str, object] | Callable[[Arguments], Mapping[str, object]]
Check = Callable[[Arguments], None]


@dataclass(frozen=True, slots=True)
class Resources:
    """What an attempt can hand to a job that asks for it by type."""

    context: object = None
    page: object = None
    browser_context: object = None
    session: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `@job(…)` was told, checked."""

    name: str
    queue: str
    priority: Priority
    timeout_s: float
    retry: RetryPolicy
    record: bool
    result_ttl_s: float
    browser: BrowserOptions
    check: Check | None
    per_host: Declared

    @property
    def keeps_result(self) -> bool:
        """Whether what the job returns can be asked for once it has ended."""
        return self.record or self.result_ttl_s > 0

    @property
    def no_result(self) -> str:
        """Why nobody can wait for the result of a job that keeps none."""
        return f"'{self.name}' keeps no result that could be waited for (result_ttl=0)"

    @property
    def error_ttl_s(self) -> float:
        """How long Redis keeps why a transient job failed or was cancelled."""
        return self.result_ttl_s or RESULT_TTL_S


class Submission(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call of a job on its way to the control plane; `args_json` has been validated."""

    job: "AnyJob"
    args_json: bytes
    queue: str
    priority: Priority = Priority.NORMAL
    delay_s: float | None = None
    run_at: datetime | None = None
    key: str | None = None

    def places(self, defaults: PerHost | None) -> str | None:
        """The places that the job takes, of a host and of a browser session, as text; None: none (`politeness.places_of`)."""
        session, host = self.job.session(self.args_json), self.job.host(self.args_json, defaults)
        return None if session is host is None else places_of(session, host)


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


class Job(Generic[P, R, CallP, CallR]):
    """A function that can be submitted. Made by `@job`; calling it calls the function."""

    def __init__(self, fn: Callable[..., Any], options: Options, signature: "Signature") -> None:
        self.fn = fn
        self.options = options
        self.signature = signature
        self.name = options.name
        """The name the job is recorded under."""
        self.timeout_s = options.timeout_s
        self.needs_page = signature.wants("page") or signature.wants("browser_context")
        """Whether the job asks for a page or a browser context."""
        self._hosts: dict[str, msgspec.json.Decoder[Any]] = {}
        update_wrapper(cast("Callable[..., Any]", self), fn)

    def __call__(self, *args: CallP.args, **kwargs: CallP.kwargs) -> CallR:
        """Call the function itself, here and now, as if it were not decorated."""
        return cast("CallR", self.fn(*args, **kwargs))

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Record the job and schedule it; answers once it is recorded.

        Raises:
            InvalidArguments: the arguments do not fit the function's annotations.
            NoControlPlane: outside `async with ControlPlane()`.
            DatabaseUnavailable: Postgres did not answer; nothing was recorded, or it is unknown whether it was.
        """
        return await self.using().submit(*args, **kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Alias of `submit`, for those who come from Celery."""
        return await self.using().submit(*args, **kwargs)

    async def submit_many(
        self, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> list[Handle[R]]:
        """Submit one job for each mapping of arguments; `calls` is read, recorded and scheduled in chunks of 1,000.

        A chunk is submitted whole or not at all. After an error no more is read; what was submitted by then stays so, and every
        error of ours has it: `error.submitted` has the handles by their places.

        Raises:
            InvalidArguments: a call does not fit the job; the message begins with its place, as calls[1234].
            DatabaseUnavailable: Postgres did not answer; whether the chunks without an answer were recorded is not known.
            QueueUnavailable: the same, of Redis, for transient jobs.
        """
        return await self.using().submit_many(calls)

    def using(
        self,
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> "Call[P, R]":
        """Options for one submission; they never collide with the job's own arguments.

        Args:
            delay: seconds (or a timedelta) from now until the job may start.
            at: an aware datetime at which the job may start.
            key: an idempotency key, at most 255 characters: the same key with the same call answers the first record.
            queue: another queue than the job's own.
            priority: "high", "normal" or "low", instead of the job's own.
        """
        return Call(self, delay=delay, at=at, key=key, queue=queue, priority=priority)

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """Validate a Python call; answer its arguments as JSON."""
        return self._checked(self.signature.encode(self.name, self.signature.bind(self.name, args, kwargs)))

    def encode_json(self, args: Mapping[str, JsonValue]) -> bytes:
        """Validate arguments that came as JSON; answer them as JSON."""
        return self._checked(self.signature.encode_json(self.name, args))

    def decode(self, args_json: bytes) -> dict[str, Any]:
        """The typed arguments by name from their JSON."""
        return self.signature.decode(self.name, args_json)

    def decode_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Any]:
        """The typed arguments by name of a call that came without a record: what JSON has, or what a client of arq put there.

        Raises:
            InvalidArguments: they do not fit.
        """
        values = self.signature.bind(self.name, tuple(args), kwargs)
        try:
            return self.signature.decode(self.name, msgspec.json.encode(values))
        except (TypeError, ValueError) as error:
            raise InvalidArguments(f"the arguments of '{self.name}' are not JSON: {error}") from None

    def page_options(self, arguments: Arguments) -> Mapping[str, object]:
        """What `@job(browser=…)` says for these arguments."""
        browser = self.options.browser
        return browser(arguments) if callable(browser) else browser

    def limits(self, defaults: PerHost | None) -> PerHost | None:
        """How much of a host's time its jobs may take; None: it is not limited per host."""
        return limits(self.options.per_host, defaults)

    def host(self, args_json: bytes, defaults: PerHost | None) -> str | None:
        """The host whose time these arguments take; None: the job is not limited per host, or they name none."""
        limited = self.limits(defaults)
        if limited is None:
            return None
        decoder = self._hosts.get(limited.of)
        if decoder is None:
            if limited.of not in self.signature.own.parameters:
                return None
            decoder = self._hosts[limited.of] = _text_decoder(limited.of)
        try:
            url = decoder.decode(args_json).url
        except msgspec.ValidationError:  # it is not a text
            return None
        return host_of(url) if url else None

    def session(self, args_json: bytes) -> str | None:
        """The browser session that the job needs with these arguments; None: none. What is wrong with them is told when the job runs."""
        browser = self.options.browser
        if not self.needs_page or not self.options.record or not browser:
            return None
        try:
            name = self.page_options(self.decode(args_json) if callable(browser) else {}).get("session")
        except Exception:
            return None
        return name if isinstance(name, str) and SESSION_NAME.fullmatch(name) else None

    def _checked(self, args_json: bytes) -> bytes:
        if self.options.check is not None:
            try:
                self.options.check(self.decode(args_json))
            except ValueError as error:
                raise InvalidArguments(
                    f"the arguments of '{self.name}' do not fit: {error}", [Problem("", str(error))]
                ) from None
        return args_json

    def decode_result(self, result_json: bytes, /) -> R:
        """The typed result from its JSON.

        Raises:
            ResultNotSerializable: it does not fit the return type any more.
        """
        try:
            return cast("R", self.signature.result.validate_json(result_json))
        except PydanticValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ResultNotSerializable(f"the result of '{self.name}' does not fit its return type: {reason}") from None

    def encode_result(self, result: object) -> bytes:
        """The JSON of what the job returned.

        Raises:
            ResultNotSerializable: naming the part that cannot be stored.
        """
        if result is None and self.signature.returns_nothing:
            return b"null"
        try:
            result_json = self.signature.result.serializer.to_json(result, warnings="none", by_alias=True)
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            hint = "return JSON data or a pydantic model; files go to ctx.artifact(name, data)"
            raise ResultNotSerializable(
                f"what '{self.name}' returned cannot be stored as JSON: {error}", hint=hint
            ) from error
        if has_nul(result_json):
            raise ResultNotSerializable(
                f"what '{self.name}' returned contains the character NUL", hint="Postgres cannot store it in JSON"
            )
        return result_json

    def call(self, arguments: Arguments, resources: Resources, threads: Executor | None = None) -> Awaitable[object]:
        """Start the function with decoded arguments and what it asks for; a plain `def` runs in a thread of `threads`."""
        kwargs = arguments
        if self.signature.injected:
            kwargs = {**arguments}
            for parameter, kind in self.signature.injected.items():
                kwargs[parameter] = getattr(resources, kind)
        if self.signature.is_async and not self.signature.positional_only:
            started: Awaitable[object] = self.fn(**kwargs)
            return started
        kwargs = dict(kwargs)
        positional = [kwargs.pop(parameter) for parameter in self.signature.positional_only]
        if self.signature.is_async:
            return cast("Awaitable[object]", self.fn(*positional, **kwargs))
        return asyncio.get_running_loop().run_in_executor(threads, partial(self.fn, *positional, **kwargs))

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the job's arguments."""
        return self.signature.arguments.model_json_schema(schema_generator=ArgumentsSchema)

    def result_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the job's result."""
        return self.signature.result.json_schema(mode="serialization", schema_generator=ArgumentsSchema)

    def __repr__(self) -> str:
        return f"<job {self.name}>"


AnyJob = Job[..., Any, ..., Any]


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
        self._priority = job.options.priority if priority is None else _priority(priority, InvalidArguments)

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


@dataclass(slots=True)
class Registry:
    """Jobs by name."""

    jobs: dict[str, AnyJob] = field(default_factory=dict[str, AnyJob])

    def add(self, job: AnyJob) -> None:
        """Register a job; the same function imported twice replaces itself, and a job of yours goes before a built-in one of its name."""
        known = self.jobs.get(job.name)
        if known is not None and _built_in(job) and not _built_in(known):
            return
        if known is not None and _source(known.fn) != _source(job.fn) and not _built_in(known):
            raise InvalidJob(
                f"two jobs are named '{job.name}': {place(known.fn)} and {place(job.fn)}",
                hint="give one of them another name: @job(name=…)",
            )
        self.jobs[job.name] = job

    def needs_pages(self, queue: str) -> bool:
        """Whether jobs of this queue ask for pages."""
        return any(job.needs_page and job.options.queue == queue for job in self.jobs.values())

    def get(self, name: str) -> AnyJob:
        """The job of that name."""
        job = self.jobs.get(name)
        if job is None:
            known = ", ".join(sorted(self.jobs)) or "none"
            raise UnknownJob(f"no job named '{name}'; known: {known}", hint="is its module in CPLANE_IMPORTS?")
        return job


def _built_in(job: AnyJob) -> bool:
    return str(getattr(job.fn, "__module__", "")).startswith("cplane.tasks.")


registry = Registry()
"""The jobs this process has imported."""

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


class JobDecorator(Protocol):
    """`@job(…)`, waiting for its function. What a job asks for by type stands first, then its own arguments."""

    if TYPE_CHECKING:

        @overload
        def __call__(
            self, fn: Callable[Concatenate[I1, I2, I3, P], Coroutine[Any, Any, R]], /
        ) -> Job[P, R, Concatenate[I1, I2, I3, P], Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(
            self, fn: Callable[Concatenate[I1, I2, P], Coroutine[Any, Any, R]], /
        ) -> Job[P, R, Concatenate[I1, I2, P], Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(
            self, fn: Callable[Concatenate[I1, P], Coroutine[Any, Any, R]], /
        ) -> Job[P, R, Concatenate[I1, P], Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Job[P, R, P, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, fn: Callable[Concatenate[I1, I2, P], R], /) -> Job[P, R, Concatenate[I1, I2, P], R]: ...
        @overload
        def __call__(self, fn: Callable[Concatenate[I1, P], R], /) -> Job[P, R, Concatenate[I1, P], R]: ...
        @overload
        def __call__(self, fn: Callable[P, R], /) -> Job[P, R, P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> Any:
        """The job."""
        ...


if TYPE_CHECKING:

    @overload
    def job(
        fn: Callable[Concatenate[I1, I2, I3, P], Coroutine[Any, Any, R]], /
    ) -> Job[P, R, Concatenate[I1, I2, I3, P], Coroutine[Any, Any, R]]: ...
    @overload
    def job(
        fn: Callable[Concatenate[I1, I2, P], Coroutine[Any, Any, R]], /
    ) -> Job[P, R, Concatenate[I1, I2, P], Coroutine[Any, Any, R]]: ...
    @overload
    def job(
        fn: Callable[Concatenate[I1, P], Coroutine[Any, Any, R]], /
    ) -> Job[P, R, Concatenate[I1, P], Coroutine[Any, Any, R]]: ...
    @overload
    def job(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Job[P, R, P, Coroutine[Any, Any, R]]: ...
    @overload
    def job(fn: Callable[Concatenate[I1, I2, P], R], /) -> Job[P, R, Concatenate[I1, I2, P], R]: ...
    @overload
    def job(fn: Callable[Concatenate[I1, P], R], /) -> Job[P, R, Concatenate[I1, P], R]: ...
    @overload
    def job(fn: Callable[P, R], /) -> Job[P, R, P, R]: ...
    @overload
    def job(
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
        timeout: float | timedelta | None = None,
        retries: int | RetryPolicy = 0,
        record: bool = True,
        result_ttl: float | timedelta | None = None,
        browser: BrowserOptions | None = None,
        check: Check | None = None,
        per_host: PerHost | Mapping[str, Any] | Literal[False] | None = None,
    ) -> JobDecorator: ...


def job(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a job. Bare (`@job`) or called (`@job(queue="browser", retries=3)`).

    What the function asks for by type (`Page`, `BrowserContext`, `Context`, `AsyncSession`) is given to it when it runs; every
    other parameter is one of the job's arguments, validated by pydantic when submitted. A plain `def` runs in a thread.

    Args:
        fn: the function.
        options: `name` (default: the function's), `queue` (default: "browser" for jobs that ask for a page, else "default"),
            `priority` ("high", "normal" or "low": the lane of the queue it waits in), `timeout` in seconds (default 300), `retries`
            (a number or a `RetryPolicy`; default 0), `record` (False: a transient job, without a row in Postgres), `result_ttl`
            seconds a transient result is kept in Redis (default 3600; 0: only the error of a failed job is kept, for an hour),
            `browser` (page options, or a function that makes them from the arguments), `check` (a function of the arguments that
            raises ValueError at submit when they do not go together), `per_host` (a `PerHost`, or a dict of its arguments: how much of
            a host's time its jobs may take; False: no limit, whatever the settings say).

    Raises:
        InvalidJob: an unknown or impossible option, a parameter that cannot be an argument, or two jobs of one name.
    """
    if unknown := options.keys() - set(OPTIONS):
        raise InvalidJob(f"@job has no option {', '.join(sorted(unknown))}", hint=f"it takes {', '.join(OPTIONS)}")
    if fn is not None and not callable(fn):
        raise InvalidJob(f"@job decorates a function, not {fn!r}", hint="options are given by name: @job(queue=…)")
    caller = sys._getframe(1).f_locals  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  annotations of a function defined in a function may name its locals
    if fn is not None:
        return make_job(fn, caller, options)

    def decorate(fn: Callable[..., Any]) -> AnyJob:
        return make_job(fn, caller, options)

    return decorate


def make_job(fn: Callable[..., Any], names: Mapping[str, object], options: Mapping[str, Any]) -> AnyJob:
    """Check, build and register."""
    if isinstance(fn, Job):
        raise InvalidJob(f"'{cast('AnyJob', fn).name}' is a job already", hint="use @job once")
    if not inspect.isfunction(fn):
        raise InvalidJob(f"@job decorates a function, not {fn!r}", hint="put it directly above `async def`")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidJob(f"job '{fn.__name__}' ({place(fn)}) is a generator", hint="return a list instead of yielding")
    signature = read_signature(fn, names)
    built: AnyJob = Job(fn, check_options(fn, signature, options), signature)
    registry.add(built)
    return built


def check_options(fn: Callable[..., Any], signature: Signature, given: Mapping[str, Any]) -> Options:
    """The options with their defaults; an impossible one is an error that says what to write instead."""
    given = {option: value for option, value in given.items() if value is not None}
    name = given.get("name", fn.__name__)
    needs_page = signature.wants("page") or signature.wants("browser_context")
    queue = given.get("queue", BROWSER_QUEUE if needs_page else DEFAULT_QUEUE)
    where = f"job '{name}' ({place(fn)})"
    if not isinstance(name, str) or not JOB_NAME.fullmatch(name):
        raise InvalidJob(
            f"'{name}' is not a job name",
            hint="a letter, then letters, digits, '_', '.', ':', '-', at most 200: @job(name=…)",
        )
    if not isinstance(queue, str) or not QUEUE_NAME.fullmatch(queue):
        raise InvalidJob(f"{where}: '{queue}' is not a queue name", hint="letters, digits, '_', '.', '-', at most 100")
    record = given.get("record", True)
    if not isinstance(record, bool):
        raise InvalidJob(f"{where}: record is True or False, not {record!r}", hint="leave it out: True is the default")
    if record and "result_ttl" in given:
        raise InvalidJob(f"{where}: a record keeps its result", hint="result_ttl goes with record=False")
    browser: object = given.get("browser", {})
    if not isinstance(browser, Mapping) and not callable(browser):
        hint = 'for example browser={"locale": "de-DE"}'
        raise InvalidJob(f"{where}: browser is a mapping of page options, not {browser!r}", hint=hint)
    _check_browser(where, cast("BrowserOptions", browser))
    if not record and isinstance(browser, Mapping) and "session" in browser:
        raise InvalidJob(
            f"{where}: a job without a record cannot hold a browser session", hint="leave out record=False"
        )
    check = given.get("check")
    if check is not None and not callable(check):
        hint = "it raises ValueError when they do not go together"
        raise InvalidJob(f"{where}: check is a function of the arguments, not {check!r}", hint=hint)
    return Options(
        name=name,
        queue=queue,
        priority=_priority(given.get("priority", Priority.NORMAL), InvalidJob, where),
        timeout_s=_seconds(where, "timeout", given.get("timeout"), DEFAULT_TIMEOUT_S),
        retry=_policy(where, given.get("retries", 0)),
        record=record,
        result_ttl_s=_seconds(where, "result_ttl", given.get("result_ttl"), RESULT_TTL_S, zero=True),
        browser=cast("BrowserOptions", browser),
        check=cast("Check | None", check),
        per_host=_per_host(where, signature, given.get("per_host")),
    )


def _check_browser(where: str, browser: BrowserOptions) -> None:
    """Page options that every run has are looked at now; those that a function makes, when it has made them."""
    if callable(browser):
        return
    try:
        PageOptions.read(browser)
    except InvalidArguments as error:
        raise InvalidJob(f"{where}: {error.message}", hint=error.hint) from None


def _per_host(where: str, signature: Signature, value: object) -> Declared:
    if value is None or value is False:
        return value
    try:
        declared = PerHost.read(value)
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"{where}: {error}", hint="for example per_host=PerHost(concurrency=2, rate=1.0)") from None
    if declared.of not in signature.own.parameters:
        known = ", ".join(signature.own.parameters) or "none"
        hint = f'name the argument that holds the URL: per_host=PerHost(of="…"); its arguments: {known}'
        raise InvalidJob(f"{where}: per_host reads '{declared.of}', which is not an argument of the job", hint=hint)
    return declared


def _seconds(where: str, option: str, value: object, default: float, *, zero: bool = False) -> float:
    if value is None:
        return default
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not (0 <= seconds <= 10 * 366 * 86400 and (seconds or zero))
    ):
        raise InvalidJob(
            f"{where}: {option} is a positive number of seconds{', 0' if zero else ''} or a timedelta, not {value!r}",
            hint=f"for example {option}=60; at most ten years",
        )
    return float(seconds)


def _priority(value: object, kind: type[UsageError], where: str = "") -> Priority:
    try:
        return Priority(cast("str", value))
    except ValueError:
        known = ", ".join(f'"{word}"' for word in Priority)
        raise kind(f"{where and f'{where}: '}{value!r} is not a priority", hint=f"it is one of {known}") from None


def _policy(where: str, retries: object) -> RetryPolicy:
    if isinstance(retries, RetryPolicy):
        return retries
    try:
        return RetryPolicy(retries=cast("int", retries))
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"{where}: {error}", hint="retries is a number or a RetryPolicy") from None


def _text_decoder(argument: str) -> "msgspec.json.Decoder[Any]":
    """Reads one argument of many, as `url`; None where it is absent."""
    only = msgspec.defstruct("Only", [("url", str | None, msgspec.field(default=None, name=argument))])
    return msgspec.json.Decoder(only)


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


def _source(fn: Callable[..., Any]) -> tuple[str, str]:
    return str(Path(fn.__code__.co_filename).resolve()), fn.__qualname__
