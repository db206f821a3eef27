"""Parses arguments of a job as they are typed: `url=https://example.com n=3 flag=true viewport={"width":800}`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from cplane.errors import InvalidArguments

Schema = Mapping[str, Any]
ANY_TYPE = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def read_arguments(pairs: Sequence[str], args_json: str | None, schema: Schema) -> dict[str, Any]:
    """Return the arguments as JSON-like data.

    A value is parsed as JSON if the job's JSON Schema allows the type of that JSON; otherwise it is the text as typed.

    Args:
        pairs: `NAME=VALUE` each; a pair overrides the same name in `args_json`.
        args_json: a JSON object with arguments, or None.
        schema: JSON Schema of the job's arguments.

    Raises:
        InvalidArguments: a pair is not NAME=VALUE, or `args_json` is not a JSON object.
    """
    arguments = _object(args_json) if args_json is not None else {}
    properties: Mapping[str, Schema] = schema.get("properties", {})
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidArguments(
                f"'{pair}' is not an argument", hint="write NAME=VALUE, such as url=https://example.com"
            )
        arguments[name] = _read(text, _allowed_types(properties.get(name, {}), schema))
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
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, str) or not _json_types(value) & types else value


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not JSON")


def _json_types(value: object) -> frozenset[str]:
    """Return the JSON Schema types of a value that is not a string."""
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


def _allowed_types(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str]:
    """Return the types that a schema allows, through references and alternatives; any type if it sets none."""
    if depth > 20:
        return ANY_TYPE
    if "$ref" in schema:
        return _allowed_types(root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2], {}), root, depth + 1)
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            return frozenset[str]().union(*(_allowed_types(one, root, depth + 1) for one in schema[alternatives]))
    if "const" in schema or "enum" in schema:
        values: list[object] = schema.get("enum", [schema.get("const")])
        return frozenset[str]().union(
            *(frozenset({"string"}) if isinstance(value, str) else _json_types(value) for value in values)
        )
    named = schema.get("type", ANY_TYPE)
    return frozenset({named}) if isinstance(named, str) else frozenset(named)
