"""A job: a function with a name, options, a schema and a typed `submit`."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial, update_wrapper
from typing import Any, Generic, cast

import msgspec
from pydantic import JsonValue
from pydantic import ValidationError as PydanticValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import ParamSpec, TypeVar

from cplane.errors import InvalidArguments, Problem, ResultNotSerializable
from cplane.jobs.handle import Handle
from cplane.jobs.names import SESSION_NAME
from cplane.jobs.options import Arguments, Options
from cplane.jobs.per_host import PerHost, host_of, limits
from cplane.jobs.signature import ArgumentsSchema, Signature, has_nul
from cplane.jobs.submission import Call, P, R

CallP = ParamSpec("CallP", default=...)
CallR = TypeVar("CallR", default=Any)


@dataclass(frozen=True, slots=True)
class Resources:
    """What an attempt can hand to a job that asks for it by type."""

    context: object = None
    page: object = None
    browser_context: object = None
    session: object = None


class Job(Generic[P, R, CallP, CallR]):
    """A function that can be submitted. Made by `@job`; calling it calls the function."""

    def __init__(self, fn: Callable[..., Any], options: Options, signature: "Signature") -> None:
        self.fn = fn
        self.options = options
        self.signature = signature
        self.name = options.name
        """The name the job is recorded under."""
        self.timeout_s = options.timeout_s
        self.needs_page = signature.wants("page") or signature.wants("browser_context")
        """Whether the job asks for a page or a browser context."""
        self._hosts: dict[str, msgspec.json.Decoder[Any]] = {}
        update_wrapper(cast("Callable[..., Any]", self), fn)

    def __call__(self, *args: CallP.args, **kwargs: CallP.kwargs) -> CallR:
        """Call the function itself, here and now, as if it were not decorated."""
        return cast("CallR", self.fn(*args, **kwargs))

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Record the job and schedule it; answers once it is recorded.

        Raises:
            InvalidArguments: the arguments do not fit the function's annotations.
            NoControlPlane: outside `async with ControlPlane()`.
            DatabaseUnavailable: Postgres did not answer; nothing was recorded, or it is unknown whether it was.
        """
        return await self.using().submit(*args, **kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Alias of `submit`, for those who come from Celery."""
        return await self.using().submit(*args, **kwargs)

    async def submit_many(
        self, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> list[Handle[R]]:
        """Submit one job for each mapping of arguments; `calls` is read, recorded and scheduled in chunks of 1,000.

        A chunk is submitted whole or not at all. After an error no more is read; what was submitted by then stays so, and every
        error of ours has it: `error.submitted` has the handles by their places.

        Raises:
            InvalidArguments: a call does not fit the job; the message begins with its place, as calls[1234].
            DatabaseUnavailable: Postgres did not answer; whether the chunks without an answer were recorded is not known.
            QueueUnavailable: the same, of Redis, for transient jobs.
        """
        return await self.using().submit_many(calls)

    def using(
        self,
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        key: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> "Call[P, R]":
        """Options for one submission; they never collide with the job's own arguments.

        Args:
            delay: seconds (or a timedelta) from now until the job may start.
            at: an aware datetime at which the job may start.
            key: an idempotency key, at most 255 characters: the same key with the same call answers the first record.
            queue: another queue than the job's own.
            priority: "high", "normal" or "low", instead of the job's own.
        """
        return Call(self, delay=delay, at=at, key=key, queue=queue, priority=priority)

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """Validate a Python call; answer its arguments as JSON."""
        return self._checked(self.signature.encode(self.name, self.signature.bind(self.name, args, kwargs)))

    def encode_json(self, args: Mapping[str, JsonValue]) -> bytes:
        """Validate arguments that came as JSON; answer them as JSON."""
        return self._checked(self.signature.encode_json(self.name, args))

    def decode(self, args_json: bytes) -> dict[str, Any]:
        """The typed arguments by name from their JSON."""
        return self.signature.decode(self.name, args_json)

    def decode_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Any]:
        """The typed arguments by name of a call that came without a record: what JSON has, or what a client of arq put there.

        Raises:
            InvalidArguments: they do not fit.
        """
        values = self.signature.bind(self.name, tuple(args), kwargs)
        try:
            return self.signature.decode(self.name, msgspec.json.encode(values))
        except (TypeError, ValueError) as error:
            raise InvalidArguments(f"the arguments of '{self.name}' are not JSON: {error}") from None

    def page_options(self, arguments: Arguments) -> Mapping[str, object]:
        """What `@job(browser=…)` says for these arguments."""
        browser = self.options.browser
        return browser(arguments) if callable(browser) else browser

    def limits(self, defaults: PerHost | None) -> PerHost | None:
        """How much of a host's time its jobs may take; None: it is not limited per host."""
        return limits(self.options.per_host, defaults)

    def host(self, args_json: bytes, defaults: PerHost | None) -> str | None:
        """The host whose time these arguments take; None: the job is not limited per host, or they name none."""
        limited = self.limits(defaults)
        if limited is None:
            return None
        decoder = self._hosts.get(limited.of)
        if decoder is None:
            if limited.of not in self.signature.own.parameters:
                return None
            decoder = self._hosts[limited.of] = _text_decoder(limited.of)
        try:
            url = decoder.decode(args_json).url
        except msgspec.ValidationError:  # it is not a text
            return None
        return host_of(url) if url else None

    def session(self, args_json: bytes) -> str | None:
        """The browser session that the job needs with these arguments; None: none. What is wrong with them is told when the job runs."""
        browser = self.options.browser
        if not self.needs_page or not self.options.record or not browser:
            return None
        try:
            name = self.page_options(self.decode(args_json) if callable(browser) else {}).get("session")
        except Exception:
            return None
        return name if isinstance(name, str) and SESSION_NAME.fullmatch(name) else None

    def _checked(self, args_json: bytes) -> bytes:
        if self.options.check is not None:
            try:
                self.options.check(self.decode(args_json))
            except ValueError as error:
                raise InvalidArguments(
                    f"the arguments of '{self.name}' do not fit: {error}", [Problem("", str(error))]
                ) from None
        return args_json

    def decode_result(self, result_json: bytes, /) -> R:
        """The typed result from its JSON.

        Raises:
            ResultNotSerializable: it does not fit the return type any more.
        """
        try:
            return cast("R", self.signature.result.validate_json(result_json))
        except PydanticValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ResultNotSerializable(f"the result of '{self.name}' does not fit its return type: {reason}") from None

    def encode_result(self, result: object) -> bytes:
        """The JSON of what the job returned.

        Raises:
            ResultNotSerializable: naming the part that cannot be stored.
        """
        if result is None and self.signature.returns_nothing:
            return b"null"
        try:
            result_json = self.signature.result.serializer.to_json(result, warnings="none", by_alias=True)
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            hint = "return JSON data or a pydantic model; files go to ctx.artifact(name, data)"
            raise ResultNotSerializable(
                f"what '{self.name}' returned cannot be stored as JSON: {error}", hint=hint
            ) from error
        if has_nul(result_json):
            raise ResultNotSerializable(
                f"what '{self.name}' returned contains the character NUL", hint="Postgres cannot store it in JSON"
            )
        return result_json

    def call(self, arguments: Arguments, resources: Resources, threads: Executor | None = None) -> Awaitable[object]:
        """Start the function with decoded arguments and what it asks for; a plain `def` runs in a thread of `threads`."""
        kwargs = arguments
        if self.signature.injected:
            kwargs = {**arguments}
            for parameter, kind in self.signature.injected.items():
                kwargs[parameter] = getattr(resources, kind)
        if self.signature.is_async and not self.signature.positional_only:
            started: Awaitable[object] = self.fn(**kwargs)
            return started
        kwargs = dict(kwargs)
        positional = [kwargs.pop(parameter) for parameter in self.signature.positional_only]
        if self.signature.is_async:
            return cast("Awaitable[object]", self.fn(*positional, **kwargs))
        return asyncio.get_running_loop().run_in_executor(threads, partial(self.fn, *positional, **kwargs))

    def schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the job's arguments."""
        return self.signature.arguments.model_json_schema(schema_generator=ArgumentsSchema)

    def result_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the job's result."""
        return self.signature.result.json_schema(mode="serialization", schema_generator=ArgumentsSchema)

    def __repr__(self) -> str:
        return f"<job {self.name}>"


AnyJob = Job[..., Any, ..., Any]


def _text_decoder(argument: str) -> "msgspec.json.Decoder[Any]":
    """Reads one argument of many, as `url`; None where it is absent."""
    only = msgspec.defstruct("Only", [("url", str | None, msgspec.field(default=None, name=argument))])
    return msgspec.json.Decoder(only)
