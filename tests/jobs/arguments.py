"""Helpers for tests of arguments: their problems, their way through JSON, and a TypedDict to unpack."""

from collections.abc import Callable
from typing import Annotated, Any, NotRequired, Required

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from cplane.errors import InvalidArguments
from cplane.jobs.definition import AnyJob


def problems(call: Callable[[], object]) -> list[tuple[str, str]]:
    """Return path and message of every problem of the arguments."""
    with pytest.raises(InvalidArguments) as caught:
        call()
    return [(problem.path, problem.message) for problem in caught.value.problems]


def round_trip(made: AnyJob, *args: object, **kwargs: object) -> dict[str, Any]:
    """Return the arguments that the function of the job receives."""
    return made.decode(made.encode(args, kwargs))


class Clip(TypedDict):
    x: Required[int]
    y: NotRequired[int]


class Shot(Clip, total=False):
    quality: Annotated[int, Field(ge=1, le=100)]
    path: Required[str]
