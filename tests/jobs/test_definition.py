"""Arguments and results on their way through JSON, checks of arguments, and schemas."""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Unpack, cast
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator as _Draft202012Validator  # type: ignore[import-untyped]  # it ships no types
from playwright.async_api import Page
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, Json, JsonValue, TypeAdapter, computed_field
from typing_extensions import TypedDict

from cplane import job
from cplane.errors import InvalidArguments, ResultNotSerializable
from cplane.jobs.definition import AnyJob
from tests.jobs.arguments import Shot, problems, round_trip

Draft202012Validator: Any = _Draft202012Validator


untyped: Any = job
"""`@job` for tests that pass what a type checker refuses."""


async def noop() -> None: ...


class Inner(BaseModel):
    count: int = Field(ge=0)
    tags: dict[str, int] = {}


def test_invalid_arguments_are_reported_for_each_field_by_json_pointer() -> None:
    @job
    async def nested(
        inner: Inner, many: list[Inner], kind: Literal["a", "b"] = "a", url: HttpUrl | None = None
    ) -> None: ...

    wrong: dict[str, JsonValue] = {
        "inner": {"count": -1},
        "many": [{"count": 1}, {"count": 1, "tags": {"a/b~c": "x"}}],
        "kind": "c",
        "more": 1,
    }
    expected = [
        ("/inner/count", "Input should be greater than or equal to 0"),
        ("/many/1/tags/a~1b~0c", "Input should be a valid integer, unable to parse string as an integer"),
        ("/kind", "Input should be 'a' or 'b'"),
        ("/more", "Extra inputs are not permitted"),
    ]
    assert problems(lambda: nested.encode((), wrong)) == expected
    assert problems(lambda: nested.encode_json(wrong)) == expected
    with pytest.raises(InvalidArguments) as caught:
        nested.encode((), wrong)
    assert str(caught.value) == (
        "the arguments of 'nested' do not fit: inner/count: Input should be greater than or equal to 0, and 3 more"
    )


def test_a_call_that_does_not_fit_the_signature_is_refused() -> None:
    @job
    async def two(x: int, y: int) -> None: ...

    loose: AnyJob = two
    with pytest.raises(InvalidArguments, match="'two' takes 2 arguments, 3 were given"):
        loose.encode((1, 2, 3), {})
    with pytest.raises(InvalidArguments, match="'two' got x twice"):
        loose.encode((1,), {"x": 1, "y": 2})
    assert problems(lambda: loose.encode((1,), {})) == [("/y", "Field required")]


def test_a_check_refuses_a_combination_of_arguments_at_submission() -> None:
    def ordered(arguments: Mapping[str, Any]) -> None:
        if arguments["low"] > arguments["high"]:
            raise ValueError("low must not be above high")

    @job(check=ordered)
    async def ranged(low: int, high: int = 10) -> None: ...

    assert ranged.encode((3,), {}) == b'{"low":3}', "the check receives the defaults, the record does not store them"
    for call in (lambda: ranged.encode((11,), {}), lambda: ranged.encode_json({"low": "11"})):
        assert problems(call) == [("", "low must not be above high")]
    with pytest.raises(InvalidArguments, match="the arguments of 'ranged' do not fit: low must not be above high"):
        ranged.encode((5, 4), {})


def test_an_error_in_a_check_is_not_reported_as_invalid_arguments() -> None:
    def broken(arguments: Mapping[str, Any]) -> None:
        raise KeyError("no such argument")

    made = job(name="broken_check", check=broken)(noop)
    with pytest.raises(KeyError):
        made.encode((), {})


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@dataclass
class Point:
    x: float
    raw: bytes = b""
    seen: set[int] = field(default_factory=set[int])


class Loose(TypedDict, total=False):
    low: float
    high: float


class Order(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="strings")

    id: UUID = Field(default_factory=uuid4)
    price: Decimal = Decimal("1.10")
    limit: float = 0.0

    @computed_field
    def total(self) -> Decimal:
        return self.price * 2


NOW = datetime(2026, 3, 29, 1, 30, 15, 123456, tzinfo=UTC)


VALUES: list[tuple[Any, Any]] = [
    (bytes, bytes(range(256))),
    (bytes, b"\0\xff text"),
    (datetime, NOW),
    (datetime, NOW.replace(tzinfo=None)),
    (date, NOW.date()),
    (timedelta, timedelta(days=-3, microseconds=7)),
    (UUID, UUID(int=2**127 + 5)),
    (Decimal, Decimal("0.1000000000000000000000000001")),
    (float, math.inf),
    (float, -math.inf),
    (list[float], [0.1, 1e308, 5e-324, -0.0, math.inf]),
    (int, 2**200),
    (Colour, Colour.RED),
    (dict[Colour, Colour], {Colour.RED: Colour.BLUE}),
    (Point, Point(math.inf, b"\xff", {1, 2})),
    (list[Point], [Point(1.5), Point(-math.inf)]),
    (Loose, {"high": math.inf}),
    (Order, Order(limit=math.inf)),
    (dict[str, Order], {"": Order(price=Decimal("2.50"))}),
    (tuple[int, str], (1, "\\u0000 is text, \t is fine, \U0001f600 too")),
    (frozenset[str], frozenset({"a", "b"})),
    (dict[int, date], {7: NOW.date()}),
    (Path, Path("/tmp/a b")),
    (JsonValue, {"a": [None, True, 1, 1.5, "x", {}]}),
    (Any, {"a": [None, False, 1, 1.5, "x", []]}),
    (int | str, "7"),
    (str | bytes, "ÿ"),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=[f"{number}" for number in range(len(VALUES))])
async def test_arguments_and_results_come_back_equal(annotation: Any, value: object) -> None:
    async def carried(x: Any) -> Any: ...

    carried.__annotations__.update({"x": annotation, "return": annotation})
    made: AnyJob = untyped(carried)
    expected = TypeAdapter[Any](annotation).validate_python(value)
    assert round_trip(made, value) == {"x": expected}
    assert made.decode_result(made.encode_result(expected)) == expected


def test_json_in_a_string_stays_a_string_on_the_way() -> None:
    @job
    async def takes_json_text(x: Json[list[int]]) -> None: ...

    assert round_trip(cast("AnyJob", takes_json_text), "[1, 2]") == {"x": [1, 2]}


def test_nan_stays_nan() -> None:
    @job
    async def not_a_number(x: float, many: list[float]) -> float:
        return x

    arguments = round_trip(not_a_number, math.nan, [math.nan, math.inf])
    assert math.isnan(arguments["x"])
    assert math.isnan(arguments["many"][0])
    assert math.isnan(not_a_number.decode_result(not_a_number.encode_result(math.nan)))


def test_a_value_that_a_model_generates_is_the_same_in_every_attempt() -> None:
    @job
    async def ordered_once(order: Order) -> None: ...

    order = Order()
    stored = ordered_once.encode((order,), {})
    assert [ordered_once.decode(stored)["order"].id for _ in range(2)] == [order.id, order.id]


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def test_json_like_data_comes_back_equal_from_python_and_from_json() -> None:
    @job
    async def carries_json(data: JsonValue, named: dict[str, JsonValue]) -> JsonValue: ...

    @settings(max_examples=150, deadline=None, database=None)
    @given(json_values, st.dictionaries(st.text("ab\\u0"), json_values, max_size=3))
    def equal(data: JsonValue, named: dict[str, JsonValue]) -> None:
        given_values: dict[str, JsonValue] = {"data": data, "named": named}
        assert round_trip(carries_json, data, named) == given_values
        assert carries_json.decode(carries_json.encode_json(given_values)) == given_values
        assert carries_json.decode_result(carries_json.encode_result(data)) == data

    equal()


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0", '"\0'])
def test_nul_is_refused_at_any_depth(text: str) -> None:
    @job
    async def takes_text(x: str, y: dict[str, Any]) -> Any: ...

    refused: list[Callable[[], object]] = [
        lambda: takes_text.encode((text, {}), {}),
        lambda: takes_text.encode(("", {text: 1}), {}),
        lambda: takes_text.encode_json({"x": "", "y": {"a": [text]}}),
    ]
    for call in refused:
        with pytest.raises(InvalidArguments, match="the arguments of 'takes_text' contain the character NUL"):
            call()
    with pytest.raises(ResultNotSerializable, match="what 'takes_text' returned contains the character NUL"):
        takes_text.encode_result([{"a": text}])


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "0000", "\x01"])
def test_text_that_only_looks_like_nul_is_accepted(text: str) -> None:
    @job
    async def takes_lookalike(x: str) -> str:
        return x

    assert round_trip(takes_lookalike, text) == {"x": text}
    assert takes_lookalike.decode_result(takes_lookalike.encode_result(text)) == text


def test_a_lone_surrogate_is_refused_at_any_depth() -> None:
    @job
    async def takes_surrogate(x: str = "", y: Any = None) -> Any: ...

    wrong: list[dict[str, JsonValue]] = [{"x": "\ud800"}, {"y": "\udfff"}, {"y": {"\ud800": [1]}}]
    for values in wrong:
        with pytest.raises(InvalidArguments, match="the arguments of 'takes_surrogate'"):
            takes_surrogate.encode_json(values)
        with pytest.raises(InvalidArguments, match="the arguments of 'takes_surrogate'"):
            takes_surrogate.encode((), values)
    with pytest.raises(ResultNotSerializable, match="surrogates not allowed"):
        takes_surrogate.encode_result(["\ud800"])


@pytest.mark.parametrize("value", [10**4300, {"a": [-(10**5000)]}, 10**140_000], ids=type)
def test_an_integer_that_cannot_be_read_back_is_refused(value: Any) -> None:
    @job
    async def carries_integers(x: Any) -> Any: ...

    with pytest.raises(InvalidArguments):
        carries_integers.encode((value,), {})
    with pytest.raises(
        ResultNotSerializable, match="'carries_integers' returned has an integer of more than 4300 digits"
    ):
        carries_integers.encode_result(value)
    for fine in (10**4299, "1" * 5000, [10**4299, "1" * 5000]):
        assert carries_integers.decode_result(carries_integers.encode_result(fine)) == fine


def test_the_error_for_an_argument_or_a_result_that_is_not_json_names_the_problem() -> None:
    @job
    async def carries_anything(x: Any) -> Any: ...

    for value in (object(), {"deep": [noop]}):
        with pytest.raises(InvalidArguments, match=r"cannot be stored as JSON: .*Unable to serialize unknown type"):
            carries_anything.encode((value,), {})
        with pytest.raises(ResultNotSerializable, match=r"what 'carries_anything' returned .*unknown type") as caught:
            carries_anything.encode_result(value)
        assert "ctx.artifact" in str(caught.value.hint)
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(ResultNotSerializable, match="Circular reference"):
        carries_anything.encode_result(circle)


def test_a_result_of_another_type_than_declared_is_stored_unchanged() -> None:
    @job
    async def says_int() -> int:
        return 7

    assert says_int.encode_result("seven") == b'"seven"'
    with pytest.raises(ResultNotSerializable):
        says_int.encode_result(object())


def test_arguments_that_cannot_be_read_back_are_refused_at_submission() -> None:
    class Weight(BaseModel):
        grams: float

    @job
    async def weighs(weight: Weight) -> None: ...

    with pytest.raises(InvalidArguments, match="weight/grams: Input should be a valid number"):
        weighs.encode((), {"weight": Weight(grams=float("inf"))})


def test_a_result_that_no_longer_fits_its_return_type_is_an_error() -> None:
    @job
    async def counts() -> int:
        return 1

    with pytest.raises(
        ResultNotSerializable, match="the result of 'counts' does not fit its return type: Input should be"
    ):
        counts.decode_result(b'"many"')


def test_schemas_are_json_schema_2020_12_whatever_the_defaults() -> None:
    opaque = cast("int", object())

    @job
    async def described(  # noqa: PLR0917
        page: Page,
        url: HttpUrl,
        inner: Inner,
        point: Point = Point(1.0),  # noqa: B008  users may write it
        colour: Colour = Colour.RED,
        raw: bytes = b"\xff",
        not_json: int = opaque,
        how: float = math.inf,
        when: datetime | None = None,
        shape: tuple[int, str] = (1, "a"),
        **shot: Unpack[Shot],
    ) -> dict[str, Order]:
        return {}

    schema, result_schema = described.schema(), described.result_schema()
    for each in (schema, result_schema):
        Draft202012Validator.check_schema(each)
    assert schema["required"] == ["url", "inner", "x", "path"]
    assert schema["additionalProperties"] is False
    assert "page" not in schema["properties"]
    assert "default" not in schema["properties"]["not_json"]
    assert schema["properties"]["colour"]["default"] == "red"
    validator = Draft202012Validator(schema)
    stored = cast("JsonValue", TypeAdapter[Any](JsonValue).validate_json(
        described.encode((), {"url": "https://a.example/", "inner": {"count": 1}, "x": 1, "path": "p", "shape": (2, "b")})
    ))  # fmt: skip
    assert validator.is_valid(stored)
    assert not validator.is_valid({**cast("dict[str, JsonValue]", stored), "inner": {"count": -1}})
