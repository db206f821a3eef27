"""The options of `@job`: their defaults, their checks, and what an impossible one is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import TypeVar

from cplane.errors import InvalidArguments, InvalidJob, UsageError
from cplane.jobs.names import JOB_NAME, QUEUE_NAME
from cplane.jobs.page_options import PageOptions
from cplane.jobs.per_host import Declared, PerHost
from cplane.jobs.retry import RetryPolicy
from cplane.jobs.signature import Signature, place
from cplane.jobs.states import Priority

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page
    from sqlalchemy.ext.asyncio import AsyncSession as SqlAlchemySession
    from sqlmodel.ext.asyncio.session import AsyncSession

    from cplane.jobs.context import Context

    I1 = TypeVar("I1", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I2 = TypeVar("I2", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)
    I3 = TypeVar("I3", Page, BrowserContext, Context, AsyncSession, SqlAlchemySession)


DEFAULT_QUEUE = "default"


BROWSER_QUEUE = "browser"


DEFAULT_TIMEOUT_S = 300.0


RESULT_TTL_S = 3600.0
"""How long Redis keeps the result of a transient job, and always at least why one failed."""


OPTIONS = ("name", "queue", "priority", "timeout", "retries", "record", "result_ttl", "browser", "check", "per_host")


Arguments = Mapping[str, Any]
"""A job's typed arguments by name: those that were given, and the defaults of the others."""


BrowserOptions = Mapping[str, object] | Callable[[Arguments], Mapping[str, object]]


Check = Callable[[Arguments], None]


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
        priority=read_priority(given.get("priority", Priority.NORMAL), InvalidJob, where),
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


def read_priority(value: object, kind: type[UsageError], where: str = "") -> Priority:
    """Return the priority of that name; any other value raises an error of type `kind`."""
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
