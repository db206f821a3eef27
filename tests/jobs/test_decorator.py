"""`@job` and its options, arguments and results on their way through JSON, and batches of submissions."""

import enum
import importlib
import math
import subprocess
import sys
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, NotRequired, Required, Unpack, cast
from uuid import UUID, uuid4

import pytest
import sqlalchemy.ext.asyncio
import sqlmodel.ext.asyncio.session
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator as _Draft202012Validator  # type: ignore[import-untyped]  # it ships no types
from playwright.async_api import BrowserContext, Page
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, Json, JsonValue, SecretStr, TypeAdapter, computed_field
from typing_extensions import TypedDict

from cplane import Context, ControlPlane, RetryPolicy, job
from cplane.errors import (
    DatabaseUnavailable,
    InvalidArguments,
    InvalidJob,
    NoControlPlane,
    ResultNotSerializable,
    UnknownJob,
)
from cplane.jobs.definition import AnyJob, Resources
from cplane.jobs.handle import Handle
from cplane.jobs.registry import registry
from cplane.jobs.states import Priority

Draft202012Validator: Any = _Draft202012Validator
untyped: Any = job
"""`@job` for tests that pass what a type checker refuses."""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the jobs of a test when it ends."""
    monkeypatch.setattr(registry, "jobs", dict(registry.jobs))


def problems(call: Callable[[], object]) -> list[tuple[str, str]]:
    """Return path and message of every problem of the arguments."""
    with pytest.raises(InvalidArguments) as caught:
        call()
    return [(problem.path, problem.message) for problem in caught.value.problems]


def round_trip(made: AnyJob, *args: object, **kwargs: object) -> dict[str, Any]:
    """Return the arguments that the function of the job receives."""
    return made.decode(made.encode(args, kwargs))


async def noop() -> None: ...


# making a job


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


def test_the_error_for_an_unknown_job_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "jobs", {})
    with pytest.raises(UnknownJob, match=r"no job named 'a'; known: none"):
        registry.get("a")
    job(name="z")(noop)
    with pytest.raises(UnknownJob, match=r"no job named 'a'; known: z .*CPLANE_IMPORTS"):
        registry.get("a")


# names


def module(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(source)
    return path


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Return a function that writes and imports a module; the modules are removed afterwards."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(name: str, source: str) -> ModuleType:
        module(tmp_path, name, source)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        loaded = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, loaded)
        return loaded

    return load


def test_two_jobs_of_one_name_are_an_error_that_names_both_modules(modules: Callable[[str, str], ModuleType]) -> None:
    source = "from cplane import job\n\n@job\nasync def twin_job() -> None: ...\n"
    modules("first_twin", source)
    with pytest.raises(InvalidJob, match="two jobs are named 'twin_job': first_twin, line 3 and second_twin, line 3"):
        modules("second_twin", source)
    assert registry.get("twin_job").fn.__module__ == "first_twin"
    with pytest.raises(InvalidJob, match="two jobs are named 'twin_job'"):
        job(name="twin_job")(noop)


def test_reloading_a_module_replaces_its_jobs(modules: Callable[[str, str], ModuleType], tmp_path: Path) -> None:
    source = "from cplane import job\n\n@job\ndef reloaded_job() -> int:\n    return 1\n"
    loaded = modules("reloaded", source)
    module(tmp_path, "reloaded", "\n# moved down\n" + source.replace("return 1", "return 2"))
    importlib.reload(loaded)
    assert registry.get("reloaded_job")() == 2
    assert registry.get("reloaded_job") is loaded.reloaded_job


@pytest.mark.parametrize("command", [["app.py"], ["-m", "app"], ["./app.py"]])
def test_a_program_that_imports_its_own_file_as_a_module_registers_each_job_once(
    tmp_path: Path, command: list[str]
) -> None:
    module(
        tmp_path,
        "app",
        "from cplane import job\n"
        "from cplane.jobs.decorator import registry\n"
        "@job\nasync def hello() -> None: ...\n"
        "if __name__ == '__main__':\n"
        "    import app\n"
        "    assert app.hello is not hello and registry.get('hello') is app.hello\n"
        "    print(app.hello.name, hello.name)\n",
    )
    ran = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("hello hello\n", "")


# parameters


def test_variadic_parameters_are_refused() -> None:
    async def starred(*names: str) -> None: ...

    async def double_starred(**names: str) -> None: ...

    for fn, shown in ((starred, r"\*names: str"), (double_starred, r"\*\*names: str")):
        with pytest.raises(InvalidJob, match=rf"{shown} cannot be an argument of a job .*name every argument"):
            untyped(fn)


class Clip(TypedDict):
    x: Required[int]
    y: NotRequired[int]


class Shot(Clip, total=False):
    quality: Annotated[int, Field(ge=1, le=100)]
    path: Required[str]


async def test_unpacked_keywords_are_separate_arguments_and_absent_ones_stay_absent() -> None:
    @job
    async def unpacked(first: int, **shot: Unpack[Shot]) -> dict[str, object]:
        return {"first": first, **shot}

    assert round_trip(unpacked, 1, x=2, path="p") == {"first": 1, "x": 2, "path": "p"}
    assert round_trip(unpacked, 1, x=2, path="p", y=3, quality=4) == {
        "first": 1,
        "x": 2,
        "path": "p",
        "y": 3,
        "quality": 4,
    }
    assert await unpacked.call({"first": 1, "x": 2, "path": "p"}, Resources()) == {"first": 1, "x": 2, "path": "p"}
    assert problems(lambda: unpacked.encode((1,), {"quality": 0, "z": 1})) == [
        ("/x", "Field required"),
        ("/quality", "Input should be greater than or equal to 1"),
        ("/path", "Field required"),
        ("/z", "Extra inputs are not permitted"),
    ]
    assert set(unpacked.schema()["required"]) == {"first", "x", "path"}


def test_unpacked_keywords_with_annotations_as_strings_keep_their_optional_keys(
    modules: Callable[[str, str], ModuleType],
) -> None:
    later = modules(
        "later_annotations",
        "from __future__ import annotations\n"
        "from datetime import date\n"
        "from typing import NotRequired, Required, Unpack\n"
        "from typing_extensions import TypedDict\n"
        "from cplane import Context, job\n"
        "class Span(TypedDict):\n    start: Required[date]\n    end: NotRequired[date]\n"
        "class Loose(TypedDict, total=False):\n    depth: int\n    name: Required[str]\n"
        "@job\nasync def later_span(ctx: Context, **span: Unpack[Span]) -> date: ...\n"
        "@job\nasync def later_loose(**loose: Unpack[Loose]) -> None: ...\n",
    )
    assert round_trip(later.later_span, start="2026-01-02") == {"start": date(2026, 1, 2)}
    assert later.later_span.signature.injected == {"ctx": "context"}
    assert problems(lambda: later.later_loose.encode((), {})) == [("/name", "Field required")]


def test_annotations_that_name_locals_of_a_function_are_resolved() -> None:
    class Local(BaseModel):
        n: int

    @job
    async def local_names(one: "Local", many: "list[Local]") -> "Local":
        return one

    @job()
    async def local_names_called(one: "Local") -> None: ...

    assert round_trip(local_names, Local(n=1), many=[{"n": 2}]) == {"one": Local(n=1), "many": [Local(n=2)]}
    assert round_trip(local_names_called, {"n": 3}) == {"one": Local(n=3)}


@pytest.mark.parametrize(
    ("annotation", "named"),
    [("Missing", "Missing"), ("typing.NoSuchType", "NoSuchType"), ("list[", "list["), ("int | 7", "unsupported")],
)
def test_an_annotation_that_cannot_be_resolved_is_an_error_that_names_it(annotation: str, named: str) -> None:
    async def unresolved(x: Any) -> None: ...

    assert typing
    unresolved.__annotations__["x"] = annotation
    with pytest.raises(InvalidJob, match=r"job 'unresolved' .*, line \d+\): an annotation") as caught:
        untyped(unresolved)
    assert named in caught.value.message
    assert "not under TYPE_CHECKING" in str(caught.value.hint)


def test_the_hint_for_an_import_under_type_checking_says_to_move_it(
    modules: Callable[[str, str], ModuleType],
) -> None:
    source = (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom cplane import job\n"
        "if TYPE_CHECKING:\n    from decimal import Decimal\n"
        "@job\nasync def unseen(x: Decimal) -> None: ...\n"
    )
    with pytest.raises(InvalidJob, match=r"annotation cannot be resolved: name 'Decimal' .*not under TYPE_CHECKING"):
        modules("type_checking_import", source)


class Opaque: ...


@pytest.mark.parametrize("annotation", [Opaque, list[Opaque], Page | None, Mapping[Opaque, int]])
def test_a_type_that_is_neither_json_nor_injected_is_refused_at_import(annotation: object) -> None:
    async def takes(x: Any) -> None: ...

    async def returns() -> Any: ...

    takes.__annotations__["x"] = annotation
    returns.__annotations__["return"] = annotation
    for fn, message in ((takes, "an argument cannot be validated"), (returns, "the return type cannot be stored")):
        with pytest.raises(InvalidJob, match=message) as caught:
            untyped(fn)
        assert caught.value.hint == "use JSON types, dataclasses or pydantic models"


async def test_each_kind_of_parameter_reaches_the_function() -> None:
    @job
    async def kinds(a: int, b: int = 2, /, c: int = 3, *, d: int, e: int = 5) -> list[int]:
        return [a, b, c, d, e]

    for args, kwargs, expected in (
        ((1,), {"d": 4}, [1, 2, 3, 4, 5]),
        ((1, 20, 30), {"d": 40, "e": 50}, [1, 20, 30, 40, 50]),
        ((), {"a": 1, "b": 20, "d": 4}, [1, 20, 3, 4, 5]),
    ):
        assert await kinds.call(kinds.decode(kinds.encode(args, kwargs)), Resources()) == expected
    assert kinds.encode((1,), {"d": 4}) == b'{"a":1,"d":4}', "defaults are not stored"


async def test_a_parameter_may_have_any_name() -> None:
    @job
    async def named(  # noqa: PLR0917
        schema: int, json: int, _x: int, model_config: int, field_0: int, copy: int = 6, self: int = 7, name: int = 8
    ) -> list[int]:
        return [schema, json, _x, model_config, field_0, copy, self, name]

    values = {"schema": 1, "json": 2, "_x": 3, "model_config": 4, "field_0": 5}
    assert await named.call(round_trip(named, **values), Resources()) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert list(named.schema()["properties"]) == [*values, "copy", "self", "name"]
    assert problems(lambda: named.encode((), {**values, "_x": "?"}))[0][0] == "/_x"


async def test_parameters_are_injected_at_any_position() -> None:
    resources = Resources(context="ctx", page="page", browser_context="browser", session="session")

    @job
    async def mixed(
        x: int,
        page: Page,
        /,
        y: int,
        ctx: Context,
        z: "int" = 3,
        *,
        browser: BrowserContext,
        w: int = 4,
        one: sqlmodel.ext.asyncio.session.AsyncSession,
        two: sqlalchemy.ext.asyncio.AsyncSession,
    ) -> list[object]:
        return [x, page, y, ctx, z, browser, w, one, two]

    assert mixed.signature.injected == {
        "page": "page",
        "ctx": "context",
        "browser": "browser_context",
        "one": "session",
        "two": "session",
    }
    arguments = mixed.decode(cast("AnyJob", mixed).encode((1, 2), {}))
    assert await mixed.call(arguments, resources) == [
        1, "page", 2, "ctx", 3, "browser", 4, "session", "session",
    ]  # fmt: skip
    assert list(mixed.schema()["properties"]) == ["x", "y", "z", "w"]
    assert problems(lambda: mixed.encode_json({"x": 1, "y": 2, "page": {}})) == [
        ("/page", "Extra inputs are not permitted")
    ]


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


# arguments


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


# schemas


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


# options of one submission


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 1, "at": NOW}, "delay and at exclude each other"),
        ({"at": NOW.replace(tzinfo=None)}, "at must be an aware datetime"),
        ({"key": ""}, "an idempotency key has 1 to 255 characters"),
        ({"key": "k" * 256}, "an idempotency key has 1 to 255 characters"),
        ({"queue": "two words"}, "'two words' is not a queue name"),
        ({"queue": ""}, "'' is not a queue name"),
        ({"delay": -0.1}, "delay must be 0 or more seconds and at most ten years, not -0.1"),
        ({"delay": timedelta(seconds=-1)}, "delay must be 0 or more seconds"),
        ({"delay": math.nan}, "delay must be 0 or more seconds"),
        ({"delay": timedelta(days=4000)}, "at most ten years"),
    ],
)
def test_impossible_options_of_a_submission_are_refused_before_anything_is_sent(
    options: dict[str, Any], message: str
) -> None:
    made = job(noop)
    with pytest.raises(InvalidArguments) as caught:
        made.using(**options)
    assert message in caught.value.message


def test_a_submission_has_the_options_that_were_given() -> None:
    made = job(queue="own")(noop)
    plain = made.using().submission(b"{}")
    assert (plain.queue, plain.delay_s, plain.run_at, plain.key) == ("own", None, None, None)
    custom = made.using(delay=timedelta(minutes=2), key="k" * 255, queue="other").submission(b"{}")
    assert (custom.job, custom.args_json, custom.queue, custom.delay_s, custom.key) == (
        made,
        b"{}",
        "other",
        120.0,
        "k" * 255,
    )
    assert made.using(at=NOW, delay=None).submission(b"{}").run_at == NOW


async def test_the_error_for_a_submission_without_a_control_plane_says_what_to_do() -> None:
    @job
    async def without_plane(x: int) -> None: ...

    for submitted in (
        without_plane.submit(1),
        without_plane.delay(1),
        without_plane.using(delay=1).submit(x=1),
        without_plane.using(key="k").delay(x=1),
        without_plane.submit_many([{"x": 1}]),
    ):
        with pytest.raises(NoControlPlane, match="submit inside `async with ControlPlane") as caught:
            await submitted
        assert caught.value.hint


async def test_one_idempotency_key_cannot_be_used_for_a_batch() -> None:
    made = job(noop)
    with pytest.raises(InvalidArguments, match="one idempotency key cannot be used for many jobs"):
        await made.using(key="k").submit_many([{}])


@pytest.mark.parametrize("calls", [5, None, [3], [{}, 3], "ab"])
async def test_a_batch_accepts_only_mappings(plane: ControlPlane, calls: typing.Any) -> None:
    with pytest.raises(InvalidArguments, match="submit_many takes a mapping of arguments for each job") as caught:
        await job(noop).submit_many(calls)
    assert caught.value.hint
    assert await plane.records() == []


async def takes_a_number(x: int) -> int:
    return x


async def recorded_as(plane: ControlPlane, submitted: Mapping[int, Handle[int]]) -> dict[int, object]:
    records = {record.id: record.args for record in await plane.records(limit=10_000)}
    return {index: records[handle.id] for index, handle in submitted.items()}


async def test_the_error_of_a_batch_names_the_invalid_call_and_the_submitted_jobs(plane: ControlPlane) -> None:
    calls: list[dict[str, object]] = [{"x": number} for number in range(2500)]
    calls[2300] = {"x": "many"}
    with pytest.raises(InvalidArguments, match=r"^calls\[2300\]: .*x: Input should be a valid integer") as caught:
        await job(takes_a_number).submit_many(calls)
    assert [problem.path for problem in caught.value.problems] == ["/2300/x"]
    assert await recorded_as(plane, caught.value.submitted) == {index: {"x": index} for index in range(2000)}
    assert caught.value.__notes__ == [
        "2,000 jobs of the batch were submitted and stay submitted: error.submitted has their handles"
    ]


async def test_the_error_of_a_batch_names_the_call_that_is_too_large(plane: ControlPlane) -> None:
    @job
    async def takes_a_text(text: str) -> None: ...

    large = "x" * plane.settings.max_body_bytes
    with pytest.raises(
        InvalidArguments, match=r"^calls\[1\]: the arguments of 'takes_a_text' are .* bytes, the limit is"
    ):
        await takes_a_text.submit_many([{"text": "small"}, {"text": large}])
    assert await plane.records() == []


async def test_the_error_of_a_batch_without_submitted_jobs_has_no_handles(plane: ControlPlane) -> None:
    with pytest.raises(InvalidArguments, match=r"^calls\[0\]: ") as caught:
        await job(takes_a_number).submit_many([{}])
    assert caught.value.submitted == {}
    assert not hasattr(caught.value, "__notes__")


async def test_the_error_of_an_outage_has_the_handles_of_the_chunks_that_were_submitted(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, chunks = plane.store.submit, 0

    async def breaks(records: typing.Any, **more: typing.Any) -> typing.Any:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise DatabaseUnavailable("gone")
        return await submit(records, **more)

    monkeypatch.setattr(plane.store, "submit", breaks)
    with pytest.raises(DatabaseUnavailable) as caught:
        await job(takes_a_number).submit_many({"x": number} for number in range(6000))
    indexes = set(caught.value.submitted)
    assert {*range(1000)} <= indexes
    assert not indexes & {*range(1000, 2000)}
    assert await recorded_as(plane, caught.value.submitted) == {index: {"x": index} for index in indexes}
    assert len(await plane.records(limit=10_000)) == len(indexes)


async def test_an_error_of_the_iterable_itself_notes_how_many_jobs_were_submitted(plane: ControlPlane) -> None:
    async def read() -> AsyncIterator[dict[str, object]]:
        for number in range(1500):
            yield {"x": number}
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="the file ends here") as caught:
        await job(takes_a_number).submit_many(read())
    assert caught.value.__notes__ == ["1,000 jobs of the batch were submitted and stay submitted"]
    assert len(await plane.records(limit=10_000)) == 1000


def test_a_secret_argument_is_refused_at_import() -> None:
    async def signs_in(user: str, password: SecretStr | None = None) -> None: ...

    with pytest.raises(
        InvalidJob, match=r"an argument is a secret, and arguments are stored in plain text \(pass a ref"
    ):
        job(signs_in)


def test_generators_are_refused() -> None:
    def yields() -> Iterator[int]:
        yield 1

    async def yields_async() -> AsyncIterator[int]:
        yield 1

    for generator in (yields, yields_async):
        with pytest.raises(InvalidJob, match="is a generator"):
            job(generator)


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


def test_a_users_job_takes_precedence_over_a_built_in_one_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from cplane.tasks.links import links

    monkeypatch.setattr(registry, "jobs", {"links": links})

    @job(name="links")
    async def ours() -> None:
        return

    assert registry.get("links") is ours
    registry.add(links)
    assert registry.get("links") is ours
