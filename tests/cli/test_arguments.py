from typing import Any, Literal

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from cplane.cli.arguments import read_arguments
from cplane.errors import InvalidArguments


class Viewport(TypedDict):
    width: int


class Model(BaseModel):
    text: str = ""
    optional_text: str | None = None
    whole: int = 0
    number: float = 0.0
    flag: bool = False
    word: Literal["png", "jpeg"] = "png"
    digit: Literal[1, 2] = 1
    viewport: Viewport | None = None
    either: str | Viewport = ""
    names: list[str] = []
    anything: Any = None


SCHEMA = Model.model_json_schema()


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("text=https://example.com/?a=b", "https://example.com/?a=b"),
        ("text=3", "3"),
        ("text=true", "true"),
        ("text=null", "null"),
        ('text="quoted"', '"quoted"'),
        ('text={"a": 1}', '{"a": 1}'),
        ("text=", ""),
        ("optional_text=null", None),
        ("optional_text=3", "3"),
        ("whole=3", 3),
        ("whole=three", "three"),
        ("number=3", 3),
        ("number=2.5", 2.5),
        ("number=NaN", "NaN"),
        ("flag=true", True),
        ("flag=yes", "yes"),
        ("word=png", "png"),
        ("digit=2", 2),
        ('viewport={"width": 800}', {"width": 800}),
        ("viewport=null", None),
        ('either={"width": 800}', {"width": 800}),
        ("either=h1", "h1"),
        ('names=["a"]', ["a"]),
        ("names=a", "a"),
        ("anything=[1]", [1]),
        ("anything=word", "word"),
        ("unknown=3", 3),
    ],
)
def test_a_value_is_parsed_as_json_where_the_schema_allows_it(pair: str, value: object) -> None:
    read = read_arguments([pair], None, SCHEMA)[pair.partition("=")[0]]
    assert read == value
    assert type(read) is type(value)


def test_a_pair_overrides_the_object() -> None:
    assert read_arguments(["whole=2"], '{"whole": 1, "text": "a"}', SCHEMA) == {"whole": 2, "text": "a"}


@pytest.mark.parametrize("pair", ["text", "=text", ""])
def test_an_invalid_pair_is_refused(pair: str) -> None:
    with pytest.raises(InvalidArguments, match="is not an argument"):
        read_arguments([pair], None, SCHEMA)


def test_a_recursive_schema_is_supported() -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert read_arguments(["a=1"], None, schema) == {"a": 1}
