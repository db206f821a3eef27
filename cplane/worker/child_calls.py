"""The calls in a forked process: jobs and functions, one at a time, under a memory limit."""

import asyncio
import contextvars
import importlib
import importlib.util
import inspect
import mmap
import os
import resource
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cplane.errors import InfrastructureError, MemoryLimitExceeded, TooManyRequests, UnknownJob
from cplane.jobs.definition import AnyJob, Resources
from cplane.jobs.registry import registry
from cplane.jobs.retry import retry_in_s
from cplane.runtime.error_text import describe
from cplane.worker import process_messages as messages
from cplane.worker.child_context import Connection, make_context

MAX_CALLS = 100
"""Calls after which a process is replaced: what its jobs leave behind does not add up."""

MAX_GROWTH_BYTES = 64 * 1024 * 1024
"""A process that has allocated this much more than in the beginning, and not freed it, is replaced: a reused one must be like a new one."""

MIB = 1024 * 1024


def serve(opened: socket.socket) -> None:
    """Run the calls that arrive, until the worker closes the connection."""
    connection = Connection(opened)
    folder, allocated = Path.cwd(), _allocated_bytes()
    for number in range(1, MAX_CALLS + 1):
        request = connection.receive()
        if request is None:
            return
        connection.send(messages.Began())
        reply = _run(request, connection)
        last = number == MAX_CALLS or threading.active_count() > 1 or _allocated_bytes() - allocated > MAX_GROWTH_BYTES
        connection.send(reply(last))
        del reply
        os.chdir(folder)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run(request: messages.Request, connection: Connection) -> Callable[[bool], messages.Returned | messages.Raised]:
    """Run a call in an empty context, and return what makes its reply."""
    call = _job_call(request, connection) if isinstance(request, messages.RunJob) else _function_call(request)
    try:
        with _memory_limit(request.memory_mb):
            value = contextvars.Context().run(call)
    except BaseException as error:
        if isinstance(error, MemoryError) and request.memory_mb is not None:
            error = _memory_error(error, request)
        raised = _raised(error, request)
        return lambda last: messages.Raised(**raised, last=last)
    return lambda last: messages.Returned(value, last)


def _job_call(request: messages.RunJob, connection: Connection) -> Callable[[], bytes]:
    def call() -> bytes:
        job = _find_job(request)
        resources = Resources(context=make_context(request, connection))
        result = job.bind(job.decode(request.args_json), resources)()
        if inspect.isawaitable(result):  # of an `async def` that it wraps
            result = asyncio.run(_awaited(result))
        return job.encode_result(result, request.max_result_bytes)

    return call


async def _awaited(result: Any) -> object:
    return await result


def _function_call(request: messages.RunFunction) -> Callable[[], Any]:
    def call() -> Any:
        return getattr(importlib.import_module(request.module), request.name)(*request.args)

    return call


def _find_job(request: messages.RunJob) -> AnyJob:
    """Return the job; import its module if it is not among those that every process imports.

    Raises:
        UnknownJob: importing its module does not define it.
    """
    if request.job not in registry.jobs:
        _import(request.module, request.file)
    job = registry.jobs.get(request.job)
    if job is None:
        raise UnknownJob(
            f"a new process that imports '{request.module}' does not find the job '{request.job}'",
            hint="define it at the top of a module of CPLANE_IMPORTS",
        )
    return job


def _import(module: str, file: str) -> None:
    if module == "__main__":
        runpy.run_path(file, run_name="__cplane_main__")
        return
    with suppress(ModuleNotFoundError):
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is not None and spec.loader is not None:
        sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)


@contextmanager
def _memory_limit(memory_mb: int | None) -> Generator[None]:
    """Limit what the block may allocate, in addition to what the process has allocated already.

    RLIMIT_DATA counts what the process may write to: heap, anonymous mappings, stacks of threads. RLIMIT_AS would count addresses that are
    only reserved, of which allocators and runtimes take gigabytes.
    """
    if memory_mb is None or sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [_allocated_bytes() + memory_mb * MIB, soft, hard]
    limit = min(bound for bound in limits if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _allocated_bytes() -> int:
    """Return what RLIMIT_DATA counts, 0 where the system hides it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _memory_error(error: MemoryError, request: messages.Request) -> MemoryLimitExceeded:
    hint = "raise it with @job(memory_mb=…)" if isinstance(request, messages.RunJob) else None
    exceeded = MemoryLimitExceeded(f"its process needed more than {request.memory_mb} MiB of memory", hint=hint)
    exceeded.__cause__ = error
    return exceeded


def _raised(error: BaseException, request: messages.Request) -> dict[str, Any]:
    """Return an error as the fields of a reply: its text, and what the retry policy of the job says of it."""
    if isinstance(error, StopIteration | SystemExit | KeyboardInterrupt):
        wrapped = RuntimeError(f"the job raised {error!r}")
        wrapped.__cause__, error = error, wrapped
    described = describe(error)
    return {
        "type": described.type,
        "message": described.message,
        "traceback": described.traceback,
        "retry_in_s": _retry_in_s(error, request),
        "is_infrastructure": isinstance(error, InfrastructureError),
        "retry_after_s": error.retry_after_s if isinstance(error, TooManyRequests) else None,
    }


def _retry_in_s(error: BaseException, request: messages.Request) -> float | None:
    if not isinstance(request, messages.RunJob) or (job := registry.jobs.get(request.job)) is None:
        return None
    return retry_in_s(job.options.retry, error, request.failures)
