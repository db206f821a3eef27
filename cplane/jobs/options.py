"""The options of `@job`: their defaults, their checks, and the errors of impossible values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, cast

from cplane.errors import InvalidArguments, InvalidJob, UsageError
from cplane.jobs.names import DEFAULT_QUEUE, JOB_NAME, QUEUE_NAME
from cplane.jobs.page_options import PageOptions
from cplane.jobs.per_host import DeclaredLimits, PerHost
from cplane.jobs.retry import RetryPolicy
from cplane.jobs.signature import Signature, location
from cplane.jobs.states import Priority

BROWSER_QUEUE = "browser"
"""Queue of jobs that a page is injected into, unless they name another."""

DEFAULT_TIMEOUT_S = 300.0

DEFAULT_RESULT_TTL_S = 3600.0
"""How long Redis keeps the result of a transient job by default, and the error of a failed one that keeps no result."""

MAX_DURATION_S = 10 * 366 * 86_400
"""Upper bound of durations: ten years."""

OPTIONS = (
    "name",
    "queue",
    "priority",
    "timeout",
    "retries",
    "record",
    "result_ttl",
    "browser",
    "check",
    "per_host",
    "runs_in",
    "memory_mb",
)

Arguments = Mapping[str, Any]
"""The typed arguments of a job by name: those that were given, and the defaults of the others."""

BrowserOptions = Mapping[str, object] | Callable[[Arguments], Mapping[str, object]]
Check = Callable[[Arguments], None]

RunsIn = Literal["thread", "process"]

MIN_MEMORY_MB, MAX_MEMORY_MB = 16, 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one job, checked and with their defaults. Durations are in seconds."""

    name: str
    queue: str
    priority: Priority
    timeout_s: float
    retry: RetryPolicy
    record: bool
    result_ttl_s: float
    browser: BrowserOptions
    check: Check | None
    per_host: DeclaredLimits
    runs_in: RunsIn
    memory_mb: int | None

    @property
    def keeps_result(self) -> bool:
        """Whether the result of the job can be read once it has ended."""
        return self.record or self.result_ttl_s > 0

    @property
    def no_result_message(self) -> str:
        """The error message for a caller that waits for the result of a job that keeps none."""
        return f"'{self.name}' keeps no result that could be waited for (result_ttl=0)"

    @property
    def error_ttl_s(self) -> float:
        """Seconds that Redis keeps the error of a transient job that failed or was cancelled."""
        return self.result_ttl_s or DEFAULT_RESULT_TTL_S


def check_options(fn: Callable[..., Any], signature: Signature, given: Mapping[str, Any]) -> Options:
    """Check the options of `@job` and fill in the defaults.

    Args:
        fn: the function of the job.
        signature: its parameters.
        given: options by name; None counts as not given.

    Raises:
        InvalidJob: an option has an impossible value; the hint says what to write instead.
    """
    given = {option: value for option, value in given.items() if value is not None}
    name = given.get("name", fn.__name__)
    needs_page = signature.injects("page") or signature.injects("browser_context")
    queue = given.get("queue", BROWSER_QUEUE if needs_page else DEFAULT_QUEUE)
    where = f"job '{name}' ({location(fn)})"
    if not isinstance(name, str) or not JOB_NAME.fullmatch(name):
        raise InvalidJob(
            f"'{name}' is not a job name",
            hint="a letter, then letters, digits, '_', '.', ':', '-', at most 200: @job(name=…)",
        )
    if not isinstance(queue, str) or not QUEUE_NAME.fullmatch(queue):
        raise InvalidJob(f"{where}: '{queue}' is not a queue name", hint="letters, digits, '_', '.', '-', at most 100")
    record = given.get("record", True)
    if not isinstance(record, bool):
        raise InvalidJob(f"{where}: record is True or False, not {record!r}", hint="True is the default")
    if record and "result_ttl" in given:
        raise InvalidJob(
            f"{where}: a record keeps its result, so result_ttl does not apply", hint="use it with record=False"
        )
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
        hint = "it raises ValueError if they do not go together"
        raise InvalidJob(f"{where}: check is a function of the arguments, not {check!r}", hint=hint)
    return Options(
        name=name,
        queue=queue,
        priority=read_priority(given.get("priority", Priority.NORMAL), InvalidJob, where),
        timeout_s=_seconds(where, "timeout", given.get("timeout"), DEFAULT_TIMEOUT_S),
        retry=_policy(where, given.get("retries", 0)),
        record=record,
        result_ttl_s=_seconds(where, "result_ttl", given.get("result_ttl"), DEFAULT_RESULT_TTL_S, zero=True),
        browser=cast("BrowserOptions", browser),
        check=cast("Check | None", check),
        per_host=_per_host(where, signature, given.get("per_host")),
        runs_in=_runs_in(where, signature, given),
        memory_mb=given.get("memory_mb"),
    )


def _check_browser(where: str, browser: BrowserOptions) -> None:
    """Check fixed page options now; those that a function makes are checked when the job runs."""
    if callable(browser):
        return
    try:
        PageOptions.read(browser)
    except InvalidArguments as error:
        raise InvalidJob(f"{where}: {error.message}", hint=error.hint) from None


def _per_host(where: str, signature: Signature, value: object) -> DeclaredLimits:
    if value is None or value is False:
        return value
    try:
        declared = PerHost.read(value)
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"{where}: {error}", hint="for example per_host=PerHost(concurrency=2, rate=1.0)") from None
    if declared.of not in signature.accepted.parameters:
        known = ", ".join(signature.accepted.parameters) or "none"
        hint = f'name the argument that holds the URL: per_host=PerHost(of="…"); its arguments: {known}'
        raise InvalidJob(f"{where}: per_host reads '{declared.of}', which is not an argument of the job", hint=hint)
    return declared


def _runs_in(where: str, signature: Signature, given: Mapping[str, Any]) -> RunsIn:
    """Check where a plain function runs, and how much memory its process may take."""
    runs_in, memory_mb = given.get("runs_in"), given.get("memory_mb")
    if runs_in is not None and not (isinstance(runs_in, str) and runs_in in {"thread", "process"}):
        raise InvalidJob(f"{where}: runs_in is 'thread' or 'process', not {runs_in!r}", hint="'thread' is the default")
    if runs_in is not None and signature.is_async:
        raise InvalidJob(
            f"{where}: runs_in is for a plain `def`; an async job runs in the event loop", hint="leave it out"
        )
    if memory_mb is not None and runs_in != "process":
        raise InvalidJob(f"{where}: memory_mb limits a process, and the job runs in none", hint='add runs_in="process"')
    if memory_mb is not None and (
        not isinstance(memory_mb, int) or isinstance(memory_mb, bool) or not MIN_MEMORY_MB <= memory_mb <= MAX_MEMORY_MB
    ):
        hint = "for example memory_mb=512"
        raise InvalidJob(
            f"{where}: memory_mb is a number of MiB, {MIN_MEMORY_MB} to {MAX_MEMORY_MB}, not {memory_mb!r}", hint=hint
        )
    if runs_in == "process" and (unfit := set(signature.injected.values()) - {"context"}):
        raise InvalidJob(
            f"{where}: a process has no {unfit.pop().replace('_', ' ')}; of what is injected it has Context alone",
            hint='make it an async job, or leave out runs_in="process"',
        )
    return "process" if runs_in == "process" else "thread"


def _seconds(where: str, option: str, value: object, default: float, *, zero: bool = False) -> float:
    if value is None:
        return default
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if (
        not isinstance(seconds, int | float)
        or isinstance(seconds, bool)
        or not (0 <= seconds <= MAX_DURATION_S and (seconds or zero))
    ):
        raise InvalidJob(
            f"{where}: {option} is a positive number of seconds{', 0' if zero else ''} or a timedelta, not {value!r}",
            hint=f"for example {option}=60; at most ten years",
        )
    return float(seconds)


def read_priority(value: object, kind: type[UsageError], where: str = "") -> Priority:
    """Return the priority of this name.

    Args:
        value: "high", "normal" or "low".
        kind: type of the error for any other value.
        where: start of the error message: the job, for an option of `@job`.
    """
    try:
        return Priority(cast("str", value))
    except ValueError:
        known = ", ".join(f'"{word}"' for word in Priority)
        raise kind(f"{where and f'{where}: '}{value!r} is not a priority", hint=f"use one of {known}") from None


def _policy(where: str, retries: object) -> RetryPolicy:
    if isinstance(retries, RetryPolicy):
        return retries
    try:
        return RetryPolicy(retries=cast("int", retries))
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"{where}: {error}", hint="retries is a number or a RetryPolicy") from None
