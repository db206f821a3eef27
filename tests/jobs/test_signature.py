"""Parameters of a job: which are arguments, which are injected, and which are refused."""

import typing
from collections.abc import Callable, Mapping
from datetime import date
from types import ModuleType
from typing import Any, Unpack, cast

import pytest
import sqlalchemy.ext.asyncio
import sqlmodel.ext.asyncio.session
from playwright.async_api import BrowserContext, Page
from pydantic import BaseModel, SecretStr

from cplane import Context, job
from cplane.errors import InvalidJob
from cplane.jobs.definition import AnyJob, Resources
from tests.jobs.arguments import Shot, problems, round_trip

untyped: Any = job
"""`@job` for tests that pass what a type checker refuses."""


def test_variadic_parameters_are_refused() -> None:
    async def starred(*names: str) -> None: ...

    async def double_starred(**names: str) -> None: ...

    for fn, shown in ((starred, r"\*names: str"), (double_starred, r"\*\*names: str")):
        with pytest.raises(InvalidJob, match=rf"{shown} cannot be an argument of a job .*name every argument"):
            untyped(fn)


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


def test_a_secret_argument_is_refused_at_import() -> None:
    async def signs_in(user: str, password: SecretStr | None = None) -> None: ...

    with pytest.raises(
        InvalidJob, match=r"an argument is a secret, and arguments are stored in plain text \(pass a ref"
    ):
        job(signs_in)
