"""The `@job` decorator: turns a function into a job with a name, options, a schema and a typed `submit`."""

import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Protocol, cast, overload

from typing_extensions import TypeVar

from cplane.errors import InvalidJob
from cplane.jobs.definition import AnyJob, Job
from cplane.jobs.options import OPTIONS, BrowserOptions, Check, RunsIn, check_options
from cplane.jobs.per_host import PerHost
from cplane.jobs.registry import registry
from cplane.jobs.retry import RetryPolicy
from cplane.jobs.signature import location, read_signature
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
    """`@job(…)` before it is applied to a function. Injected parameters come first, then the job's arguments."""

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
        """Return the job."""
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
        runs_in: RunsIn | None = None,
        memory_mb: int | None = None,
    ) -> JobDecorator: ...


def job(fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Turn a function into a job, bare (`@job`) or with options (`@job(queue="browser", retries=3)`).

    Parameters annotated `Page`, `BrowserContext`, `Context` or `AsyncSession` are injected when the job runs. All other
    parameters are the job's arguments, which pydantic validates at submission. A plain `def` runs in a thread, or in a
    process that can be stopped.

    Options, all of them keywords:

    - `name`: name of the job, up to 200 characters. Default: the name of the function.
    - `queue`: queue that the job is submitted to. Default: "browser" if a page is injected, else "default".
    - `priority`: lane of the queue: "high", "normal" or "low". Default: "normal".
    - `timeout`: maximum duration of one attempt, seconds or a timedelta. Default: 300 s.
    - `retries`: maximum number of retries, 0 to 1000, or a `RetryPolicy`. Default: 0.
    - `record`: whether the job has a row in Postgres; a job without one is transient. Default: True.
    - `result_ttl`: time that a transient result is kept, seconds or a timedelta; 0: errors only, 1 h. Default: 3600 s.
    - `browser`: page options (`PageOptions`) as a mapping, or a function of the arguments that makes it. Default: none.
    - `check`: function of the arguments that raises ValueError at submission if they do not go together. Default: none.
    - `per_host`: limits per host, a `PerHost` or a mapping of its arguments; False: none. Default: from the settings.
    - `runs_in`: where a plain `def` runs: "thread", or "process", which is killed at the timeout. Default: "thread".
    - `memory_mb`: MiB that its process may allocate, 16 to 1048576. Default: no limit.

    Args:
        fn: the function, if `@job` is used bare.
        **options: the options above.

    Returns:
        The job; or, for `@job(…)`, a decorator that returns it.

    Raises:
        InvalidJob: an option is unknown or impossible, a parameter cannot be an argument, or the name is taken.

    Example:
        ```python
        from cplane import ControlPlane, RetryPolicy, job


        @job(timeout=60, retries=RetryPolicy(retries=3, backoff_s=5))
        async def add(x: int, y: int = 2) -> int:
            return x + y


        async with ControlPlane():
            handle = await add.submit(1)
            assert await handle.result(timeout=30) == 3

        assert await add(1, y=5) == 6  # still the function that it was
        ```
    """
    _refuse_misuse(fn, options)
    caller = sys._getframe(1).f_locals  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  annotations of a function defined in a function may name its locals
    if fn is not None:
        return make_job(fn, caller, options)

    def decorate(fn: Callable[..., Any]) -> AnyJob:
        return make_job(fn, caller, options)

    return decorate


def _refuse_misuse(fn: Callable[..., Any] | None, options: Mapping[str, Any]) -> None:
    if unknown := options.keys() - set(OPTIONS):
        raise InvalidJob(
            f"@job has no option {', '.join(sorted(unknown))}", hint=f"known options: {', '.join(OPTIONS)}"
        )
    if fn is not None and not callable(fn):
        raise InvalidJob(f"@job decorates a function, not {fn!r}", hint="options are keywords: @job(queue=…)")


def make_job(fn: Callable[..., Any], names: Mapping[str, object], options: Mapping[str, Any]) -> AnyJob:
    """Check the function and its options, build the job and register it. `names` are the caller's local names."""
    if isinstance(fn, Job):
        raise InvalidJob(f"'{cast('AnyJob', fn).name}' is already a job", hint="use @job once")
    if not inspect.isfunction(fn):
        raise InvalidJob(f"@job decorates a function, not {fn!r}", hint="put it directly above `async def`")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise InvalidJob(
            f"job '{fn.__name__}' ({location(fn)}) is a generator", hint="return a list instead of yielding"
        )
    signature = read_signature(fn, names)
    built: AnyJob = Job(fn, check_options(fn, signature, options), signature)
    registry.add(built)
    return built
