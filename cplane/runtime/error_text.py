"""Errors as text, as records keep them."""

import traceback
from pathlib import Path

MAX_TRACEBACK_CHARS = 16_000

PACKAGE = str(Path(__file__).parents[1])
"""Frames in this folder are not the job's own code, those of `tasks` aside."""


def error_texts(error: BaseException) -> tuple[str, str, str]:
    """Return the type of an error, its message, and a traceback that begins where the job's own code does."""
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ in {"builtins", "cplane.errors"}
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    described = traceback.TracebackException.from_exception(error)
    of_job = (
        number
        for number, frame in enumerate(described.stack)
        if not frame.filename.startswith(PACKAGE) or "/tasks/" in frame.filename
    )
    first = next(of_job, len(described.stack))  # cplane's own error alone needs no traceback: its message says it all
    del described.stack[:first]
    text = "".join(described.format())
    if len(text) > MAX_TRACEBACK_CHARS:
        text = f"{text[: MAX_TRACEBACK_CHARS // 2]}\n…\n{text[-MAX_TRACEBACK_CHARS // 2 :]}"
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    return name, message[:MAX_TRACEBACK_CHARS], text
