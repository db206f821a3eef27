"""Functions that `@job` accepts and refuses, and its options."""

import math
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Page

from cplane import Context, RetryPolicy, job
from cplane.errors import InvalidJob
from cplane.jobs.definition import AnyJob
from cplane.jobs.registry import registry
from cplane.jobs.states import Priority

untyped: Any = job
"""`@job` for tests that pass what a type checker refuses."""


async def noop() -> None: ...


async def test_a_bare_and_a_called_job_can_still_be_called_as_functions() -> None:
    @job
    async def bare(x: int, y: int = 2) -> int:
        """Add."""
        return x + y

    @job(name="other", queue="q", timeout=timedelta(minutes=1), retries=2, priority="low")
    def called(x: int) -> str:
        return str(x)

    assert (await bare(1), await bare(1, y=5), called(3)) == (3, 6, "3")
    assert (bare.name, vars(bare)["__name__"], bare.__doc__, called.name) == ("bare", "bare", "Add.", "other")
    assert (bare.signature.is_async, called.signature.is_async) == (True, False)
    assert (called.options.queue, called.options.timeout_s, called.options.priority) == ("q", 60.0, Priority.LOW)
    assert (bare.options.record, bare.options.priority, bare.options.result_ttl_s) == (True, Priority.NORMAL, 3600.0)
    assert called.options.retry == RetryPolicy(retries=2)
    assert bare.options.retry.retries == 0
    assert registry.get("bare") is bare

    @job(record=False, result_ttl=timedelta(seconds=5))
    async def transient(x: int) -> int:
        return x

    assert (transient.options.record, transient.options.result_ttl_s) == (False, 5.0)
    assert registry.get("other") is called


def test_a_job_keeps_its_retry_policy_and_browser_options() -> None:
    policy = RetryPolicy(retries=7, never=(KeyError,))
    fixed = job(name="fixed", retries=policy, browser={"locale": "de-DE"})(noop)
    made = job(name="made", browser=lambda arguments: {"locale": arguments["where"]})(noop)
    assert fixed.options.retry is policy
    assert fixed.page_options({}) == {"locale": "de-DE"}
    assert made.page_options({"where": "fr"}) == {"locale": "fr"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "1st"}, "'1st' is not a job name"),
        ({"name": "a" * 201}, "is not a job name"),
        ({"name": ""}, "'' is not a job name"),
        ({"name": 7}, "'7' is not a job name"),
        (
            {"browser": {"trace": "maybe"}},
            "the browser options do not fit: trace: Input should be 'off', 'on-failure' or 'on'",
        ),
        ({"browser": {"colour": "red"}}, "the browser options do not fit: colour: Extra inputs are not permitted"),
        ({"queue": "two words"}, "'two words' is not a queue name"),
        ({"queue": "q" * 101}, "is not a queue name"),
        ({"queue": ""}, "'' is not a queue name"),
        ({"queue": 7}, "'7' is not a queue name"),
        ({"timeout": 0}, "timeout is a positive number of seconds or a timedelta, not 0"),
        ({"timeout": -1}, "timeout is a positive"),
        ({"timeout": math.nan}, "timeout is a positive"),
        ({"timeout": math.inf}, "timeout is a positive"),
        ({"timeout": True}, "timeout is a positive"),
        ({"timeout": "60"}, "timeout is a positive number of seconds or a timedelta, not '60'"),
        (
            {"record": False, "result_ttl": timedelta(seconds=-1)},
            "result_ttl is a positive number of seconds, 0 or a timedelta",
        ),
        ({"record": False, "result_ttl": math.inf}, "result_ttl is a positive"),
        ({"result_ttl": 5}, "a record keeps its result, so result_ttl does not apply"),
        ({"priority": "urgent"}, "'urgent' is not a priority"),
        ({"priority": 1}, "1 is not a priority"),
        ({"retries": -1}, "retries must be 0 to 1000, not -1"),
        ({"retries": 1001}, "retries must be 0 to 1000, not 1001"),
        ({"retries": True}, "retries must be 0 to 1000, not True"),
        ({"retries": "3"}, "retries must be 0 to 1000, not '3'"),
        ({"record": "yes"}, "record is True or False, not 'yes'"),
        ({"browser": "de-DE"}, "browser is a mapping of page options, not 'de-DE'"),
        ({"browser": 0}, "browser is a mapping of page options, not 0"),
        ({"check": "positive"}, "check is a function of the arguments, not 'positive'"),
        ({"runs_in": "process"}, "runs_in is for a plain `def`; an async job runs in the event loop"),
        ({"memory_mb": 512}, "memory_mb limits a process, and the job runs in none"),
        ({"qeue": "q", "timeut": 3}, "@job has no option qeue, timeut"),
    ],
)
def test_an_impossible_option_is_an_error_with_a_hint_and_registers_nothing(
    options: dict[str, Any], message: str
) -> None:
    known = dict(registry.jobs)
    with pytest.raises(InvalidJob) as caught:
        untyped(**options)(noop)
    assert message in caught.value.message
    assert caught.value.hint
    assert registry.jobs == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs_in": "fork"}, "runs_in is 'thread' or 'process', not 'fork'"),
        ({"runs_in": ["process"]}, "runs_in is 'thread' or 'process', not ['process']"),
        ({"runs_in": "thread", "memory_mb": 512}, "memory_mb limits a process, and the job runs in none"),
        ({"runs_in": "process", "memory_mb": 15}, "memory_mb is a number of MiB, 16 to 1048576, not 15"),
        ({"runs_in": "process", "memory_mb": 1048577}, "memory_mb is a number of MiB"),
        ({"runs_in": "process", "memory_mb": True}, "memory_mb is a number of MiB, 16 to 1048576, not True"),
        ({"runs_in": "process", "memory_mb": "512"}, "memory_mb is a number of MiB, 16 to 1048576, not '512'"),
    ],
)
def test_impossible_options_of_a_process_are_errors_with_a_hint(options: dict[str, Any], message: str) -> None:
    def plain() -> None: ...

    with pytest.raises(InvalidJob) as caught:
        untyped(**options)(plain)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_job_in_a_process_is_injected_its_context_alone() -> None:
    @job(runs_in="process", memory_mb=512)
    def with_memory(ctx: Context) -> None: ...

    assert (with_memory.options.runs_in, with_memory.options.memory_mb) == ("process", 512)

    @job(runs_in="thread")
    def in_a_thread() -> None: ...

    assert (in_a_thread.options.runs_in, in_a_thread.options.memory_mb) == ("thread", None)

    def with_both(ctx: Context, browser: BrowserContext) -> None: ...

    with pytest.raises(InvalidJob, match="a process has no browser context; of what is injected it has Context alone"):
        untyped(runs_in="process")(with_both)


@pytest.mark.parametrize("target", ["browser", 7, len, int, object(), staticmethod(noop)])
def test_only_a_function_can_be_decorated(target: object) -> None:
    for decorate in (untyped, untyped()):
        with pytest.raises(InvalidJob, match="decorates a function") as caught:
            decorate(target)
        assert caught.value.hint


def test_a_job_cannot_be_decorated_again() -> None:
    made = job(noop)
    with pytest.raises(InvalidJob, match=r"'noop' is already a job .*use @job once"):
        untyped(made)


def test_generators_are_refused() -> None:
    def yields() -> Iterator[int]:
        yield 1

    async def yields_async() -> AsyncIterator[int]:
        yield 1

    for generator in (yields, yields_async):
        with pytest.raises(InvalidJob, match="is a generator"):
            job(generator)


def test_jobs_that_need_a_page_use_the_browser_queue_unless_they_name_another() -> None:
    @job
    async def with_page(page: Page) -> None: ...

    @job
    async def with_browser_context(browser: BrowserContext) -> None: ...

    @job(queue="mine")
    async def with_page_elsewhere(page: Page) -> None: ...

    @job
    async def with_context(ctx: Context) -> None: ...

    made: list[AnyJob] = [with_page, with_browser_context, with_page_elsewhere, with_context]
    assert [each.options.queue for each in made] == ["browser", "browser", "mine", "default"]
    assert [each.needs_page for each in made] == [True, True, True, False]
