"""The signature of a job's function, read once: injected parameters, arguments and return type, and their JSON."""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, Required, cast, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    create_model,
)
from pydantic import ValidationError as PydanticValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, to_json

from cplane.errors import InvalidArguments, InvalidJob, Problem
from cplane.jobs.numbers import infinite_number

INJECTED = {
    ("playwright.async_api._generated", "Page"): "page",
    ("playwright.async_api._generated", "BrowserContext"): "browser_context",
    ("cplane.jobs.context", "Context"): "context",
    ("sqlmodel.ext.asyncio.session", "AsyncSession"): "session",
    ("sqlalchemy.ext.asyncio.session", "AsyncSession"): "session",
}
"""Types that are injected into a job, by module and name, so that they need not be imported here."""


UNIONS = (typing.Union, types.UnionType)
NOT_FINITE = re.compile(rb"Infinity|NaN")
"""How numbers that are not finite are written, and perhaps text."""

UNPACK = (typing.Unpack, typing_extensions.Unpack)


class _Unset:
    """Default of an optional key of a TypedDict: the key stays absent."""


UNSET = _Unset()


class ArgumentsSchema(GenerateJsonSchema):
    """JSON Schema of arguments, without the defaults that are not JSON."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  pydantic declares it this way


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters and the return type of a job's function."""

    is_async: bool
    injected: Mapping[str, str]
    """Name of each injected parameter → kind of the injected value, a field of `Resources`."""
    positional_only: tuple[str, ...]
    accepted: inspect.Signature
    """Parameters that are arguments of the job, without the injected ones."""
    arguments: type[BaseModel]
    """These parameters as a model; field names are generic, aliases are the names of the parameters."""
    result: TypeAdapter[Any]
    returns_nothing: bool
    """Whether the return annotation is None: then pydantic is not needed for a result of None."""
    result_is_plain: bool
    """Whether the return type has nothing but built-in types: then no serializer makes the JSON smaller than the data."""
    fields: tuple[tuple[str, str], ...]
    """Name of each parameter with its field of the model."""
    optional_keys: bool
    """Whether some arguments can be absent without a default: optional keys of an unpacked TypedDict."""

    def injects(self, kind: str) -> bool:
        """Return whether a value of this kind is injected, for example "page"."""
        return kind in self.injected.values()

    def bind(self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Mapping[str, object]:
        """Return the arguments of a Python call by name.

        Raises:
            InvalidArguments: too many positional arguments, or one given twice.
        """
        if not args:
            return kwargs
        names = list(self.accepted.parameters)
        if len(args) > len(names):
            raise InvalidArguments(f"'{name}' takes {len(names)} arguments, {len(args)} were given")
        bound = dict(zip(names, args, strict=False))
        if twice := bound.keys() & kwargs.keys():
            raise InvalidArguments(f"'{name}' got {', '.join(sorted(twice))} twice")
        return {**bound, **kwargs}

    def encode(self, name: str, values: Mapping[str, object]) -> bytes:
        """Validate arguments that are Python objects; return them as a JSON object.

        Raises:
            InvalidArguments: they do not fit, or cannot be stored as JSON.
        """
        try:
            return self._dump(name, self.arguments.__pydantic_validator__.validate_python(dict(values)))
        except PydanticValidationError as error:
            raise _invalid(name, error) from None

    def encode_json(self, name: str, values: Mapping[str, JsonValue]) -> bytes:
        """Validate arguments that are JSON values; return them as a JSON object.

        Raises:
            InvalidArguments: they do not fit.
        """
        try:
            given = to_json(values, inf_nan_mode="constants")
            args_json = self._dump(name, self.arguments.__pydantic_validator__.validate_json(given))
            # JSON has no infinity, but 1e999 is read as one, and for a float so is an integer of 400 digits
            if NOT_FINITE.search(args_json) and (error := infinite_number(name, cast("JsonValue", values))) is not None:
                raise error
        except PydanticValidationError as error:
            raise _invalid(name, error) from None
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise InvalidArguments(f"the arguments of '{name}' are not valid JSON: {error}") from None
        return args_json

    def decode(self, name: str, args_json: bytes) -> dict[str, Any]:
        """Return the typed arguments by name, defaults included.

        Raises:
            InvalidArguments: they do not fit.
        """
        try:
            model = self.arguments.__pydantic_validator__.validate_json(args_json)
        except PydanticValidationError as error:
            raise _invalid(name, error) from None
        fields = model.__dict__  # by generic name, in the order of the parameters
        if self.optional_keys:
            return {name: fields[f] for name, f in self.fields if fields[f] is not UNSET}
        return {name: fields[f] for name, f in self.fields}

    def _dump(self, name: str, model: BaseModel) -> bytes:
        try:
            # arguments that were not given are not stored: the function's defaults apply; the others are stored whole
            given = model.model_fields_set
            args_json = model.__pydantic_serializer__.to_json(
                model, by_alias=True, include=None if len(given) == len(self.fields) else given, round_trip=True
            )
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise InvalidArguments(f"the arguments of '{name}' cannot be stored as JSON: {error}") from None
        if has_nul(args_json):
            raise InvalidArguments(
                f"the arguments of '{name}' contain the character NUL", hint="Postgres cannot store it in JSON"
            )
        try:  # arguments that cannot be read back must not be accepted
            self.arguments.__pydantic_validator__.validate_json(args_json)
        except PydanticValidationError as error:
            raise _invalid(name, error) from None
        return args_json


def read_signature(fn: Callable[..., Any], names: Mapping[str, object]) -> Signature:
    """Read the signature of a job's function.

    Args:
        fn: the function.
        names: local names that its annotations may use, in addition to the globals of its module.

    Raises:
        InvalidJob: an annotation cannot be resolved, or a parameter or the return type cannot be stored as JSON.
    """
    where = f"job '{fn.__name__}' ({location(fn)})"
    try:
        hints = get_type_hints(fn, localns=dict(names), include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise InvalidJob(
            f"{where}: an annotation cannot be resolved: {error}",
            hint="define or import it above the job, not under TYPE_CHECKING",
        ) from None
    injected: dict[str, str] = {}
    accepted: list[inspect.Parameter] = []
    parameters = inspect.signature(fn).parameters
    for parameter in parameters.values():
        annotation = hints.get(parameter.name, Any)
        if kind := INJECTED.get((getattr(annotation, "__module__", ""), getattr(annotation, "__name__", ""))):
            injected[parameter.name] = kind
        elif parameter.kind is parameter.VAR_KEYWORD and get_origin(annotation) in UNPACK:
            accepted += _unpacked(get_args(annotation)[0])
        elif parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise InvalidJob(f"{where}: {parameter} cannot be an argument of a job", hint="name every argument")
        else:
            accepted.append(parameter.replace(annotation=annotation))
    return Signature(
        is_async=inspect.iscoroutinefunction(fn),
        injected=injected,
        positional_only=tuple(
            name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_ONLY
        ),
        accepted=inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in accepted]),
        arguments=_arguments_model(where, fn.__name__, accepted),
        result=_result_adapter(where, hints.get("return", Any)),
        returns_nothing=hints.get("return", Any) is type(None),
        result_is_plain=_is_plain(hints.get("return", Any)),
        fields=tuple((p.name, f"field_{number}") for number, p in enumerate(accepted)),
        optional_keys=any(p.default is UNSET for p in accepted),
    )


def _unpacked(typed_dict: type) -> list[inspect.Parameter]:
    """Return the parameters that `**options: Unpack[SomeTypedDict]` expands to."""
    hints = get_type_hints(typed_dict, include_extras=True)
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_unwrapped(hint),
            default=inspect.Parameter.empty if _is_required(typed_dict, name, hint) else UNSET,
        )
        for name, hint in hints.items()
    ]


def _is_required(typed_dict: type, name: str, hint: object) -> bool:
    """Return whether a key is required. `__required_keys__` ignores (Not)Required where annotations are strings."""
    if get_origin(hint) in {Required, NotRequired}:
        return get_origin(hint) is Required
    required: frozenset[str] = getattr(typed_dict, "__required_keys__", frozenset({name}))
    return name in required


def _unwrapped(hint: object) -> object:
    """Return the type inside Required[…] or NotRequired[…]."""
    return get_args(hint)[0] if get_origin(hint) in {Required, NotRequired} else hint


def has_nul(json_text: bytes) -> bool:
    """Return whether a JSON text contains an escaped NUL character, which Postgres cannot store."""
    return b"\\u0000" in json_text and re.search(rb"(?<!\\)(?:\\\\)*\\u0000", json_text) is not None


MAX_DIGITS = 4300
"""Digits of the longest integer that Python reads (`sys.int_info.default_max_str_digits`)."""

DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
"""Makes every digit a 0: a search for a text takes a millisecond per megabyte, one for a pattern 100 times as long."""


def has_unreadable_number(json_text: bytes) -> bool:
    """Return whether a JSON text contains an integer that is too long to be read back."""
    if len(json_text) <= MAX_DIGITS or b"0" * (MAX_DIGITS + 1) not in json_text.translate(DIGITS):
        return False
    try:
        json.loads(json_text)
    except ValueError:
        return True
    return False


def location(fn: Callable[..., Any]) -> str:
    """Return where a function is defined, for error messages."""
    return f"{fn.__module__}, line {fn.__code__.co_firstlineno}"


MODEL_CONFIG = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")


def _arguments_model(where: str, name: str, parameters: list[inspect.Parameter]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(parameters):
        default = ... if parameter.default is parameter.empty else parameter.default
        # generic field names: a parameter may be named `schema` or `_x`, a field of a model may not
        fields[f"field_{number}"] = (Annotated[parameter.annotation, Field(alias=parameter.name)], default)
    try:
        model: type[BaseModel] = create_model(name, __config__=MODEL_CONFIG, **fields)
        schema_json = to_json(model.model_json_schema(schema_generator=ArgumentsSchema), fallback=str)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise InvalidJob(
            f"{where}: an argument cannot be validated or stored as JSON: {_first_line(error)}",
            hint="use JSON types, dataclasses or pydantic models",
        ) from None
    if b'"writeOnly":true' in schema_json:
        hint = "pass a reference to it, such as the name of an environment variable"
        raise InvalidJob(f"{where}: an argument is a secret, and arguments are stored in plain text", hint=hint)
    return model


def _result_adapter(where: str, annotation: Any) -> TypeAdapter[Any]:
    config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
    try:
        # behind an alias, the configuration applies to dataclasses and TypedDicts too, as it does for arguments
        alias = cast("Callable[[str, Any], Any]", typing_extensions.TypeAliasType)  # its type is known at run time only
        return TypeAdapter[Any](alias("Result", annotation), config=config)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise InvalidJob(
            f"{where}: the return type cannot be stored as JSON: {_first_line(error)}",
            hint="use JSON types, dataclasses or pydantic models",
        ) from None


def _invalid(name: str, error: PydanticValidationError) -> InvalidArguments:
    problems = [
        Problem(_pointer(detail["loc"]), detail["msg"])
        for detail in error.errors(include_url=False, include_input=False)
    ]
    first = problems[0]
    more = "" if len(problems) == 1 else f", and {len(problems) - 1} more"
    return InvalidArguments(
        f"the arguments of '{name}' do not fit: {first.path.lstrip('/') or 'args'}: {first.message}{more}", problems
    )


def _pointer(location: tuple[int | str, ...]) -> str:
    """Return a JSON pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


PLAIN = frozenset({Any, object, str, bytes, int, float, bool, type(None), dict, list, tuple, set, frozenset, ...})


def _is_plain(annotation: object) -> bool:
    """Return whether a type has nothing but built-in types."""
    if annotation is JsonValue:
        return True
    origin = get_origin(annotation)
    if origin is None:
        return isinstance(annotation, Hashable) and annotation in PLAIN
    return (origin in PLAIN or origin in UNIONS) and all(map(_is_plain, get_args(annotation)))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
