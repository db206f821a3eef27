"""The secrets that an attempt is known to have, and what it leaves without them: its errors, evidence and log lines."""

from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog

from cplane.runtime.error_text import Error, describe
from cplane.runtime.known_secrets import NOTHING_KNOWN, KnownSecrets, in_arguments, in_storage_state

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
    text = described or describe(error)
    if not (known := known_secrets(attempt)):
        return text
    return msgspec.structs.replace(text, message=known.mask(text.message), traceback=known.mask(text.traceback))


def log_without_secrets(attempt: "Attempt") -> "FilteringBoundLogger":
    """Return the log of an attempt for its job: known secrets are masked in what the job writes."""
    known: KnownSecrets | None = None

    def mask(logger: Any, method: str, line: "EventDict") -> "EventDict":
        nonlocal known
        known = known_secrets(attempt) if known is None else known
        if not known:
            return line
        texts = structlog.processors.format_exc_info(logger, method, line)
        return {name: known.mask(value) if isinstance(value, str) else value for name, value in texts.items()}

    bound: Any = attempt.log
    masked = type(bound)(bound._logger, [mask, *bound._processors], bound._context)  # noqa: SLF001  structlog binds so itself
    return cast("FilteringBoundLogger", masked)
