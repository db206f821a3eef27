"""The `@job` decorator: a function becomes a job with a name, options, a schema and a typed `submit`."""

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, cast, overload

from typing_extensions import TypeVar

from cplane.errors import InvalidJob
from cplane.jobs.definition import AnyJob, Job
from cplane.jobs.options import OPTIONS, BrowserOptions, Check, check_options
from cplane.jobs.per_host import PerHost
from cplane.jobs.registry import registry
from cplane.jobs.retry import RetryPolicy
from cplane.jobs.signature import place, read_signature
from cplane.jobs.submission import P, R

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page
    from sqlalchemy.ext.asyncio import AsyncSession as SqlAlchemySession
    from sqlmodel.ext.asyncio.session import AsyncSession

    from cplane.jobs.context import Context

    I1 = TypeVar("I1", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I2 = TypeVar("I2", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I3 = TypeVar("I3", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)


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
