"""How log lines look: for people on a console, or one JSON object a line. Only programs of ours configure this; importing never does."""

import logging
import sys
import time

import structlog

from cplane.settings import CplaneSettings


def configure_logs(settings: CplaneSettings) -> None:
    """Send cplane's log lines to stderr, as CPLANE_LOG_FORMAT and CPLANE_LOG_LEVEL say."""
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
        # plain tracebacks: others show local variables, arguments and secrets among them
        rendering = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


class LogRateLimiter:
    """Some log lines a second, at most; those left out are counted, so that the next line can say how many there were."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second)
        self._at = 0.0
        self._untold = 0

    def allows(self) -> bool:
        """Whether there may be another line now."""
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self._untold += 1
            return False
        self._left -= 1
        return True

    def untold(self) -> int:
        """How many lines were left out since this was last asked."""
        untold, self._untold = self._untold, 0
        return untold
