"""A job: a function with a name, options, a schema and a typed `submit`."""

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
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
from cplane.jobs.result_size import least_json_size, too_large
from cplane.jobs.signature import MAX_DIGITS, ArgumentsSchema, Signature, has_nul, has_unreadable_number
from cplane.jobs.submission import Call, P, R

CallP = ParamSpec("CallP", default=...)
CallR = TypeVar("CallR", default=Any)

Threads = Callable[[Callable[[], object]], Awaitable[object]]
"""Calls a function in a thread, and returns an awaitable of its result."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Values that an attempt can inject into a job, one field for each kind in `signature.INJECTED`."""

    context: object = None
    page: object = None
    browser_context: object = None
    session: object = None


class Job(Generic[P, R, CallP, CallR]):
    """A function that can be submitted. `@job` makes it; calling it calls the function itself.

    Attributes:
        fn: the function.
        name: name that the job is recorded under.
        options: options of `@job`, checked and with their defaults.
        signature: parameters and return type of the function.
        timeout_s: maximum duration of one attempt, seconds.
        needs_page: whether a page or a browser context is injected.
    """

    def __init__(self, fn: Callable[..., Any], options: Options, signature: "Signature") -> None:
        self.fn = fn
        self.options = options
        self.signature = signature
        self.name = options.name
        self.timeout_s = options.timeout_s
        self.needs_page = signature.injects("page") or signature.injects("browser_context")
        self._url_decoders: dict[str, msgspec.json.Decoder[Any]] = {}
        update_wrapper(cast("Callable[..., Any]", self), fn)

    def __call__(self, *args: CallP.args, **kwargs: CallP.kwargs) -> CallR:
        """Call the function itself, in this process, as if it were not decorated."""
        return cast("CallR", self.fn(*args, **kwargs))

    async def submit(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Record the job and schedule it. Returns once it is recorded; a transient job once it is scheduled.

        Args:
            *args: arguments of the function, without those that are injected.
            **kwargs: as above, by name.

        Returns:
            A handle that waits for the result, reads the state and cancels.

        Raises:
            InvalidArguments: the arguments do not fit the annotations of the function.
            NoControlPlane: no control plane is open in this process.
            DatabaseUnavailable: Postgres did not respond; nothing was recorded, or it is unknown whether it was.
            QueueUnavailable: the same for Redis and a transient job.

        Example:
            ```python
            from cplane import ControlPlane, job


            @job
            async def greet(name: str, *, loud: bool = False) -> str:
                return f"Hello {name}{'!' if loud else '.'}"


            async with ControlPlane():
                handle = await greet.submit("Ada", loud=True)
                assert await handle.result(timeout=30) == "Hello Ada!"
            ```
        """
        return await self.using().submit(*args, **kwargs)

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Alias of `submit`, by the name that it has in Celery."""
        return await self.using().submit(*args, **kwargs)

    async def submit_many(
        self, calls: Iterable[Mapping[str, object]] | AsyncIterable[Mapping[str, object]]
    ) -> list[Handle[R]]:
        """Submit one job for each mapping of arguments, in chunks of 1,000.

        A chunk is submitted as a whole or not at all. After an error, `calls` is read no further; the jobs submitted by
        then stay submitted, and `error.submitted` of every `CplaneError` has their handles by index.

        Args:
            calls: arguments by name, one mapping for each job, as an iterable or async iterable of any length.

        Returns:
            One handle for each job, in the order of `calls`.

        Raises:
            InvalidArguments: the arguments of a call do not fit the job; the message begins with its index, as in
                `calls[1234]`.
            NoControlPlane: no control plane is open in this process.
            DatabaseUnavailable: Postgres did not respond; it is unknown whether the chunks in flight were recorded.
            QueueUnavailable: the same for Redis and transient jobs.

        Example:
            ```python
            from cplane import ControlPlane, job


            @job
            async def square(x: int) -> int:
                return x * x


            async with ControlPlane():
                handles = await square.submit_many({"x": number} for number in range(3))
                assert [await handle.result(timeout=30) for handle in handles] == [0, 1, 4]
            ```
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
        timeout: float | timedelta | None = None,
    ) -> "Call[P, R]":
        """Set options for one submission. They cannot collide with the job's arguments, which go to `submit`.

        Args:
            delay: time until the job may start, in seconds or as a timedelta: 0 to ten years. Excludes `at`.
            at: aware datetime from which on the job may start. Excludes `delay`.
            key: idempotency key, 1 to 255 characters: the same key with the same call returns the first record, with
                another call it raises `IdempotencyConflict`.
            queue: queue to use instead of the job's own.
            priority: "high", "normal" or "low", instead of the job's own.
            timeout: maximum duration of each attempt of this submission, in seconds or as a timedelta: more than 0 and at
                most the job's own timeout.

        Returns:
            The job with these options; it has `submit`, `delay` and `submit_many`.

        Raises:
            InvalidArguments: an option has an impossible value, or two exclude each other.

        Example:
            ```python
            from cplane import ControlPlane, job


            @job
            async def charge(order: int) -> str:
                return f"charged {order}"


            async with ControlPlane():
                first = await charge.using(delay=0.5, key="order-17").submit(17)
                again = await charge.using(delay=0.5, key="order-17").submit(17)
                assert (first.created, again.created, first.id == again.id) == (True, False, True)
                assert await again.result(timeout=30) == "charged 17"
            ```
        """
        return Call(self, delay=delay, at=at, key=key, queue=queue, priority=priority, timeout=timeout)

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """Validate the arguments of a Python call.

        Args:
            args: positional arguments, without those that are injected.
            kwargs: arguments by name.

        Returns:
            The arguments by name, as a JSON object; those that were not given are left out.

        Raises:
            InvalidArguments: they do not fit the job, or cannot be stored as JSON.
        """
        return self._checked(self.signature.encode(self.name, self.signature.bind(self.name, args, kwargs)))

    def encode_json(self, args: Mapping[str, JsonValue]) -> bytes:
        """Validate arguments that arrived as JSON.

        Args:
            args: JSON values by name.

        Returns:
            The arguments by name, as a JSON object; those that were not given are left out.

        Raises:
            InvalidArguments: they do not fit the job.
        """
        return self._checked(self.signature.encode_json(self.name, args))

    def decode(self, args_json: bytes) -> dict[str, Any]:
        """Return the typed arguments by name, defaults included, from their JSON.

        Raises:
            InvalidArguments: they do not fit the job.
        """
        return self.signature.decode(self.name, args_json)

    def decode_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, Any]:
        """Return the typed arguments by name of a call without a record, as it is in an envelope.

        Args:
            args: positional arguments: JSON values, or any values that a client of arq sent.
            kwargs: arguments by name, likewise.

        Raises:
            InvalidArguments: they do not fit the job, or are not JSON.
        """
        values = self.signature.bind(self.name, tuple(args), kwargs)
        try:
            return self.signature.decode(self.name, msgspec.json.encode(values))
        except (TypeError, ValueError) as error:
            raise InvalidArguments(f"the arguments of '{self.name}' are not JSON: {error}") from None

    def page_options(self, arguments: Arguments) -> Mapping[str, object]:
        """Return the page options that `@job(browser=…)` gives for these arguments."""
        browser = self.options.browser
        return browser(arguments) if callable(browser) else browser

    def limits(self, defaults: PerHost | None) -> PerHost | None:
        """Return the limits per host; None if the job has none. `defaults` are those of the settings."""
        return limits(self.options.per_host, defaults)

    def host(self, args_json: bytes, defaults: PerHost | None) -> str | None:
        """Return the host that a job with these arguments counts against.

        Args:
            args_json: validated arguments, as a JSON object.
            defaults: limits of the settings, for jobs without limits of their own.

        Returns:
            The host, as `per_host.host_of` returns it; None if the job has no limits per host, or names no host.
        """
        limited = self.limits(defaults)
        if limited is None:
            return None
        decoder = self._url_decoders.get(limited.of)
        if decoder is None:
            if limited.of not in self.signature.accepted.parameters:
                return None
            decoder = self._url_decoders[limited.of] = _url_decoder(limited.of)
        try:
            url = decoder.decode(args_json).url
        except msgspec.ValidationError:  # not a string
            return None
        return host_of(url) if url else None

    def session(self, args_json: bytes) -> str | None:
        """Return the name of the browser session that a job with these arguments needs, or None.

        Errors of the page options are raised when the job runs, not here.

        Args:
            args_json: validated arguments, as a JSON object.
        """
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
        """Return the typed result from its JSON.

        Raises:
            ResultNotSerializable: the result does not fit the return type any more.
        """
        try:
            return cast("R", self.signature.result.validate_json(result_json))
        except PydanticValidationError as error:
            reason = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ResultNotSerializable(f"the result of '{self.name}' does not fit its return type: {reason}") from None

    def encode_result(self, result: object, max_bytes: int | None = None) -> bytes:
        """Return a result as JSON.

        Args:
            result: the value that the function returned; its type is not checked.
            max_bytes: size of the largest JSON that is allowed, bytes; None: any.

        Raises:
            ResultNotSerializable: a part of it cannot be stored as JSON; the message names the part.
            ResultTooLarge: its JSON is larger than `max_bytes`.
        """
        if result is None and self.signature.returns_nothing:
            return b"null"
        if max_bytes is not None:
            self._refuse_early(result, max_bytes)
        try:
            result_json = self.signature.result.serializer.to_json(result, warnings="none", by_alias=True)
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            hint = "return JSON data or a pydantic model; files go to ctx.artifact(name, data)"
            raise ResultNotSerializable(
                f"what '{self.name}' returned cannot be stored as JSON: {error}", hint=hint
            ) from error
        if max_bytes is not None and len(result_json) > max_bytes:
            raise too_large(self.name, len(result_json), max_bytes)
        if has_nul(result_json):
            raise ResultNotSerializable(
                f"what '{self.name}' returned contains the character NUL", hint="Postgres cannot store it in JSON"
            )
        if has_unreadable_number(result_json):
            raise ResultNotSerializable(
                f"what '{self.name}' returned has an integer of more than {MAX_DIGITS} digits", hint="return it as text"
            )
        return result_json

    def _refuse_early(self, result: object, max_bytes: int) -> None:
        """Raise ResultTooLarge for a result that is too large by its parts alone: encoding it would take long."""
        if self.signature.result_is_plain and (least := least_json_size(result, max_bytes)) > max_bytes:
            raise too_large(self.name, least, max_bytes, exact=False)

    def call(
        self, arguments: Arguments, resources: Resources, threads: Threads = asyncio.to_thread
    ) -> Awaitable[object]:
        """Start the function.

        Args:
            arguments: typed arguments by name.
            resources: values to inject.
            threads: calls a plain `def` in a thread.

        Returns:
            An awaitable of the function's return value.
        """
        function = self.bind(arguments, resources)
        return cast("Awaitable[object]", function()) if self.signature.is_async else _call_in_thread(function, threads)

    def bind(self, arguments: Arguments, resources: Resources) -> Callable[[], object]:
        """Return the function with all of its arguments.

        Args:
            arguments: typed arguments by name.
            resources: values to inject.
        """
        kwargs = arguments
        if self.signature.injected:
            kwargs = {**arguments}
            for parameter, kind in self.signature.injected.items():
                kwargs[parameter] = getattr(resources, kind)
        if not self.signature.positional_only:
            return partial(self.fn, **kwargs)
        kwargs = dict(kwargs)
        positional = [kwargs.pop(parameter) for parameter in self.signature.positional_only]
        return partial(self.fn, *positional, **kwargs)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of the arguments."""
        return self.signature.arguments.model_json_schema(schema_generator=ArgumentsSchema)

    def result_schema(self) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of the result."""
        return self.signature.result.json_schema(mode="serialization", schema_generator=ArgumentsSchema)

    def __repr__(self) -> str:
        return f"<job {self.name}>"


AnyJob = Job[..., Any, ..., Any]


async def _call_in_thread(function: Callable[[], object], threads: Threads) -> object:
    """Call a plain function in a thread. What it returns may be a coroutine: that of an `async def` which it wraps."""
    result = await threads(function)
    return await result if inspect.isawaitable(result) else result


def _url_decoder(argument: str) -> "msgspec.json.Decoder[Any]":
    """Return a decoder that reads one argument as `url` and skips the others; None if the argument is absent."""
    url_only = msgspec.defstruct("UrlOnly", [("url", str | None, msgspec.field(default=None, name=argument))])
    return msgspec.json.Decoder(url_only)
