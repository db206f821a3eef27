"""The errors of jobs as text: bounded, storable everywhere, and read without trust in what the exception's own code does."""

import asyncio
import reprlib
import threading
import traceback
from collections.abc import Callable, Sized
from itertools import islice
from pathlib import Path
from types import FunctionType
from typing import cast

import msgspec

from cplane.errors import CplaneError
from cplane.runtime.offload import RemoteError
from cplane.runtime.text import storable

MAX_TYPE_CHARS = 200
MAX_MESSAGE_CHARS = 16_000
MAX_TRACEBACK_CHARS = 16_000

CUT_MARK = "\n…\n"
"""Stands where the middle of a traceback is left out."""

MAX_FRAMES = 200
"""Frames of one exception's traceback, the last ones."""

MAX_EXCEPTIONS = 50
"""Causes, contexts and members of groups, up to which a traceback shows them."""

MAX_CHARS_READ = 1_000_000
"""Characters of the messages of all of them, up to which a traceback shows them."""

MAX_ARG_LENGTH = 10_000
"""Length of an exception's argument, up to which it is shown whole."""

READ_S = 1.0
"""What an exception's own `__str__` may take."""

PACKAGE = str(Path(__file__).parents[1])
"""Frames in this folder are not the job's own code, those of `tasks` aside."""

UNREADABLE = "(its message cannot be read)"

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 1_000


class Error(msgspec.Struct, frozen=True, gc=False):
    """An exception as text."""

    type: str
    message: str
    traceback: str = ""


async def read_error(error: BaseException) -> Error:
    """Return an error as text. Code of the exception's own class runs in a thread, and is not waited for longer than READ_S."""
    if not any(map(_runs_code, _related(error))):
        return describe(error)
    found: asyncio.Future[Error] = asyncio.get_running_loop().create_future()
    reader = threading.Thread(target=_read_in_thread, args=(error, found), name="cplane error text", daemon=True)
    reader.start()
    try:
        async with asyncio.timeout(READ_S):
            return await found
    except TimeoutError:
        return Error(_type_name(error), f"(its message could not be read within {READ_S:g} s)")


def _read_in_thread(error: BaseException, found: "asyncio.Future[Error]") -> None:
    described = describe(error)

    def resolve() -> None:
        if not found.done():
            found.set_result(described)

    loop = found.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve)


def describe(error: BaseException) -> Error:
    """Return an error as text: its type, its message, and a traceback that begins where the job's own code does."""
    if isinstance(error, RemoteError):
        return Error(error.type, error.message, error.traceback)
    message = _text(lambda: _message(error), MAX_MESSAGE_CHARS, UNREADABLE)
    name = _type_name(error)
    return Error(name, message, _text(lambda: _traceback(error, name, message), MAX_TRACEBACK_CHARS * 2, ""))


def _text(read: Callable[[], str], max_chars: int, otherwise: str) -> str:
    """Return text that can be stored; `otherwise` if it cannot be read."""
    try:
        return storable(read()[:max_chars])
    except Exception:
        return otherwise


def _type_name(error: BaseException) -> str:
    kind = type(error)

    def read() -> str:
        module, name = kind.__module__, kind.__qualname__
        return name if module in {"builtins", "cplane.errors"} else f"{module}.{name}"

    return _text(read, MAX_TYPE_CHARS, "Exception")


def _message(error: BaseException) -> str:
    """Return `str(error)`; that of a built-in type with huge arguments is shortened before it is made."""
    if not _has_huge_argument(error):
        return str(error)
    return _shortened.repr(error.args[0] if len(error.args) == 1 else error.args)


BUILT_IN_STR = frozenset({BaseException.__str__, KeyError.__str__})


def _has_huge_argument(error: BaseException) -> bool:
    """Return whether `str(error)` would build a huge text; the message of most is their only argument, as it is."""
    arguments = error.args
    if type(error).__str__ not in BUILT_IN_STR or (len(arguments) == 1 and isinstance(arguments[0], str)):
        return False
    return any(isinstance(argument, Sized) and len(argument) > MAX_ARG_LENGTH for argument in arguments)


def _related(error: BaseException) -> list[BaseException]:
    """Return an error with its causes, its contexts and the members of groups, as often as a traceback shows them, or up to MAX_EXCEPTIONS + 1."""
    found, pending, chained = list[BaseException](), [error], set[int]()
    while pending and len(found) <= MAX_EXCEPTIONS:
        each = pending.pop()
        found.append(each)
        if isinstance(each, BaseExceptionGroup):
            members = cast("tuple[BaseException, ...]", each.exceptions)
            pending += islice(members, MAX_EXCEPTIONS + 1)
        for cause in (each.__cause__, each.__context__):
            if cause is not None and id(cause) not in chained:
                chained.add(id(cause))
                pending.append(cause)
    return found


def _runs_code(error: BaseException) -> bool:
    """Return whether reading an error runs Python code of its class."""
    text = type(error).__str__
    return isinstance(text, FunctionType) and text is not CplaneError.__str__


def _traceback(error: BaseException, name: str, message: str) -> str:
    related = _related(error)
    if len(related) > MAX_EXCEPTIONS or sum(map(_length, related)) > MAX_CHARS_READ:
        return _short_traceback(error, name, message)
    described = traceback.TracebackException.from_exception(error, limit=-MAX_FRAMES)
    of_job = (number for number, frame in enumerate(described.stack) if _is_of_job(frame))
    first = next(of_job, len(described.stack))  # cplane's own error alone needs no traceback: its message says it all
    del described.stack[:first]
    return _middle_cut("".join(described.format()))


def _short_traceback(error: BaseException, name: str, message: str) -> str:
    """Return the traceback without causes, contexts and members of groups: they are too many, or too long."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__, limit=-MAX_FRAMES) if _is_of_job(frame)]
    text = "".join(traceback.format_list(frames))
    more = "(its causes and the members of its groups are left out: they are too many or too long)"
    return _middle_cut(f"Traceback (most recent call last):\n{text}{name}: {message[:1_000]}\n{more}\n")


def _is_of_job(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith(PACKAGE) or "/tasks/" in frame.filename


def _length(error: BaseException) -> int:
    """Return how long a message is; one that would have to be shortened counts as too long."""
    try:
        return MAX_CHARS_READ + 1 if _has_huge_argument(error) else len(str(error))
    except Exception:
        return 0


def _middle_cut(text: str) -> str:
    if len(text) <= MAX_TRACEBACK_CHARS:
        return text
    return f"{text[: MAX_TRACEBACK_CHARS // 2]}{CUT_MARK}{text[-MAX_TRACEBACK_CHARS // 2 :]}"
