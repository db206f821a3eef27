"""How log lines look: for people on a console, or one JSON object a line. Only programs of ours configure this; importing never does."""

import logging
import sys

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
