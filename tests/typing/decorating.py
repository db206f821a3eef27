"""Options of `@job` that type checkers accept, in its bare and its called form."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from cplane import RetryPolicy, job


def refuse(arguments: Mapping[str, Any]) -> None:
    raise ValueError(arguments)


@job(
    name="n",
    queue="q",
    timeout=timedelta(seconds=5),
    retries=RetryPolicy(retries=2, on=(OSError,), never=(FileNotFoundError,)),
    record=True,
    result_ttl=60,
    browser={"locale": "de-DE", "viewport": {"width": 800, "height": 600}},
    check=refuse,
)
async def every_option(x: int) -> int:
    return x


@job(runs_in="process", memory_mb=512)
def in_a_process(x: int) -> int:
    return x


@job(timeout=0.5, browser=lambda arguments: {"locale": arguments["locale"]})
async def made_options(locale: str) -> str:
    return locale


@job(name=1)  # error
async def name_of_another_type() -> None: ...


@job(queue=["q"])  # error
async def queue_of_another_type() -> None: ...


@job(timeout="60")  # error
async def timeout_of_another_type() -> None: ...


@job(retries="3")  # error
async def retries_of_another_type() -> None: ...


@job(record="yes")  # error
async def record_of_another_type() -> None: ...


@job(runs_in="fork")  # error
def place_of_another_name() -> None: ...


@job(check=len)  # error
async def check_of_another_type() -> None: ...


@job(browser="de-DE")  # error
async def browser_of_another_type() -> None: ...


@job(qeue="q")  # error
async def unknown_option() -> None: ...


@job("q")  # error
async def option_without_its_name() -> None: ...


RetryPolicy(3)  # error
RetryPolicy(retries="3")  # error
RetryPolicy(on=OSError)  # error
