"""Numbers that JSON can write and we cannot keep: those beyond a float, and those beyond 64 bits."""

import math
import sys
from collections.abc import Callable, Iterator
from itertools import islice

from pydantic import JsonValue

from cplane.errors import InvalidArguments, Problem

MAX_PROBLEMS = 20
"""Numbers that an error names."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1
"""The integers of msgpack, in which a job without a record is sent."""


def infinite_number(job: str, args: JsonValue) -> InvalidArguments | None:
    """Return the error of arguments with a number that is no finite one, such as 1e999; None if they have none.

    Args:
        job: name of the job.
        args: its arguments, as they were parsed from JSON.
    """
    return _error(job, args, "a number is too large for a float", _is_infinite)


def wide_number(job: str, args: JsonValue) -> InvalidArguments | None:
    """Return the error of arguments with an integer of more than 64 bits; None if they have none.

    Args:
        job: name of the job, which keeps no record.
        args: its arguments, as they were parsed from JSON.
    """
    return _error(job, args, "an integer has more than 64 bits, which a job without a record cannot carry", _is_wide)


def _error(job: str, args: JsonValue, message: str, is_wrong: Callable[[JsonValue], bool]) -> InvalidArguments | None:
    problems = [Problem(pointer, message) for pointer in islice(_find("", args, is_wrong), MAX_PROBLEMS)]
    if not problems:
        return None
    where = problems[0].path.lstrip("/")
    return InvalidArguments(
        f"the arguments of '{job}' do not fit: {where}: {message}", problems, hint="send it as text"
    )


def _find(pointer: str, value: JsonValue, is_wrong: Callable[[JsonValue], bool]) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _find(f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}", inner, is_wrong)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find(f"{pointer}/{index}", inner, is_wrong)
    elif is_wrong(value):
        yield pointer


def _is_infinite(value: JsonValue) -> bool:
    if isinstance(value, int):
        return abs(value) > sys.float_info.max
    return isinstance(value, float) and not math.isfinite(value)


def _is_wide(value: JsonValue) -> bool:
    return isinstance(value, int) and not MIN_INT <= value <= MAX_INT
