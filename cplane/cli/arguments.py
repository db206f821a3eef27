"""A job's arguments as they are typed: `url=https://example.com n=3 flag=true viewport={"width":800}`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cplane.errors import InvalidArguments

Schema = Mapping[str, Any]
ANYTHING = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def read_arguments(pairs: Sequence[str], args_json: str | None, schema: Schema) -> dict[str, Any]:
    """The arguments as JSON-like data; a pair wins over the same name in `args_json`.

    A value is read as JSON where the job's JSON Schema wants what the JSON says; else it is the text that was typed.

    Raises:
        InvalidArguments: something is not KEY=VALUE, or `args_json` is no JSON object.
    """
    arguments = _object(args_json) if args_json is not None else {}
    properties: Mapping[str, Schema] = schema.get("properties", {})
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidArguments(
                f"'{pair}' is not an argument", hint="write NAME=VALUE, such as url=https://example.com"
            )
        arguments[name] = _read(text, _types(properties.get(name, {}), schema))
    return arguments


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidArguments(
            f"--args is not JSON: {error}", hint="""write --args '{"url": "https://example.com"}'"""
        ) from None
    if not isinstance(value, dict):
        raise InvalidArguments("--args is not a JSON object", hint="""write --args '{"url": "https://example.com"}'""")
    return cast("dict[str, Any]", value)


def _read(text: str, types: frozenset[str]) -> object:
    try:
        value = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) or not _kinds(value) & types else value


def _no_json(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _kinds(value: object) -> frozenset[str]:
    """The JSON Schema types a value is of; a string is never looked up."""
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number"})
        case list():
            return frozenset({"array"})
        case _:
            return frozenset({"object"})


def _types(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str]:
    """The types a schema allows, through references and alternatives; anything when it does not say."""
    if depth > 20:
        return ANYTHING
    if "$ref" in schema:
        return _types(root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {}), root, depth + 1)
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            return frozenset[str]().union(*(_types(one, root, depth + 1) for one in schema[alternatives]))
    if "const" in schema or "enum" in schema:
        values: list[object] = schema.get("enum", [schema.get("const")])
        return frozenset[str]().union(
            *(frozenset({"string"}) if isinstance(value, str) else _kinds(value) for value in values)
        )
    named = schema.get("type", ANYTHING)
    return frozenset({named}) if isinstance(named, str) else frozenset(named)
