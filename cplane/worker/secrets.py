"""The secrets that an attempt is known to have, and what it leaves without them: its errors, evidence and log lines."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog

from cplane.browser.masking import mask_text
from cplane.jobs.context import Progress
from cplane.runtime.error_text import CUT_MARK, Error, describe
from cplane.runtime.known_secrets import NOTHING_KNOWN, KnownSecrets, in_arguments, in_storage_state

CALL_LOG = "Call log:"
"""Below it, Playwright's errors have what a call did: text that it typed, headers that it sent."""

NEARLY_CUT_CHARS = 15_000
"""A text of this length may have been cut, and end with a part of a secret (see `runtime/error_text.py`)."""

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

    from cplane.worker.attempt import Attempt


def known_secrets(attempt: "Attempt") -> KnownSecrets:
    """Return the secrets in the arguments of an attempt and in its browser session. Only what leaves traces asks for them."""
    try:
        given = attempt.job.given(attempt)
    except (msgspec.DecodeError, RecursionError):  # its job cannot read them either, and has not run
        given = None
    found = list(in_arguments(given))
    if attempt.session is not None:
        found += in_storage_state(attempt.session.storage_state)
    return KnownSecrets(found) if found else NOTHING_KNOWN


def error_without_secrets(attempt: "Attempt", error: BaseException, described: Error | None) -> Error:
    """Return the text of an error as it is recorded.

    Args:
        attempt: the attempt that it ended.
        error: the error.
        described: its text, if that has been read already.
    """
    text, known = described or describe(error), known_secrets(attempt)
    if not known and CALL_LOG not in text.message and CALL_LOG not in text.traceback:
        return text
    return msgspec.structs.replace(
        text, message=_without(known, text.message), traceback=_without(known, text.traceback)
    )


def _without(known: KnownSecrets, text: str) -> str:
    """Return a text without known secrets, and what Playwright logs of a call without what looks like one."""
    text = known.mask(text) if len(text) < NEARLY_CUT_CHARS else known.mask_cut(text, CUT_MARK)
    return mask_text(text) if CALL_LOG in text else text


def note_without_secrets(attempt: "Attempt") -> Callable[[Progress], None]:
    """Return what notes the progress of an attempt: known secrets are masked in its text."""
    known: KnownSecrets | None = None

    def note(progress: Progress) -> None:
        nonlocal known
        if progress.note:
            known = known_secrets(attempt) if known is None else known
            progress = replace(progress, note=known.mask(progress.note))
        attempt.note(progress)

    return note


def log_without_secrets(attempt: "Attempt") -> "FilteringBoundLogger":
    """Return the log of an attempt for its job: known secrets are masked in what the job writes."""
    known: KnownSecrets | None = None

    def mask(logger: Any, method: str, line: "EventDict") -> "EventDict":
        nonlocal known
        known = known_secrets(attempt) if known is None else known
        if not known and not line.get("exc_info"):
            return line
        texts = structlog.processors.format_exc_info(logger, method, line)
        return {
            name: _without(known, value) if isinstance(value, str) else known.mask_any(value)
            for name, value in texts.items()
        }

    bound: Any = attempt.log
    masked = type(bound)(bound._logger, [mask, *bound._processors], bound._context)  # noqa: SLF001  structlog binds so itself
    return cast("FilteringBoundLogger", masked)
