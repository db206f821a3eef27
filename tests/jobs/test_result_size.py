"""The size of results: those that are too large are refused, as far as possible before they are encoded."""

import time
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue, PlainSerializer
from pydantic_core import to_json

from cplane import job
from cplane.errors import ResultTooLarge
from cplane.jobs.result_size import MAX_VALUES, least_json_size

LIMIT = 1024 * 1024

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None, database=None)
@given(json_values)
def test_the_size_that_is_counted_is_never_larger_than_the_json(value: Any) -> None:
    assert least_json_size(value, LIMIT) <= len(to_json(value, bytes_mode="base64"))


@pytest.mark.parametrize(
    "value",
    [
        "x" * (LIMIT + 1),
        b"x" * (LIMIT + 1),
        {"a": [{"b": ["x" * (LIMIT + 1)]}]},
        [0] * (LIMIT // 2 + 1),
        dict.fromkeys(range(LIMIT // 5 + 1)),
        ["x" * 300] * MAX_VALUES,
        [{"url": "x" * 500}] * MAX_VALUES,
    ],
)
def test_a_result_that_is_too_large_by_its_parts_is_refused_without_encoding_it(value: object) -> None:
    assert least_json_size(value, LIMIT) > LIMIT


def test_a_result_of_270_mb_is_refused_immediately() -> None:
    @job
    async def huge() -> dict[str, JsonValue]:
        raise NotImplementedError

    data: object = {"pages": ["x" * 2_700_000] * 100}
    began = time.perf_counter()
    with pytest.raises(
        ResultTooLarge, match=r"what 'huge' returned has at least 2,700,\d\d\d bytes, more than 1,048,576"
    ):
        huge.encode_result(data, LIMIT)
    assert time.perf_counter() - began < 0.05


@pytest.mark.parametrize(("value", "size"), [("x" * 98, 100), (["é"] * 20, 101), ([1] * 50, 101), ({"a": None}, 10)])
def test_the_limit_is_counted_in_bytes_of_json(value: object, size: int) -> None:
    @job
    async def sized() -> Any: ...

    assert len(sized.encode_result(value, size)) == size
    with pytest.raises(
        ResultTooLarge, match=rf"what 'sized' returned has (at least )?{size} bytes, more than {size - 1}"
    ) as caught:
        sized.encode_result(value, size - 1)
    assert caught.value.hint == "return a reference, keep the data as an artifact"


class Page(BaseModel):
    body: str


def test_a_type_that_makes_the_json_smaller_than_the_data_is_measured_by_its_json() -> None:
    @job
    async def counts() -> Annotated[list[int], PlainSerializer(len)]:
        raise NotImplementedError

    @job
    async def pages() -> list[Page]:
        raise NotImplementedError

    assert counts.encode_result([1] * 10_000, 100) == b"10000"
    assert pages.encode_result([Page(body="x")], 100) == b'[{"body":"x"}]'
    with pytest.raises(ResultTooLarge, match="what 'pages' returned has 212 bytes, more than 100"):
        pages.encode_result([Page(body="x" * 199)], 100)
