"""What a worker can run: recorded jobs, transient jobs and arq functions, behind one protocol.

The worker's pipeline knows this protocol alone. What differs between the kinds (where the arguments are, what a retry costs, what is
kept of the result) is a method here, not a branch there. arq's functions are in `arq_functions.py`.
"""

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import msgspec

from cplane.errors import InvalidArguments
from cplane.jobs.context import Context
from cplane.jobs.definition import AnyJob, Resources
from cplane.jobs.per_host import PerHost
from cplane.jobs.retry import retry_in_s
from cplane.jobs.states import MAX_CRASHES, AttemptState, State
from cplane.redis.envelope import Envelope, next_envelope
from cplane.runtime.error_text import Error
from cplane.runtime.offload import RemoteError
from cplane.worker.outcome import Outcome
from cplane.worker.process_job import JsonResult, run_in_process
from cplane.worker.process_pool import ProcessPool
from cplane.worker.threads import JobThreads

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt


class Retention(NamedTuple):
    """What stays in Redis of a job that has ended."""

    result_ms: int | None
    """How long its result is kept, in ms; None: it is not kept."""
    lease_ms: int
    """How long its id stays leased, in ms."""


NOTHING_KEPT = Retention(None, 0)


class Runnable(Protocol):
    """One kind of job, as the worker's pipeline sees it."""

    @property
    def name(self) -> str:
        """The job's name."""
        ...

    @property
    def timeout_s(self) -> float:
        """Seconds that an attempt may take."""
        ...

    @property
    def needs_page(self) -> bool:
        """Whether it asks for a page or a browser context."""
        ...

    @property
    def in_thread(self) -> bool:
        """Whether its code runs in a thread."""
        ...

    @property
    def retries(self) -> int:
        """How often it runs again after failures of its own."""
        ...

    @property
    def waits(self) -> bool:
        """Whether an attempt waits, for a page or a process, before its deadline starts."""
        ...

    @property
    def injects(self) -> bool:
        """Whether it asks for anything by type."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether each submission has a record in Postgres."""
        ...

    @property
    def wants_session(self) -> bool:
        """Whether it asks for a database session."""
        ...

    def limits(self, defaults: PerHost | None) -> PerHost | None:
        """The limits of its host; None: it is not limited per host."""
        ...

    def page_options(self, arguments: Mapping[str, Any]) -> Mapping[str, object]:
        """Return the options of its page for these arguments."""
        ...

    def arguments(self, attempt: "Attempt") -> dict[str, Any]:
        """Decode the arguments. Raises InvalidArguments."""
        ...

    def given(self, attempt: "Attempt") -> object:
        """Return the arguments by name as JSON values, valid or not."""
        ...

    def start(self, attempt: "Attempt", arguments: Mapping[str, Any], resources: Resources) -> Awaitable[object]:
        """Start the job's code."""
        ...

    def succeeded(self, result: object) -> Outcome:
        """Return the outcome of code that returned `result`. Raises ResultNotSerializable, ResultTooLarge."""
        ...

    def retry_in_s(self, error: BaseException, failures: int) -> float | None:
        """Seconds until it runs again after its own failure; None: it has failed for good."""
        ...

    def spent(self, attempt: "Attempt") -> Outcome | None:
        """Return the outcome of a job whose budget was spent before this attempt began; None: it may run."""
        ...

    def next_payload(self, envelope: Envelope | None, outcome: Outcome) -> bytes:
        """Return the payload of its next attempt; empty: the payload stays."""
        ...

    def retention(self, state: State) -> Retention:
        """Return what stays in Redis when it has ended in this state."""
        ...


class DecoratedJob:
    """What recorded and transient jobs have in common: the job's own options and code.

    Args:
        job: the job.
        threads: where plain `def` functions run.
        processes: where those with `runs_in="process"` run.
        max_result_bytes: size of the largest result, bytes.
    """

    is_recorded: bool

    def __init__(self, job: AnyJob, threads: JobThreads, processes: ProcessPool, max_result_bytes: int) -> None:
        self.job = job
        self.name = job.name
        self.timeout_s = job.timeout_s
        self.needs_page = job.needs_page
        self.retries = job.options.retry.retries
        self.runs_in_process = job.options.runs_in == "process"
        self.in_thread = not job.signature.is_async and not self.runs_in_process
        self.waits = job.needs_page or self.runs_in_process
        self.injects = bool(job.signature.injected)
        self.wants_session = job.signature.injects("session")
        self.limits = job.limits
        self.page_options = job.page_options
        self._threads = threads
        self._processes = processes
        self._max_result_bytes = max_result_bytes

    def start(self, attempt: "Attempt", arguments: Mapping[str, Any], resources: Resources) -> Awaitable[object]:
        """Start the function with its arguments and what it asks for."""
        if self.runs_in_process:
            context = cast("Context | None", resources.context)
            return run_in_process(
                self._processes,
                self.job,
                attempt,
                self._args_json(attempt),
                context,
                max_result_bytes=self._max_result_bytes,
            )
        return self.job.call(arguments, resources, partial(self._threads.run, queue=attempt.lease.queue))

    def _args_json(self, attempt: "Attempt") -> bytes:
        """Return the arguments as a JSON object."""
        raise NotImplementedError

    def succeeded(self, result: object) -> Outcome:
        """Return the outcome, with the result as JSON."""
        result_json = (
            result.json if isinstance(result, JsonResult) else self.job.encode_result(result, self._max_result_bytes)
        )
        if result_json == b"null":
            return NOTHING_RETURNED
        return Outcome(state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, result_json=result_json)

    def retry_in_s(self, error: BaseException, failures: int) -> float | None:
        """The job's retry policy, except for errors that another try would only repeat."""
        return (
            error.retry_in_s if isinstance(error, RemoteError) else retry_in_s(self.job.options.retry, error, failures)
        )


class RecordedJob(DecoratedJob):
    """A job with a record: Postgres has its arguments, its budgets and its result."""

    is_recorded = True

    def arguments(self, attempt: "Attempt") -> dict[str, Any]:
        """Decode the arguments of the record."""
        return self.job.decode(attempt.args_json)

    def given(self, attempt: "Attempt") -> object:
        """Return the arguments of the record."""
        return msgspec.json.decode(attempt.args_json) if len(attempt.args_json) > len("{}") else {}

    def _args_json(self, attempt: "Attempt") -> bytes:
        return attempt.args_json

    def spent(self, attempt: "Attempt") -> Outcome | None:  # noqa: ARG002  as of every Runnable
        """None: Postgres does not start what is spent."""
        return None

    def next_payload(self, envelope: Envelope | None, outcome: Outcome) -> bytes:  # noqa: ARG002  as of every Runnable
        """No new payload: the record has the budgets."""
        return b""

    def retention(self, state: State) -> Retention:  # noqa: ARG002  as of every Runnable
        """Nothing stays in Redis: the record has the result."""
        return NOTHING_KEPT


class TransientJob(DecoratedJob):
    """A job without a record: its envelope has the arguments and the budgets, Redis keeps its result for a while."""

    is_recorded = False

    def __init__(self, job: AnyJob, threads: JobThreads, processes: ProcessPool, max_result_bytes: int) -> None:
        super().__init__(job, threads, processes, max_result_bytes)
        self._result_kept = Retention(int(job.options.result_ttl_s * 1000) or None, 0)
        self._error_kept = Retention(int(job.options.error_ttl_s * 1000) or None, 0)

    def arguments(self, attempt: "Attempt") -> dict[str, Any]:
        """Decode the arguments of the envelope."""
        envelope = cast("Envelope", attempt.envelope)
        return self.job.decode_call(envelope.a, envelope.k)

    def given(self, attempt: "Attempt") -> object:
        """Return the arguments of the envelope."""
        envelope = cast("Envelope", attempt.envelope)
        with suppress(InvalidArguments):
            return self.job.signature.bind(self.name, tuple(envelope.a), envelope.k)
        return envelope.k

    def _args_json(self, attempt: "Attempt") -> bytes:
        envelope = cast("Envelope", attempt.envelope)
        return msgspec.json.encode(self.job.signature.bind(self.name, tuple(envelope.a), envelope.k))

    def spent(self, attempt: "Attempt") -> Outcome | None:
        """Return the failure of a job whose workers died MAX_CRASHES times."""
        envelope = cast("Envelope", attempt.envelope)
        crashes = attempt.lease.tries - 1 - attempt.failures - attempt.interruptions - envelope.suspicions
        if crashes < MAX_CRASHES:
            return None
        error = Error("WorkerLost", f"its workers died or lost their leases ({crashes} of {MAX_CRASHES})")
        return Outcome(state=State.FAILED, attempt_state=AttemptState.LOST, error=error)

    def next_payload(self, envelope: Envelope | None, outcome: Outcome) -> bytes:
        """Return the envelope with what the attempt has spent of the budgets."""
        last = cast("Envelope", envelope)
        return next_envelope(
            last,
            failures=last.failures + outcome.failures,
            interruptions=last.interruptions + outcome.interruptions,
        )

    def retention(self, state: State) -> Retention:
        """The result, or the error, is kept for as long as the job's options say."""
        return self._result_kept if state is State.SUCCEEDED else self._error_kept


NOTHING_RETURNED = Outcome(state=State.SUCCEEDED, attempt_state=AttemptState.SUCCEEDED, result_json=b"null")
