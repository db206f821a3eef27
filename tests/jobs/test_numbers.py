"""Numbers that cannot be kept are found wherever they are, and named."""

from typing import Any

import pytest
from pydantic import JsonValue

from cplane.jobs.numbers import MAX_INT, MAX_PROBLEMS, MIN_INT, infinite_number, wide_number


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 10**400, -(10**400)])
def test_a_number_beyond_a_float_is_found(value: float) -> None:
    error = infinite_number("j", {"a": [0, {"b/c~d": value}]})
    assert error is not None
    assert [problem.path for problem in error.problems] == ["/a/1/b~1c~0d"]
    assert "the arguments of 'j' do not fit: a/1/b~1c~0d: a number is too large for a float" in str(error)


@pytest.mark.parametrize("value", [MAX_INT + 1, MIN_INT - 1])
def test_an_integer_of_more_than_64_bits_is_found(value: int) -> None:
    error = wide_number("j", [value])
    assert error is not None
    assert [problem.path for problem in error.problems] == ["/0"]


@pytest.mark.parametrize("value", [0, MAX_INT, MIN_INT, 1.5, 1e308, True, None, "1e999", [], {}])
def test_every_other_value_can_be_kept(value: Any) -> None:
    assert infinite_number("j", {"a": value}) is None
    assert wide_number("j", {"a": value}) is None


def test_an_error_names_some_of_many() -> None:
    many: list[JsonValue] = [MAX_INT + 1] * 1000
    error = wide_number("j", many)
    assert error is not None
    assert len(error.problems) == MAX_PROBLEMS
