"""Sentences for values that pydantic refuses: what was given, what is allowed, and an example."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

KINDS = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_parsing": "a boolean: true or false",
    "bool_type": "a boolean: true or false",
}
BOUNDS = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}

MAX_SHOWN = 60
"""Characters of a value that are shown."""


def describe(
    detail: Mapping[str, Any], metadata: Iterable[object] = (), *, example: float | None = None, secret: bool
) -> str:
    """Return what is wrong with a value, in one sentence without its name.

    Args:
        detail: an error of pydantic.
        metadata: the bounds of the value.
        example: a value that is allowed; None: there is none to show.
        secret: whether the value must not be shown.
    """
    message = str(detail["msg"]).removeprefix("Value error, ")
    kind = str(detail["type"])
    given = detail.get("input")
    shown = "it" if secret or not isinstance(given, str | int | float) else f"'{str(given)[:MAX_SHOWN]}'"
    if kind == "literal_error":
        return f"{shown} is not allowed, write {detail['ctx']['expected']}"
    if kind not in KINDS and kind not in BOUNDS:
        return message
    number = not kind.startswith("bool")
    bounds = _bounds(metadata) or (_bound_of(detail) if kind in BOUNDS else "")
    noun = KINDS.get(kind, "a number")
    if str(given).strip().lower().lstrip("+-") in {"nan", "inf", "infinity"}:
        noun = "a number"
    elif kind in BOUNDS:
        noun = ""
    wrong = f"{shown} is not {noun}" if noun else f"{shown} is out of range"
    allowed = f", it must be {bounds}" if number and bounds else ""
    hint = f", for example {example:.15g}" if number and example is not None else ""
    return wrong + allowed + hint


def wrong_setting(detail: Mapping[str, Any], field: "FieldInfo | None") -> str:
    """Return what is wrong with a setting, without its name. A secret is never shown.

    Args:
        detail: an error of pydantic.
        field: the setting; None: it is not known.
    """
    if field is None:
        return describe(detail, secret=True)
    example = field.default if isinstance(field.default, int | float) else None
    return describe(detail, field.metadata, example=example, secret="Secret" in str(field.annotation))


def _bounds(metadata: Iterable[object]) -> str:
    found = [
        f"{words} {getattr(item, name):.15g}"
        for item in metadata
        for name, words in WORDS.items()
        if getattr(item, name, None) is not None
    ]
    return " and ".join(found)


def _bound_of(detail: Mapping[str, Any]) -> str:
    return " and ".join(f"{WORDS[name]} {value:.15g}" for name, value in detail.get("ctx", {}).items() if name in WORDS)
