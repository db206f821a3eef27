"""Log configuration: text for a console, or one JSON object a line.

Only our programs configure logs; importing cplane does not.
"""

import logging
import sys
import time
from io import StringIO
from typing import TextIO

import structlog

from cplane.runtime.visible import visible
from cplane.settings import CplaneSettings


def configure_logs(settings: CplaneSettings) -> None:
    """Write cplane's log lines to stderr, in the format and from the level of the settings.

    Args:
        settings: settings with `log_format` ("json", or text) and `log_level`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [
            _make_visible,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback),
        ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _make_visible(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Show escapes for what would act on a terminal: a page decides a part of some values."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in line.items()}


def _plain_traceback(target: TextIO, error: structlog.typing.ExcInfo) -> None:
    """Write a plain traceback: the other formatters show local variables, which include arguments and secrets."""
    text = StringIO()
    structlog.dev.plain_traceback(text, error)
    target.write(visible(text.getvalue()))


class LogRateLimiter:
    """A token bucket for log lines. Suppressed lines are counted, so that the next line can say how many there were.

    Args:
        per_second: maximum number of lines per second, and in one burst.
    """

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._tokens = float(per_second)
        self._refilled_at = 0.0
        self._suppressed = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now; if not, count it as suppressed."""
        now = time.monotonic()
        self._tokens = min(self._per_second, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        if self._tokens < 1:
            self._suppressed += 1
            return False
        self._tokens -= 1
        return True

    def take_suppressed(self) -> int:
        """Return the number of lines suppressed since the last call."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
